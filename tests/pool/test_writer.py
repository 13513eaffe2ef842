"""Writing a pool: limits, full disks, kills, and several writers at once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from small_pool import SOURCE, fill, picture

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import ShardWriter, shard_names, temporary_names
from gal_d2.pool.writer import PoolWriter


def test_seed_may_have_64_bits(tmp_path: Path) -> None:
    with PoolWriter(tmp_path) as writer:
        source = CutOutSource("test", seed=(1 << 64) - 1)
        pool_id = writer.add(1, picture(0), source=source)
        with pytest.raises(ValueError, match="seed"):
            writer.add(1, picture(0), source=CutOutSource("test", seed=-1))
    assert InstancePool(tmp_path).get(pool_id).source == source


def test_shards_roll_over_by_rows_and_by_bytes(tmp_path: Path) -> None:
    ids = fill(tmp_path / "rows", range(7), max_rows=3)
    assert len(shard_names(tmp_path / "rows")) == 3
    fill(tmp_path / "bytes", range(7), max_bytes=1)
    assert len(shard_names(tmp_path / "bytes")) == 7
    fill(tmp_path / "one", range(7))
    assert len(shard_names(tmp_path / "one")) == 1
    for part in ("rows", "bytes", "one"):
        assert InstancePool(tmp_path / part).all_ids().tolist() == sorted(ids)


def test_nothing_added_leaves_no_shard(tmp_path: Path) -> None:
    with PoolWriter(tmp_path) as writer:
        writer.flush()
    assert list(tmp_path.iterdir()) == []


def test_flush_makes_cut_outs_visible(tmp_path: Path) -> None:
    with PoolWriter(tmp_path) as writer:
        first = writer.add(1, picture(0), source=SOURCE)
        pool = InstancePool(tmp_path, allow_empty=True)
        assert len(pool) == 0
        writer.flush()
        assert pool.refresh() == 1
        writer.add(2, picture(1), source=SOURCE)
        assert pool.refresh() == 0
    assert pool.refresh() == 1
    assert first in pool
    assert pool.category_ids.tolist() == [1, 2]


def test_what_was_added_before_an_error_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"), PoolWriter(tmp_path) as writer:
        kept = writer.add(1, picture(0), source=SOURCE)
        writer.add(1, picture(0).astype(float), source=SOURCE)
    assert InstancePool(tmp_path).all_ids().tolist() == [kept]


def test_closed_writer_takes_nothing(tmp_path: Path) -> None:
    writer = PoolWriter(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(RuntimeError, match="closed"):
        writer.add(1, picture(0), source=SOURCE)


@pytest.mark.parametrize("limits", [{"max_rows": 0}, {"max_bytes": 0}])
def test_limits_are_positive(tmp_path: Path, limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="limits are positive"):
        PoolWriter(tmp_path, **limits)


def test_pool_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written to; change its permissions"):
        PoolWriter(tmp_path)


def _write_until_the_disk_is_full(root: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = PoolWriter(root, max_bytes=1 << 20)
    writer.add(1, picture(0), source=SOURCE)
    writer.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        for seed in range(1, 50):
            writer.add(1, picture(seed, 60, 60), source=SOURCE)
        writer.close()
    except UserError as error:
        assert "the last 49 cut-outs are lost" in str(error)
        assert writer.added == 1
        writer.close()
        os._exit(0)
    os._exit(1)


def test_full_disk_loses_the_open_shard_only(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_write_until_the_disk_is_full, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert len(InstancePool(tmp_path)) == 1
    assert temporary_names(tmp_path) == []


def _append(root: Path, seeds: range) -> None:
    fill(root, seeds, max_rows=7)


def test_two_processes_append_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_append, args=(tmp_path, seeds))
        for seeds in (range(60), range(50, 110))
    ]
    for process in processes:
        process.start()
    pool = InstancePool(tmp_path, allow_empty=True)
    new = len(pool)
    while any(process.is_alive() for process in processes):
        new += pool.refresh()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    new += pool.refresh()
    assert new == len(pool) == 110
    assert sorted(pool.get(i).source.seed for i in pool.all_ids()) == list(range(110))


def _write_and_wait(root: Path, ready) -> None:
    writer = PoolWriter(root, max_rows=1000)
    for seed in range(1600):
        writer.add(1, picture(seed, 2, 2), source=CutOutSource("test", seed=seed))
    ready.set()
    time.sleep(600)


def test_killed_writer_loses_its_open_shard_only(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_write_and_wait, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    assert len(temporary_names(tmp_path)) == 1
    pool = InstancePool(tmp_path)
    assert len(pool) == 1000
    assert pool.corrupt_shards == {}
    fill(tmp_path, range(2000, 2003))
    assert pool.refresh() == 3


def test_writer_belongs_to_its_process(tmp_path: Path) -> None:
    with PoolWriter(tmp_path) as writer:
        writer.add(1, picture(0), source=SOURCE)
        child = os.fork()
        if child == 0:
            try:
                writer.add(1, picture(1), source=SOURCE)
            except RuntimeError:
                writer.close()
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(InstancePool(tmp_path)) == 1


def test_discarded_shard_leaves_nothing(tmp_path: Path) -> None:
    shard = ShardWriter(tmp_path)
    assert temporary_names(tmp_path) == [shard.temporary.name]
    shard.discard()
    assert list(tmp_path.iterdir()) == []
