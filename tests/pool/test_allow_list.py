"""Allow-lists of pools."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from small_pool import SOURCE

from gal_d2.errors import UserError
from gal_d2.pool.allow_list import read_allow_list, write_allow_list
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter


def test_only_what_is_allowed_is_seen(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool", max_rows=2) as writer:
        ids = [
            writer.add(number % 2, np.full((3, 3, 4), 99 + number, np.uint8), source=SOURCE)
            for number in range(6)
        ]
    write_allow_list(tmp_path / "new" / "allowed.parquet", np.array([ids[4], ids[1], 7]))
    allowed = read_allow_list(tmp_path / "new" / "allowed.parquet")
    pool = InstancePool(tmp_path / "pool", only=allowed)
    for seen in (pool, pickle.loads(pickle.dumps(pool))):
        assert sorted(seen.all_ids().tolist()) == sorted([ids[1], ids[4]])
        assert seen.ids(0).tolist() == [ids[4]] and seen.ids(1).tolist() == [ids[1]]
        assert (seen.get(ids[4]).rgba == 103).all()
        assert ids[0] not in seen
    with pytest.raises(UserError, match="none of the 1 cut-outs that are allowed"):
        InstancePool(tmp_path / "pool", only=np.array([7]))


def test_an_allow_list_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("1 2 3")
    for path in (tmp_path / "list", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"cannot be read .*filter_pool.py --allow-list wrote"):
            read_allow_list(path)
