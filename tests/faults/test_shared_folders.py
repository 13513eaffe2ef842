"""Two at work in one folder, a pool that cannot be written to, and a clock that is set back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import made_by_hand
import numpy as np
import pytest
from dying import in_child
from test_killed_generators import stored

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.filters import AreaFilter
from gal_d2.generation.instance_cutter import InstanceCutter
from gal_d2.generation.pipeline import InstancePipeline
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.store import PoolStore
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import run_tool
from gal_d2.setup.output_folder import claim


def add(writer: PoolWriter, *numbers: int) -> None:
    for number in numbers:
        rgba = np.full((4, 5, 4), 100 + number, np.uint8)
        writer.add(1, rgba, source=CutOutSource("test", "v1", "a bun", number))


def test_a_second_training_is_kept_out_until_the_first_is_gone(tmp_path: Path, tried) -> None:
    """However it ends; and what it started does not keep the folder."""
    cfg = load_config("", ["OUTPUT_DIR", str(tmp_path / "output")])
    is_there, is_held = os.pipe()
    first = os.fork()
    if first == 0:
        claim(cfg, resume=True, overwrite=False)
        worker = os.fork()  # of a loader, which outlives it
        if worker:
            os.write(is_held, str(worker).encode())
        signal.pause()
    worker = int(os.read(is_there, 16))
    log = tmp_path / "log"
    try:
        assert in_child(lambda: run_tool(claim, cfg, resume=True, overwrite=False), log=log) == 1
        expected = f"another training is writing to OUTPUT_DIR '{tmp_path / 'output'}'"
        assert expected in log.read_text() and f"(process {first} on " in log.read_text()
        tried["two trainings in a folder"] += 1
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    try:
        assert in_child(lambda: claim(cfg, resume=True, overwrite=False)) == 0
    finally:
        os.kill(worker, signal.SIGKILL)
    os.close(is_held)
    os.close(is_there)


def test_two_writers_fill_one_pool(tmp_path: Path, tried) -> None:
    with PoolWriter(tmp_path) as first, PoolWriter(tmp_path) as second:
        add(first, 0, 1, 2)
        add(second, 2, 3)
        first.flush()
        add(first, 4)
    pool = InstancePool(tmp_path)
    assert len(pool) == 5 and len(np.unique(pool.all_ids())) == 5  # one of them is stored twice
    assert sum(stored(tmp_path).values()) == 6
    tried["two writers in a pool"] += 1


@pytest.fixture
def read_only_pool(tmp_path: Path) -> Iterator[Path]:
    """A pool in a folder that nobody may write to, root neither."""
    root = tmp_path / "pool"
    with PoolWriter(root) as writer:
        add(writer, 0, 1, 2)
    if os.geteuid():
        root.chmod(0o555)
        yield root
        root.chmod(0o755)
        return
    for options in (["--bind"], ["-o", "remount,bind,ro"]):
        command = ["mount", *options, str(root), str(root)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a file system")
    yield root
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def test_a_pool_that_cannot_be_written_to_is_read(read_only_pool: Path, tried) -> None:
    pool = InstancePool(read_only_pool)
    assert [pool.get(i).pool_id for i in pool.all_ids()] == pool.all_ids().tolist()
    for write in (PoolWriter, lambda root: PoolStore(str(root), "recipe")):
        with pytest.raises(UserError, match=f"{read_only_pool} cannot be written to"):
            write(read_only_pool)
    tried["pool not writable"] += 1


def test_a_clock_that_is_set_back_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried
) -> None:
    """Names of shards and journals are made of the time."""
    times = iter(range(10**18, 0, -(10**15)))
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    prompts = PromptBook([Category(3, "bun", "r", 1)])
    cutter = InstanceCutter([made_by_hand.DarkSegmenter()], [AreaFilter(0.05, 0.95)])
    for start in (0, 5, 10):
        generator = made_by_hand.DiscGenerator()
        store = PoolStore(str(tmp_path), "recipe")
        with InstancePipeline(generator, cutter, store) as pipeline:
            pipeline.run([prompts.request(3, index) for index in range(start + 5)])
        assert [request.index for request in generator.drawn] == list(range(start, start + 5))
    counts = stored(tmp_path)
    assert set(counts.values()) == {1} and len(counts) == 15 - 2  # one flagged, one too small
    tried["clock set back"] += 1
