"""A look at a pool before it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.preflight import require_usable_pool, warn_of_classes_without_objects
from gal_d2.pool.writer import PoolWriter

NAMES = {3: "boot", 7: "bun", 9: "cup"}


def pool_of(root: Path, alphas: dict[int, list[int]]) -> InstancePool:
    """A pool with a cut-out of each alpha, by category."""
    seed = 0
    with PoolWriter(root) as writer:
        for category_id, values in alphas.items():
            for value in values:
                rgba = np.full((5, 4, 4), value, np.uint8)
                rgba[..., :3] = np.arange(60).reshape(5, 4, 3)
                writer.add(category_id, rgba, source=CutOutSource("test", seed=(seed := seed + 1)))
    return InstancePool(root)


def test_a_sound_pool_is_not_mentioned(tmp_path: Path, caplog) -> None:
    count = require_usable_pool(pool_of(tmp_path, {3: [255, 200], 7: [128]}), [3, 7], NAMES)
    assert (count.looked_at, count.unusable) == (3, 0)
    assert not caplog.records


def test_what_cannot_be_pasted_is_counted_and_its_category_named(tmp_path: Path, caplog) -> None:
    pool = pool_of(tmp_path, {3: [255, 90], 7: [50, 60]})
    assert require_usable_pool(pool, [3, 7], NAMES).unusable == 3
    (record,) = caplog.records
    message = record.getMessage()
    assert "3 of 4 cut-outs" in message and "3 faint" in message and "of bun all" in message


def test_a_pool_of_which_nothing_can_be_pasted_is_refused(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, {3: [100], 7: [50, 127]})
    with pytest.raises(UserError, match=r"none of the 3 cut-outs .*3 faint.*check_pool"):
        require_usable_pool(pool, [3, 7], NAMES)


def test_only_the_categories_that_are_pasted_count(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, {3: [100], 7: [255]})
    assert require_usable_pool(pool, [7], NAMES).looked_at == 1
    with pytest.raises(UserError, match="none of the 1 cut-outs"):
        require_usable_pool(pool, [3], NAMES)


def test_an_empty_pool_is_somebody_else_s_business(tmp_path: Path) -> None:
    assert require_usable_pool(InstancePool(tmp_path, allow_empty=True), [3], NAMES).looked_at == 0


def test_of_a_large_pool_a_sample_of_each_category_is_decoded(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, {3: [255] * 300, 7: [50] * 20})
    count = require_usable_pool(pool, [3, 7], NAMES)
    assert (count.looked_at, count.unusable) == (128 + 20, 20)


def test_categories_without_a_real_object_are_named(tmp_path: Path, caplog) -> None:
    pool = pool_of(tmp_path, {3: [255], 7: [255], 9: [255], 11: [255]})
    missing = warn_of_classes_without_objects(
        pool, {3: 0, 7: 1, 9: 2}, ["boot", "bun", "cup"], np.array([0, 4, 0])
    )
    assert missing == ["boot", "cup"]
    (record,) = caplog.records
    assert "2 of the 3 categories" in record.getMessage() and "boot, cup" in record.getMessage()


def test_nothing_is_said_where_all_have_objects(tmp_path: Path, caplog) -> None:
    pool = pool_of(tmp_path, {3: [255]})
    assert warn_of_classes_without_objects(pool, {3: 0, 7: 1}, ["a", "b"], np.array([1, 0])) == []
    assert not caplog.records
