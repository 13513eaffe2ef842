"""Lets a running training take in what people say of the pool's cut-outs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm

from gal_d2.errors import UserError
from gal_d2.selection.posterior import Posterior

logger = logging.getLogger(__name__)

Judged = tuple[np.ndarray, np.ndarray]
"""Pool ids (J,) int64 ascending and (J,) int8: 1 good, -1 bad."""


class TakenVerdicts:
    """What a run took in at which step, in a file of its output folder.

    Verdicts come from outside, whenever somebody gives them. A run that was killed does its last
    steps again, and has to see in them what it saw the first time, not what was said since.

    Args:
        path: of the file, JSON lines.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._taken: dict[int, Judged] = {}

    def start(self, step: int) -> None:
        """Make ready for a run that begins (0) or goes on at ``step``."""
        self._taken = {}
        if step == 0:
            self.path.unlink(missing_ok=True)
        elif self.path.is_file():
            for line in self.path.read_bytes().split(b"\n")[:-1]:
                self._remember(line)

    def _remember(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            good, bad = (np.array(entry[word], np.int64) for word in ("good", "bad"))
            step = int(entry["step"])
        except (ValueError, TypeError, KeyError):
            logger.warning("A line of %s is broken and left out.", self.path)
            return
        ids = np.concatenate([good, bad])
        order = np.argsort(ids)
        signs = np.repeat(np.array([1, -1], np.int8), [len(good), len(bad)])
        self._taken[step] = ids[order], signs[order]

    def at(self, step: int, judged: Callable[[], Judged]) -> Judged:
        """What counts from ``step`` on: what was taken in there before, else ``judged()``."""
        if step not in self._taken:
            self._taken[step] = judged()
            self._write(step)
        return self._taken[step]

    def _write(self, step: int) -> None:
        ids, signs = self._taken[step]
        entry = {"step": step, "good": ids[signs > 0].tolist(), "bad": ids[signs < 0].tolist()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written to ({error.strerror}): free some space or set "
                "OUTPUT_DIR to a place that you can write to."
            ) from error


class VerdictHook(HookBase):
    """Hands the posterior what people said so far, before step 0 and every ``period`` steps.

    It stands before what auditions cut-outs and before what takes snapshots, with the snapshots'
    period: what is taken in is in the snapshot of the same step, and in the posterior of every
    process.

    Args:
        posterior: that learns of it, the same on all processes.
        judged: gives what was said so far; called on the main process only.
        period: steps.
        output_dir: has the file ``verdicts.jsonl`` of what was taken in.
    """

    def __init__(
        self,
        posterior: Posterior,
        judged: Callable[[], Judged],
        *,
        period: int,
        output_dir: str | Path,
    ) -> None:
        self.posterior = posterior
        self.judged = judged
        self.period = period
        self.taken = TakenVerdicts(Path(output_dir) / "verdicts.jsonl")

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if comm.is_main_process():
            self.taken.start(start)
        if start == 0:
            self._take(0)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0:
            self._take(done)

    def _take(self, step: int) -> None:
        mine = self.taken.at(step, self.judged) if comm.is_main_process() else None
        judged = comm.all_gather(mine)[0]
        before = len(self.posterior.judged[0])
        self.posterior.judged = judged
        if len(judged[0]) != before:
            good = int((judged[1] > 0).sum())
            logger.info(
                "Verdicts: %d cut-outs are good and %d bad, by people.", good, len(judged[0]) - good
            )
