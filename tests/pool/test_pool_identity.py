"""A pool that was filled with other annotations shows what its names meant."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode

from gal_d2.config import add_gal_config
from gal_d2.datasets.category_identity import dataset_names
from gal_d2.errors import UserError
from gal_d2.pool.allow_list import write_allow_list
from gal_d2.pool.configured import open_configured_pool
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter

FROM_0 = {0: "cup", 1: "bun", 2: "cat"}
FROM_1 = {1: "cup", 2: "bun", 3: "cat"}


def fill(root: Path, names: dict[int, str] | None, ids: tuple[int, ...]) -> dict[int, str]:
    """A cut-out for each category id; what each shows, by pool id."""
    shows = {}
    with PoolWriter(root, names=names) as writer:
        for category_id in ids:
            # No two names look the same: a cut-out's id is made of its category id and its pixels.
            rgba = np.full((3, 4, 4), 255, np.uint8)
            rgba[..., :3] = zlib.crc32((names or {}).get(category_id, "").encode()) % 251
            pool_id = writer.add(category_id, rgba, source=CutOutSource("test", seed=category_id))
            shows[pool_id] = (names or {}).get(category_id, "")
    return shows


def labels(pool: InstancePool, names: dict[int, str]) -> dict[int, str]:
    """By pool id, the name of the category that ``get`` gives."""
    return {int(i): names[pool.get(int(i)).category_id] for i in pool.all_ids()}


def test_a_pool_of_an_older_export_keeps_its_labels(tmp_path: Path, caplog):
    shows = fill(tmp_path, FROM_0, (0, 1, 2))
    pool = InstancePool(tmp_path, names=FROM_1)
    assert labels(pool, FROM_1) == shows
    assert pool.category_ids.tolist() == [1, 2, 3] and pool.category_names == FROM_1
    for category_id, name in FROM_1.items():
        (pool_id,) = pool.ids(category_id)
        assert shows[pool_id] == name and pool.category_of([pool_id]).tolist() == [category_id]
        assert pool.get_encoded(pool_id)["category_id"] == category_id - 1  # as it is stored
    table = pool.metadata(["origin", "category_id", "pool_id"])
    assert table.column_names == ["origin", "category_id", "pool_id"]
    by_id = dict(zip(table["pool_id"].to_pylist(), table["category_id"].to_pylist(), strict=True))
    assert {i: FROM_1[c] for i, c in by_id.items()} == shows
    assert "0 was 'cup', which is 1" in caplog.text


def test_shards_of_two_exports_are_told_apart(tmp_path: Path):
    shows = fill(tmp_path, FROM_0, (0, 1)) | fill(tmp_path, FROM_1, (1, 3))
    now = {7: "cat", 8: "bun", 9: "cup"}
    pool = InstancePool(tmp_path, names=now)
    assert labels(pool, now) == shows and pool.counts() == {7: 1, 8: 1, 9: 2}
    with pytest.raises(UserError, match="category id 0 is 'cup'.*has the id 1"):
        _ = InstancePool(tmp_path).category_names  # what they are stored as contradicts itself


def test_workers_and_snapshots_see_the_same(tmp_path: Path):
    shows = fill(tmp_path, FROM_0, (0, 1))
    pool = InstancePool(tmp_path, names=FROM_1)
    assert labels(pickle.loads(pickle.dumps(pool)), FROM_1) == shows
    first = pool.shards
    shows_more = fill(tmp_path, FROM_0, (2,))
    assert pool.refresh() == 1 and labels(pool, FROM_1) == shows | shows_more
    pool.show(first)
    assert labels(pool, FROM_1) == shows


def test_a_category_that_is_gone_is_left_out(tmp_path: Path, caplog):
    fill(tmp_path, FROM_0, (0, 1, 2))
    pool = InstancePool(tmp_path, names={0: "bun", 1: "cat"})
    assert pool.counts() == {0: 1, 1: 1} and "left out: 0 was 'cup'" in caplog.text


def test_a_renamed_category_stops(tmp_path: Path):
    fill(tmp_path, {1: "cup", 2: "tv"}, (1, 2))
    with pytest.raises(UserError, match=rf"{tmp_path}: category id 2 was 'tv'.*'television'"):
        InstancePool(tmp_path, names={1: "cup", 2: "television"})


def test_an_old_pool_opens_with_a_warning(tmp_path: Path, caplog):
    fill(tmp_path, None, (1, 2))
    pool = InstancePool(tmp_path, names=FROM_1)
    assert pool.counts() == {1: 1, 2: 1} and "no category names" in caplog.text
    assert InstancePool(tmp_path).category_names is None


def test_nothing_is_added_under_ids_that_mean_others(tmp_path: Path):
    fill(tmp_path, FROM_0, (0, 1))
    with pytest.raises(UserError, match=r"category id 0 is 'cup'.*choose another folder"):
        PoolWriter(tmp_path, known=InstancePool(tmp_path), names=FROM_1)
    PoolWriter(tmp_path, known=InstancePool(tmp_path), names={**FROM_0, 3: "dog"}).close()
    # 'cat' was never stored, so it does not matter which id it has.
    PoolWriter(tmp_path, known=InstancePool(tmp_path), names={0: "cup", 1: "bun", 5: "cat"}).close()


@pytest.fixture
def cfg(lvis_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    """The tiny LVIS, and a pool for it that was filled with other ids."""
    from detectron2.config import get_cfg

    from gal_d2.datasets.registration import register_lvis

    register_lvis(lvis_root / "datasets")
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.DATASETS.TRAIN = ("lvis_v1_train",)
    cfg.GAL.POOL.ROOT = str(tmp_path / "pool")
    yield cfg
    register_lvis()


def test_training_opens_a_pool_by_the_names_of_its_data(cfg: CfgNode):
    names = dataset_names("lvis_v1_train")
    other = {i + 1: name for i, name in names.items()}
    shows = fill(Path(cfg.GAL.POOL.ROOT), other, (2, 8, 501))
    assert labels(open_configured_pool(cfg), names) == shows


def test_an_allow_list_of_another_export_is_refused(cfg: CfgNode, tmp_path: Path, caplog):
    names = dataset_names("lvis_v1_train")
    shows = fill(Path(cfg.GAL.POOL.ROOT), names, (1, 7))
    cfg.GAL.POOL.ALLOW_LIST = str(tmp_path / "list.parquet")
    write_allow_list(cfg.GAL.POOL.ALLOW_LIST, np.array(list(shows)), names)
    assert len(open_configured_pool(cfg)) == 2 and not caplog.records
    write_allow_list(cfg.GAL.POOL.ALLOW_LIST, np.array([*shows, 5]), None)
    assert len(open_configured_pool(cfg)) == 2
    assert "1 of the 3 cut-outs" in caplog.text and "no category names" in caplog.text
    other = {i - 1: name for i, name in names.items()}
    write_allow_list(cfg.GAL.POOL.ALLOW_LIST, np.array(list(shows)), other)
    with pytest.raises(UserError, match=r"the allow-list .*list.parquet.*make it anew"):
        open_configured_pool(cfg)


def test_an_allow_list_follows_a_pool_that_is_renumbered(cfg: CfgNode, tmp_path: Path):
    """Both were made with the older export, and belong together."""
    names = dataset_names("lvis_v1_train")
    other = {i - 1: name for i, name in names.items()}
    shows = fill(Path(cfg.GAL.POOL.ROOT), other, (0, 6))
    cfg.GAL.POOL.ALLOW_LIST = str(tmp_path / "list.parquet")
    kept = list(shows)[:1]
    write_allow_list(cfg.GAL.POOL.ALLOW_LIST, np.array(kept), other)
    assert labels(open_configured_pool(cfg), names) == {i: shows[i] for i in kept}
