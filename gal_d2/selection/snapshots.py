"""State that changes while training and that samples depend on, as a function of the step alone.

Loader workers make samples ahead of time, so "what is known now" differs from worker to worker and
from run to run. Here such state (how well cut-outs scored so far; which shards a growing pool has)
changes for the samples at fixed steps only. With PERIOD p and LAG l (``GAL.SNAPSHOTS``),

    snapshot k is the state before step k * p; the samples of step t see snapshot max(0, t // p - l)

whichever process makes them, and however early. Snapshots are files under
``OUTPUT_DIR/snapshots``, so that a resumed run finds those that its next samples need.

Use. Whoever has state adds a source in :func:`gal_d2.engine.build_hooks.build_snapshot_sources`, a
function that gives named arrays (:mod:`gal_d2.engine.snapshot_hook`). Whoever makes
samples has a ``Snapshots.from_config(cfg)`` and asks it with the ``"sample_step"`` that the stream
puts into each dataset dict, which a pool sampler gets as ``step``::

    sources["pool"] = lambda: {"shards": np.array(shard_names(root))}  # in the trainer
    shards = snapshots.at(step)["pool.shards"]  # in a mapper or sampler
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from gal_d2.errors import UserError
from gal_d2.files.atomic_file import remove_temporaries
from gal_d2.files.sealed_arrays import DAMAGE, read_arrays, write_arrays

logger = logging.getLogger(__name__)

# torch's DataLoader has so many batches on order for each worker.
PREFETCH_FACTOR = 2
# A part that stores only what changed since the snapshot before stores all of it in each n-th one.
KEYFRAME = 16
_NAME = re.compile(r"(\d{9})\.npz")


class Snapshots:
    """Writes and reads numbered snapshots; a reader is pickled to the loader's workers.

    Args:
        folder: of the files.
        period: p, steps from one snapshot to the next.
        lag: l, how many snapshots the samples of a step are behind.

    Raises:
        UserError: an option out of range.
    """

    def __init__(self, folder: str | os.PathLike, *, period: int, lag: int = 1) -> None:
        for key, value, least in (("PERIOD", period, 1), ("LAG", lag, 0)):
            if value < least:
                raise UserError(f"GAL.SNAPSHOTS.{key} is {value}: set it to at least {least}.")
        self.folder = Path(folder)
        self.period = period
        self.lag = lag
        self._last: tuple[int, dict[str, np.ndarray]] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Snapshots:
        """Those of a run.

        Raises:
            UserError: samples would be made before the snapshot that they see is there.
        """
        node = cfg.GAL.SNAPSHOTS
        snapshots = cls(Path(cfg.OUTPUT_DIR) / "snapshots", period=node.PERIOD, lag=node.LAG)
        ahead = cfg.DATALOADER.NUM_WORKERS * PREFETCH_FACTOR
        if ahead > node.LAG * node.PERIOD:
            raise UserError(
                f"GAL.SNAPSHOTS.LAG x PERIOD is {node.LAG * node.PERIOD} steps, but "
                f"DATALOADER.NUM_WORKERS {cfg.DATALOADER.NUM_WORKERS} make samples up to {ahead} "
                "steps ahead: raise one of the two keys, or use fewer workers."
            )
        return snapshots

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_last": None}

    def number(self, step: int) -> int:
        """Number of the snapshot that the samples of a step see."""
        return max(0, step // self.period - self.lag)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:09d}.npz"

    def numbers(self) -> list[int]:
        """Ascending: the snapshots that are there."""
        names = self.folder.iterdir() if self.folder.is_dir() else ()
        matches = [_NAME.fullmatch(path.name) for path in names]
        return sorted(int(match[1]) for match in matches if match)

    def at(self, step: int) -> Mapping[str, np.ndarray]:
        """The arrays that the samples of a step see, by name. Not to be changed.

        Where samples are made without a training (for a picture, say) there is no snapshot 0: then
        there are no arrays, and what they would say is as at the start of a training.

        Raises:
            UserError: another snapshot is not there, or one is damaged.
        """
        number = self.number(step)
        if self._last is None or self._last[0] != number:
            self._last = number, self.read(number)
        return self._last[1]

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a snapshot; none of number 0 where there is no such file.

        Raises:
            UserError: as :meth:`at`.
        """
        path = self.path(number)
        if number == 0 and not path.exists():
            return {}
        try:
            return read_arrays(path)
        except DAMAGE as error:
            raise UserError(
                f"The snapshot {path}, which the samples of steps from {number * self.period} on "
                f"need, cannot be read ({error}): resume in the OUTPUT_DIR that the checkpoint was "
                "made in, or start without --resume."
            ) from error

    # -- The writer's side

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store a snapshot; it appears complete or not at all.

        Raises:
            UserError: the disk is full or the folder cannot be written to.
        """
        path = self.path(number)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_arrays(path, arrays)
        except OSError as error:
            raise UserError(
                f"The snapshot {path} cannot be written ({error.strerror or error}): free some "
                "space or set OUTPUT_DIR to a place that you can write to."
            ) from error

    def resume(self, step: int) -> list[int]:
        """Make ready to go on at ``step``: later snapshots will be made again.

        Returns:
            Numbers of the snapshots that steps from ``step`` on need before the next one is due,
            but that are not there.
        """
        remove_temporaries(self.folder, ".npz")
        for number in self.numbers():
            if step == 0 or number * self.period > step:
                self.path(number).unlink(missing_ok=True)
        self._last = None
        needed = range(self._first_read(step), step // self.period + 1)
        missing = [number for number in needed if not self.path(number).is_file()]
        # What was stored as changes since a snapshot that is lost is of no use either.
        return [number for number in needed if missing and number >= missing[0]]

    def _first_read(self, step: int) -> int:
        """The earliest snapshot that is read for a step: where the changes that it sees begin."""
        return self.number(step) // KEYFRAME * KEYFRAME

    def prune(self, checkpoint: int, step: int) -> None:
        """Delete what is needed neither from ``step`` on nor to resume.

        Args:
            checkpoint: the step that a resumed run would go on at.
            step: the step that comes next.
        """
        to_resume = range(self._first_read(checkpoint), checkpoint // self.period + 1)
        for number in self.numbers():
            if number < self._first_read(step) and number not in to_resume:
                self.path(number).unlink(missing_ok=True)
