from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.journal import Outcome
from gal_d2.generation.prompts import PromptBook
from gal_d2.interleaving.pipeline_worker import GeneratorCrash, ProcessWorker
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.setup.configuration import load_config

USED_CATEGORIES = (1, 7, 500, 1203)  # as in lvis_layout.py, which a started process cannot import
CATEGORIES = [Category(c, f"thing {c}", "r", 1) for c in USED_CATEGORIES]
PROMPTS = PromptBook(CATEGORIES)
DEADLINE = 60  # seconds, for another process to do what it was asked to


def requests(*indices: int) -> list:
    return [PROMPTS.request(c, index) for index in indices for c in USED_CATEGORIES]


def wait_for(worker: ProcessWorker, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    end = time.monotonic() + DEADLINE
    while len(outcomes) < count and time.monotonic() < end:
        worker._connection.poll(1)
        outcomes += worker.collect()
    assert len(outcomes) == count
    return outcomes


def config(candidates: Path, output: Path):
    options = ["GAL.GENERATOR.CANDIDATES", str(candidates), "GAL.POOL.ROOT", str(output / "pool")]
    cfg = load_config("", [*options, "OUTPUT_DIR", str(output), "GAL.GENERATOR.NAME", "cutouts"])
    cfg.GAL.GENERATOR.FILTER.NAMES = []
    output.mkdir(exist_ok=True)
    return cfg


@pytest.fixture
def worker(candidates, tmp_path):
    worker = ProcessWorker(config(candidates, tmp_path), CATEGORIES)
    yield worker
    worker.close()


def test_draws_flushes_crashes_and_starts_again(worker, tmp_path):
    worker.start()
    worker.submit(requests(0))
    worker.submit(requests(1))
    drawn = wait_for(worker, 8)
    assert [o.request for o in drawn] == requests(0, 1) and all(o.pool_id for o in drawn)
    worker.flush()
    worker.submit(requests(2))
    wait_for(worker, 4)
    pool = InstancePool(tmp_path / "pool")
    assert set(pool.all_ids()) == {o.pool_id for o in drawn}

    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join(DEADLINE)
    worker.submit(requests(3))  # asked of a dead process
    with pytest.raises(GeneratorCrash, match="exit code -9"):
        worker.collect()
    worker.close()
    worker.start(again=True)
    worker.submit(requests(0, 3))
    again = wait_for(worker, 8)
    assert [o.recalled for o in again] == [True] * 4 + [False] * 4
    assert [o.pool_id for o in again[:4]] == [o.pool_id for o in drawn[:4]]

    process = worker.process
    worker.close()
    assert process.exitcode == 0
    pool.refresh()
    assert {o.pool_id for o in again} <= set(pool.all_ids())
    assert (tmp_path / "generator.log").exists()


def test_what_the_config_lacks_is_said_at_the_start(candidates, tmp_path):
    cfg = config(candidates / "nowhere", tmp_path)
    worker = ProcessWorker(cfg, CATEGORIES)
    with pytest.raises(UserError, match="GAL.GENERATOR.CANDIDATES is '.*nowhere'"):
        worker.start()
    assert worker.process is None


def test_what_was_answered_before_a_crash_counts(candidates, tmp_path):
    """The other side is played by hand: no process is needed."""
    worker = ProcessWorker(config(candidates, tmp_path), CATEGORIES)
    worker._connection, generator = multiprocessing.Pipe()
    worker.submit(requests(0))
    worker.flush()
    assert generator.recv() == requests(0) and generator.recv() == "flush"
    assert worker.collect() == []
    answers = [Outcome(request, None, "area") for request in requests(0)]
    generator.send(("outcomes", answers))
    generator.send(("user_error", "the disk is full"))  # stops a start, but not a training
    assert worker.collect() == answers
    for _ in range(2):
        with pytest.raises(GeneratorCrash, match="the disk is full"):
            worker.collect()


def start_and_wait(candidates: str, output: str) -> None:
    """The trainer that gets killed: prints its generator's process id."""
    worker = ProcessWorker(config(Path(candidates), Path(output)), CATEGORIES)
    worker.start()
    print(worker.process.pid, flush=True)
    signal.pause()


def test_it_dies_with_the_trainer(candidates, tmp_path):
    trainer = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, str(candidates), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    generator = int(next(line for line in trainer.stdout if line.strip().isdigit()))
    os.kill(generator, 0)  # it is there
    trainer.kill()
    trainer.wait(DEADLINE)
    # The generator holds the other end of this pipe: it ends when the last process is gone.
    trainer.stdout.read()
    with pytest.raises(ProcessLookupError):
        _wait_until_gone(generator)


def _wait_until_gone(pid: int) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        os.kill(pid, 0)
        # Orphans are reaped by whoever adopted them, or stay as zombies in a container.
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            raise ProcessLookupError


if __name__ == "__main__":
    import gal_d2  # noqa: F401

    start_and_wait(*sys.argv[1:])
