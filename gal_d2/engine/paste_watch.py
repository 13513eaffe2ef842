"""Notices in the first steps that nothing of what is drawn from the pool is pasted."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from gal_d2.errors import UserError

# Counted from the first step of this process; the last step counts as well.
CHECKED_AFTER = (5, 20, 100)
# So many in vain are no accident.
LEAST_DRAWN = 8


class PasteWatch(HookBase):
    """Stops a training all of whose pastes vanish: ``gal/pasted`` would be 0 to its end.

    Args:
        pool_root: for the message.
    """

    def __init__(self, pool_root: str) -> None:
        self.pool_root = pool_root
        self._counts = {"num_drawn": 0, "num_unusable": 0, "num_corrupt": 0, "num_pasted": 0}
        self._steps = 0
        self._is_done = False

    def after_step(self) -> None:
        """Count, and check at the same steps in all processes.

        Raises:
            UserError: objects were drawn, and none is in an image.
        """
        if self._is_done:
            return
        for sample in self.trainer.last_batch:
            for key in ("num_drawn", "num_unusable", "num_corrupt"):
                self._counts[key] += sample.get(key, 0)
            # Not the mapper's num_pasted, which counts real objects that were pasted as well.
            self._counts["num_pasted"] += int((sample["instances"].pool_id >= 0).sum())
        self._steps += 1
        is_last = self.trainer.iter + 1 == self.trainer.max_iter
        if self._steps in CHECKED_AFTER or is_last:
            self._check()
            self._is_done = self._steps >= CHECKED_AFTER[-1]

    def _check(self) -> None:
        counts = torch.tensor(list(self._counts.values()))
        counts = dict(zip(self._counts, sum(comm.all_gather(counts)).tolist(), strict=True))
        if counts["num_pasted"] or counts["num_drawn"] < LEAST_DRAWN:
            return
        elsewhere = counts["num_drawn"] - counts["num_unusable"] - counts["num_corrupt"]
        raise UserError(
            f"nothing is pasted: {counts['num_drawn']} cut-outs were drawn from the instance pool "
            f"{self.pool_root} in {self._steps} steps, {counts['num_unusable']} of them have "
            f"nothing that can be pasted, {counts['num_corrupt']} cannot be read, and {elsewhere} "
            "came to lie outside the images or hidden; tools/check_pool.py says what is wrong with "
            "the pool, GAL.COPY_PASTE and GAL.DATA.LSJ say where pastes come to lie."
        )
