"""A script: trainings that are killed at random points, resumed, and killed again.

killed_trainings.py REPOSITORY FOLDER TRAINER AUDITION WORKER (numbers of kills)

tests/ and tests/faults/ are on PYTHONPATH. It imports once, and forks a process for each attempt.
In FOLDER are then ``whole``, of a training in one go, ``parts1`` and so on, and ``kills.json``, the
number of kills by kind.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from detectron2.engine import HookBase
from dying import KILLED, Countdown, in_child
from small_model import FROM_SCRATCH, SMALL_MODEL, hasten

import gal_d2  # noqa: F401  (first: it prepares the process for detectron2)
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import LOADER_ENDED
from gal_d2.files.checksum import require_intact
from gal_d2.judging.auditions import AuditionHook
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.launch import run_tool
from gal_d2.setup.setup import setup

STEPS = 14
# What changes while training and samples depend on, as in engine/test_resume.py.
LOOP = [
    *(*SMALL_MODEL, *FROM_SCRATCH, "SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("GAL.ACCEPT.WARM_UP.MIN_AGE", "1", "SEED", "11"),
    *("SOLVER.WARMUP_ITERS", "2", "DATASETS.TEST", "()"),
    *("GAL.POOL.SAMPLER", "posterior", "GAL.SNAPSHOTS.PERIOD", "2", "GAL.SNAPSHOTS.LAG", "2"),
    *("GAL.AUDITION.PERIOD", "2", "GAL.AUDITION.IMAGES", "0.5"),
    *("GAL.ACCEPT.POLICY", "quantile"),
]
# Calls of functions that a step takes, about, and auditions.
CALLS = {"trainer": 40_000, "audition": 15_000}
# A dead worker's training ends with a sentence, not with a signal.
ENDS = {"trainer": KILLED, "audition": KILLED, "worker": 1}


class Killer(HookBase):
    """Kills this process, or one that loads images for it, soon after the start."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind = kind
        self.rng = rng
        self.step = int(rng.integers(0, 3))  # after the first
        self.countdown = Countdown(int(rng.integers(1, CALLS.get(kind, 2))))

    def before_train(self) -> None:
        if self.kind == "audition":
            (hook,) = (h for h in self.trainer._hooks if isinstance(h, AuditionHook))
            audition = hook.after_step

            def counted() -> None:
                self.countdown.start()
                audition()
                self.countdown.stop()

            hook.after_step = counted

    def before_step(self) -> None:
        if self.trainer.iter != self.trainer.start_iter + self.step:
            return
        if self.kind == "trainer":
            self.countdown.start()
        elif self.kind == "worker":
            workers = sorted(multiprocessing.active_children(), key=lambda worker: worker.name)
            os.kill(workers[int(self.rng.integers(len(workers)))].pid, signal.SIGKILL)


def train(repository: Path, output: Path, workers: int, killer: Killer | None = None) -> int:
    """Exit status of a training that goes on with what is there."""
    config = str(repository / "configs/lvis_gal.yaml")
    options = [*LOOP, "DATALOADER.NUM_WORKERS", str(workers), "OUTPUT_DIR", str(output)]
    arguments = ["--config-file", config, "--num-gpus", "0", "--resume", *options]

    def main() -> None:
        args = argument_parser(trains=True).parse_args(arguments)
        trainer = GALTrainer(setup(args))
        trainer.register_hooks([killer] if killer else [])
        trainer.resume_or_load(resume=True)
        trainer.train()

    return in_child(lambda: run_tool(main), log=output.with_suffix(".log"))


def check_checkpoint(output: Path) -> None:
    """The last checkpoint, if there is one, is whole; earlier ones make room."""
    last = output / "last_checkpoint"
    if last.exists():
        require_intact(output / last.read_text())
        for path in output.glob("model_*.pth"):
            if path.name != last.read_text():
                path.unlink()


def main(repository: Path, folder: Path, wanted: dict[str, int]) -> None:
    rng = np.random.default_rng(16)
    assert train(repository, folder / "whole", 0) == 0
    check_checkpoint(folder / "whole")
    left = rng.permutation([kind for kind, count in wanted.items() for _ in range(count)]).tolist()
    kills: Counter[str] = Counter()
    number, is_done = 0, True
    while left or not is_done:
        number += is_done
        output = folder / f"parts{number}"
        if not left:
            status = train(repository, output, 2)
            assert status == 0, status
            check_checkpoint(output)
            break
        kind = left[-1]
        workers = 2 if kind == "worker" else int(rng.choice([0, 2]))
        status = train(repository, output, workers, Killer(kind, rng))
        assert status in (0, ENDS[kind]), (kind, status)
        if kind == "worker" and status:
            assert LOADER_ENDED in output.with_suffix(".log").read_text()
        check_checkpoint(output)
        is_done = status == 0  # it came to its end before it was killed
        if not is_done:
            left.pop()
            kills[kind] += 1
    (folder / "kills.json").write_text(json.dumps(kills))


if __name__ == "__main__":
    hasten()
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        dict(zip(ENDS, map(int, sys.argv[3:]), strict=True)),
    )
