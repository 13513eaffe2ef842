"""Takes the snapshots (:mod:`gal_d2.selection.snapshots`) that samples depend on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from gal_d2.datasets.category_identity import Names, names_in_state, names_state, require_same
from gal_d2.selection.snapshots import Snapshots

logger = logging.getLogger(__name__)

CATEGORIES = "categories"
"""The source that says what category ids mean."""

Source = Callable[[int], Mapping[str, np.ndarray]]
"""Gives the state of one part as named arrays, for the snapshot of a number; called on the main
process only."""


class SnapshotHook(HookBase):
    """Takes a snapshot before step 0 and every ``snapshots.period`` steps.

    It stands before the checkpointer: the snapshots that a checkpoint's next step needs are there
    when the checkpoint is. The main process's state is what all processes get.

    Args:
        snapshots: where they go.
        sources: by name; an array ``a`` of source ``s`` is ``"s.a"`` in the snapshot.
        checkpoint_period: steps between two checkpoints; what resuming at the last one needs is
            kept.
    """

    def __init__(
        self, snapshots: Snapshots, sources: Mapping[str, Source], *, checkpoint_period: int
    ) -> None:
        self.snapshots = snapshots
        self.sources = dict(sources)
        self.checkpoint_period = checkpoint_period

    def before_train(self) -> None:
        start = self.trainer.start_iter
        missing = []
        if comm.get_local_rank() == 0:
            missing = self.snapshots.resume(start)
        missing = comm.all_gather(missing)[0]
        if start > 0 and missing:
            logger.warning(
                "%s lacks snapshots that the samples of steps from %d on depend on: they see the "
                "state of that step. To repeat a run bit for bit, resume it in its own OUTPUT_DIR.",
                self.snapshots.folder,
                start,
            )
        elif start > 0:
            check_categories(self.snapshots, start, self.sources)
        for number in missing:
            self._take(number)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.snapshots.period == 0:
            # The checkpoint of this very step, if there is one, is not there yet.
            last_checkpoint = (done - 1) // self.checkpoint_period * self.checkpoint_period
            if comm.get_local_rank() == 0:
                self.snapshots.prune(last_checkpoint, done)
            self._take(done // self.snapshots.period)

    def _take(self, number: int) -> None:
        arrays: list[dict[str, np.ndarray] | None] = [None]
        if comm.is_main_process():
            arrays[0] = {
                f"{source}.{name}": array
                for source, state in self.sources.items()
                for name, array in state(number).items()
            }
        if comm.get_world_size() > 1:
            dist.broadcast_object_list(arrays)
        if comm.get_local_rank() == 0:  # each machine, in case they do not share the folder
            self.snapshots.write(number, arrays[0])
        comm.synchronize()  # no process makes samples that need it before


def categories_source(names: Names) -> Source:
    """What category ids mean, the same in every snapshot."""
    return lambda number: names_state(names)


def check_categories(snapshots: Snapshots, step: int, sources: Mapping[str, Source]) -> None:
    """Compare what category ids meant in the snapshots with what the source says that they mean.

    Raises:
        UserError: they mean others.
    """
    if CATEGORIES in sources:
        number = snapshots.number(step)
        now = {f"{CATEGORIES}.{k}": array for k, array in sources[CATEGORIES](number).items()}
        require_same(
            names_in_state(snapshots.at(step), CATEGORIES),
            names_in_state(now, CATEGORIES),
            f"the snapshots in {snapshots.folder}",
            "resume with the annotations of the run so far, or start anew in another OUTPUT_DIR",
        )
