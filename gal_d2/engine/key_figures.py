"""Key figures of a run on their way to TensorBoard: what is pasted, and how far it is known."""

from __future__ import annotations

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from gal_d2.judging.judge import GROUPS, Judge
from gal_d2.selection.draw import separation, value_moments
from gal_d2.selection.posterior import Posterior

PERIOD = 100
"""Steps that a figure is about, and between two of them: all of a large pool is looked at."""


class KeyFiguresHook(HookBase):
    """Puts figures of the last ``PERIOD`` steps into the storage; a figure of nothing is left out.

    ``gal/distinct`` (different cut-outs, as a share of the pastes of this process),
    ``gal/pastes_r`` and ``gal/paste_share_r`` (their number and share by frequency group),
    ``gal/helpful`` (share of them that the posterior places above their category's candidates, of
    those it knows), ``gal/audition_share`` (of all scores), ``gal/separation`` (see
    :func:`gal_d2.selection.draw.separation`), ``gal/pool_helping`` (mean of
    :meth:`gal_d2.selection.posterior.Posterior.helping`). They stand beside ``gal/accepted`` and
    others of each step. Register it after auditions and before the writers, in the main process
    alone.

    Args:
        judge: of the trainer.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._pasted: list[np.ndarray] = []
        self._groups = np.zeros(len(GROUPS), np.int64)  # pastes by frequency group
        self._scored = 0  # of the pastes, where not every step is scored
        self._auditions = 0.0

    def after_step(self) -> None:
        """Count, and write when it is time."""
        step, storage = self.trainer.iter, get_event_storage()
        if self.judge.judged is not None:
            contribution = self.judge.judged.contribution
            is_pasted = contribution.pool_id >= 0
            self._pasted.append(contribution.pool_id[is_pasted].cpu().numpy())
            self._scored += int((is_pasted & (contribution.num_rois > 0)).sum())
            group = self.judge.class_groups[contribution.gt_class[is_pasted].cpu()]
            self._groups += np.bincount(group.numpy(), minlength=len(GROUPS))
        count, when = storage.latest().get("gal/auditions", (0.0, -1))
        if when == step:
            self._auditions += count
        if (step + 1) % PERIOD == 0 or step + 1 == self.trainer.max_iter:
            figures = self._figures()
            if figures:
                storage.put_scalars(smoothing_hint=False, **figures)
            self._pasted, self._scored, self._auditions = [], 0, 0.0
            self._groups[:] = 0

    def _figures(self) -> dict[str, float]:
        figures = {}
        pasted = np.concatenate(self._pasted) if self._pasted else np.empty(0, np.int64)
        if len(pasted):
            figures["gal/distinct"] = len(np.unique(pasted)) / len(pasted)
            for name, count in zip(GROUPS, self._groups.tolist(), strict=True):
                figures[f"gal/pastes_{name}"] = float(count)
                figures[f"gal/paste_share_{name}"] = count / len(pasted)
            # Auditions are of all processes.
            scores = self._auditions + self._scored * comm.get_world_size()
            if scores:
                figures["gal/audition_share"] = self._auditions / scores
        if self.judge.posterior is not None and len(self.judge.posterior) > 1:
            figures["gal/separation"] = separation_of(self.judge.posterior)
            helping = self.judge.posterior.helping()
            if np.isfinite(helping).any():
                figures["gal/pool_helping"] = float(np.nanmean(helping))
            belief = self.judge.posterior.get(pasted)
            known = belief.count > 0
            if known.any():
                value = self.judge.posterior.value_of(belief)[known]
                figures["gal/helpful"] = float(np.mean(value > 0))
        return figures


def separation_of(posterior: Posterior) -> float:
    """How far all cut-outs that were scored are told apart, each against its category."""
    belief = posterior.get(posterior.pool_ids)
    return separation(
        *value_moments(belief.mean, belief.std, posterior.weights, posterior.ceilings)
    )
