"""The instance pool: what goes in comes out, and damage stays local."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_pool import SOURCE, fill, only_shard, picture
from torch.utils.data import DataLoader, Dataset

from gal_d2.errors import UserError
from gal_d2.pool.check import check_shard
from gal_d2.pool.cut_out import CorruptCutOutError, CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import SCHEMA, shard_names
from gal_d2.pool.writer import PoolWriter

# --- round trip -------------------------------------------------------------------------------


def test_cut_outs_come_back_as_they_were_added(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "new" / "pool") as writer:
        first = writer.add(
            12, picture(0, 7, 3), source=SOURCE, scores={"clip": 0.25, "area": np.float32(0.5)}
        )
        bare = writer.add(np.int64(3), picture(1), source=CutOutSource("folder", origin="a/b.png"))
    pool = InstancePool(tmp_path / "new" / "pool")
    assert len(pool) == 2
    assert sorted([first, bare]) == pool.all_ids().tolist()
    assert pool.category_ids.tolist() == [3, 12]
    assert pool.ids(12).tolist() == [first]
    assert pool.ids(99).tolist() == []
    assert pool.counts() == {3: 1, 12: 1}
    assert first in pool
    assert pool.contains(np.array([bare, 5, -1, first])).tolist() == [True, False, False, True]
    assert pool.category_of(np.array([bare, first, bare])).tolist() == [3, 12, 3]

    cut_out = pool.get(np.int64(first))
    assert (cut_out.pool_id, cut_out.category_id) == (first, 12)
    assert cut_out.source == SOURCE
    assert cut_out.scores == {"clip": 0.25, "area": 0.5}
    np.testing.assert_array_equal(cut_out.rgba, picture(0, 7, 3))
    assert cut_out.rgba.flags.writeable
    assert pool.get(bare).source == CutOutSource("folder", origin="a/b.png")
    assert pool.get(bare).scores == {}


def test_unknown_id(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    pool = InstancePool(tmp_path)
    with pytest.raises(KeyError, match="cut-out 5 is not in"):
        pool.get(5)
    with pytest.raises(KeyError, match="cut-out -1 is not in"):
        pool.category_of(np.array([-1]))


def test_many_batches_and_few_open_shards(tmp_path: Path) -> None:
    """1,100 rows are three record batches; with one reader open every shard is reopened."""
    ids = fill(tmp_path, range(1100)) + fill(tmp_path, range(1100, 1110), max_rows=4)
    pool = InstancePool(tmp_path, max_open_shards=1)
    for seed in (0, 1105, 511, 512, 1101, 1099, 1109):
        np.testing.assert_array_equal(pool.get(ids[seed]).rgba, picture(seed))


# --- duplicates and order ---------------------------------------------------------------------


def test_duplicates_are_stored_once_by_a_writer_and_shown_once_by_a_pool(tmp_path: Path) -> None:
    with PoolWriter(tmp_path) as writer:
        pool_id = writer.add(1, picture(0), source=SOURCE, scores={"clip": 1})
        assert writer.add(1, picture(0), source=SOURCE, scores={"clip": 2}) == pool_id
        assert (writer.added, writer.skipped) == (1, 1)
    with PoolWriter(tmp_path) as writer:
        writer.add(1, picture(0), source=SOURCE, scores={"clip": 3})
        other = writer.add(1, picture(1), source=SOURCE)
        assert (writer.added, writer.skipped) == (2, 0)
    pool = InstancePool(tmp_path)
    assert pool.all_ids().tolist() == sorted([pool_id, other])
    assert pool.get(pool_id).scores == {"clip": 1}
    with PoolWriter(tmp_path, known=pool) as writer:
        assert writer.add(1, picture(0), source=SOURCE) == pool_id
        assert (writer.added, writer.skipped) == (0, 1)


def test_refreshed_pool_equals_one_opened_anew(tmp_path: Path) -> None:
    """Also when the new shards sort before the old ones and hold some of the same cut-outs."""
    fill(tmp_path / "a", range(6), max_rows=2)
    fill(tmp_path / "b", range(3, 9), category_id=1, max_rows=4)
    fill(tmp_path / "b", range(20, 22), category_id=0)
    root = tmp_path / "pool"
    root.mkdir()
    for i, name in enumerate(shard_names(tmp_path / "a")):
        shutil.copy(tmp_path / "a" / name, root / f"{2 * i + 1}.arrow")
    grown = InstancePool(root)
    for i, name in enumerate(shard_names(tmp_path / "b")):
        shutil.copy(tmp_path / "b" / name, root / f"{2 * i}.arrow")
    assert grown.refresh() == 5
    fresh = InstancePool(root)
    assert grown.shards == fresh.shards == tuple(f"{i}.arrow" for i in range(6))
    np.testing.assert_array_equal(grown.all_ids(), fresh.all_ids())
    assert grown.counts() == fresh.counts()
    for pool_id in fresh.all_ids().tolist():
        assert grown.shards_of([pool_id]) == fresh.shards_of([pool_id])
        assert pool_id in grown.ids_in(fresh.shards_of([pool_id]))
    assert len(grown.ids_in(())) == 0
    assert grown.metadata().equals(fresh.metadata())
    assert [grown.get(i).source for i in grown.all_ids()] == [
        fresh.get(i).source for i in fresh.all_ids()
    ]


def test_order_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    fill(tmp_path / "one", range(20))
    fill(tmp_path / "many", range(19, -1, -1), max_rows=3)
    one, many = InstancePool(tmp_path / "one"), InstancePool(tmp_path / "many")
    assert one.ids(1).tolist() == many.ids(1).tolist() == sorted(one.all_ids().tolist())


# --- metadata ---------------------------------------------------------------------------------


def test_metadata_is_a_table_in_the_order_of_the_ids(tmp_path: Path) -> None:
    fill(tmp_path, range(10), max_rows=3)
    fill(tmp_path, range(5, 12), category_id=2, max_rows=4)
    pool = InstancePool(tmp_path)
    table = pool.metadata()
    assert table.column("pool_id").to_pylist() == pool.all_ids().tolist()
    assert table.column("category_id").to_pylist() == pool.category_of(pool.all_ids()).tolist()
    assert "image" not in table.column_names
    some = pool.metadata(["seed", "pool_id"])
    assert some.column_names == ["seed", "pool_id"]
    for row in some.slice(3, 4).to_pylist():
        assert pool.get(row["pool_id"]).source.seed == row["seed"]


def test_metadata_of_an_empty_pool(tmp_path: Path) -> None:
    table = InstancePool(tmp_path, allow_empty=True).metadata(["prompt"])
    assert (table.column_names, table.num_rows) == (["prompt"], 0)


@pytest.mark.parametrize("columns", [["image"], ["promt"], []])
def test_metadata_knows_its_columns(tmp_path: Path, columns: list[str]) -> None:
    with pytest.raises(ValueError, match="choose from pool_id"):
        InstancePool(tmp_path, allow_empty=True).metadata(columns)


# --- user's mistakes --------------------------------------------------------------------------


def test_missing_and_empty_pools_name_path_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist.*tools/import_cutouts\.py"):
        InstancePool(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no cut-outs.*tools/import_cutouts\.py"):
        InstancePool(tmp_path)
    pool = InstancePool(tmp_path / "nowhere", allow_empty=True)
    assert (len(pool), pool.refresh()) == (0, 0)
    assert pool.ids(1).tolist() == []


def test_pool_whose_path_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be created"):
        PoolWriter(tmp_path / "file")
    with pytest.raises(UserError, match=r"file is a file"):
        InstancePool(tmp_path / "file")


# --- damage -----------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _break_magic(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-6] + b"BROKEN")


def _other_schema(path: Path) -> None:
    table = pa.table({"pool_id": pa.array([1], pa.int64())})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("damage", [_truncate, _empty, _break_magic, _other_schema, _dangling_link])
def test_corrupt_shard_is_named_once_skipped_and_counted(
    tmp_path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(3))
    bad = only_shard(tmp_path)
    good = fill(tmp_path, range(3, 5))
    sound = bad.read_bytes()
    damage(bad)
    with caplog.at_level(logging.WARNING):
        pool = InstancePool(tmp_path)
        pool.refresh()
    assert pool.all_ids().tolist() == sorted(good)
    assert list(pool.corrupt_shards) == [bad.name]
    assert len([r for r in caplog.records if bad.name in r.getMessage()]) == 1
    assert check_shard(bad).error == pool.corrupt_shards[bad.name]

    # A shard that was seen in the middle of a copy is sound later.
    bad.unlink()
    bad.write_bytes(sound)
    assert pool.refresh() == 3
    assert pool.corrupt_shards == {}


def test_pool_of_corrupt_shards_only(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    _truncate(only_shard(tmp_path))
    with pytest.raises(UserError, match=r"all 1 shards .* tools/check_pool\.py"):
        InstancePool(tmp_path)


def test_corrupt_row_raises_is_named_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = fill(tmp_path, range(4))
    shard = only_shard(tmp_path)
    content = bytearray(shard.read_bytes())
    at = content.find(b"RIFF", content.find(b"RIFF") + 1) + 20  # in the second image
    content[at] ^= 0xFF
    shard.write_bytes(content)
    pool = InstancePool(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(CorruptCutOutError, match=f"cut-out {ids[1]} .*{shard.name}"):
                pool.get(ids[1])
    assert len(caplog.records) == 1
    assert list(pool.corrupt_ids) == [ids[1]]
    assert len(pool.ids(1)) == 4
    for seed in (0, 2, 3):
        np.testing.assert_array_equal(pool.get(ids[seed]).rgba, picture(seed))
    report = check_shard(shard)
    assert [(row, pool_id) for row, (pool_id, _) in report.corrupt_rows.items()] == [(1, ids[1])]
    assert [pool_id for pool_id, _ in report.sound_rows] == [ids[0], ids[2], ids[3]]


def test_row_that_never_was_an_image(tmp_path: Path) -> None:
    with PoolWriter(tmp_path) as writer:
        pool_id = writer.add_encoded(1, b"no image", 5, 4, source=SOURCE)
    with pytest.raises(CorruptCutOutError, match="does not decode"):
        InstancePool(tmp_path).get(pool_id)
    assert check_shard(only_shard(tmp_path)).corrupt_rows.keys() == {0}
    assert check_shard(only_shard(tmp_path), decode=False).corrupt_rows == {}


def test_shard_that_vanished(tmp_path: Path) -> None:
    ids = fill(tmp_path, range(2))
    pool = InstancePool(tmp_path)
    only_shard(tmp_path).unlink()
    with pytest.raises(CorruptCutOutError, match=str(ids[0])):
        pool.get(ids[0])


def test_too_many_open_files_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, range(2))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        InstancePool(tmp_path)


def test_random_damage_never_crashes_and_never_passes_for_a_cut_out(tmp_path: Path) -> None:
    ids = fill(tmp_path / "sound", range(4))
    sound = only_shard(tmp_path / "sound").read_bytes()
    rng = np.random.default_rng(0)
    (tmp_path / "pool").mkdir()
    logging.disable(logging.CRITICAL)
    try:
        for i in range(250):
            content = np.frombuffer(sound, np.uint8).copy()
            content[rng.integers(len(content), size=3)] = rng.integers(0, 256, 3)
            path = tmp_path / "pool" / f"{i}.arrow"
            path.write_bytes(content.tobytes())
            pool = InstancePool(tmp_path / "pool", allow_empty=True)
            pool.metadata()
            for pool_id in pool.all_ids().tolist():
                try:
                    rgba = pool.get(pool_id).rgba
                except CorruptCutOutError:
                    continue
                np.testing.assert_array_equal(rgba, picture(ids.index(pool_id)))
            path.unlink()
    finally:
        logging.disable(logging.NOTSET)


# --- processes --------------------------------------------------------------------------------


def test_pickle_holds_the_snapshot_and_little_else(tmp_path: Path) -> None:
    ids = fill(tmp_path, range(500), max_rows=100)
    pool = InstancePool(tmp_path)
    pool.get(ids[0])
    pickled = pickle.dumps(pool)
    assert len(pickled) < 1000
    fill(tmp_path, range(500, 600))
    copy = pickle.loads(pickled)
    assert copy.shards == pool.shards
    np.testing.assert_array_equal(copy.all_ids(), pool.all_ids())
    np.testing.assert_array_equal(copy.get(ids[3]).rgba, pool.get(ids[3]).rgba)
    assert InstancePool(tmp_path, shards=pool.shards).all_ids().tolist() == pool.all_ids().tolist()
    assert copy.refresh() == pool.refresh() == 100


class PoolDataset(Dataset):
    def __init__(self, pool: InstancePool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng(i)
        cut_out = self.pool.get(rng.choice(self.pool.ids(1)))
        return cut_out.pool_id, cut_out.rgba


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_data_loader_workers_see_the_same_cut_outs(
    tmp_path: Path, start: str, workers: int
) -> None:
    fill(tmp_path, range(30), max_rows=8)
    dataset = PoolDataset(InstancePool(tmp_path))
    expected = [dataset[i] for i in range(len(dataset))]
    fill(tmp_path, range(30, 60), max_rows=8)  # after the snapshot
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=start, timeout=120
    )
    for (pool_id, rgba), (expected_id, expected_rgba) in zip(loader, expected, strict=True):
        assert pool_id == expected_id
        np.testing.assert_array_equal(rgba, expected_rgba)


def test_schema_begins_with_the_index() -> None:
    assert SCHEMA.names[:2] == ["pool_id", "category_id"]


def test_a_cut_out_as_it_is_stored(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool") as writer:
        pool_id = writer.add(5, np.full((3, 4, 4), 99, np.uint8), source=SOURCE, scores={"a": 0.5})
    pool = InstancePool(tmp_path / "pool")
    stored = pool.get_encoded(pool_id)
    assert (stored["category_id"], stored["height"], stored["width"]) == (5, 3, 4)
    assert dict(stored["scores"]) == {"a": 0.5} and isinstance(stored["image"], bytes)
    with pytest.raises(KeyError, match="not in the instance pool"):
        pool.get_encoded(pool_id ^ 1)
