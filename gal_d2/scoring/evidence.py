"""What the scores of a cut-out add up to over its repeated exposures.

One score is noisy, and a cut-out is pasted many times. Three things keep the mean of its scores
from being the best that can be said, and the estimate takes account of each:

- The model changes, and the level of a class's scores with it. A score s counts as r = s - l, by
  how much it is above the recent level l of its class's candidates.
- A later model judges better, and an object that is small or mostly covered can hardly be judged.
  A score of step t on a visible area of a pixels has the weight w = (t + 1) * min(1, a / a1).
- Few scores say little. The estimate is shrunk towards the class's level as if ``n0`` more scores
  had been there, of full weight and now, at step T:

    e = sum(w * r) / (sum(w) + n0 * (T + 1))
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from gal_d2.errors import UserError
from gal_d2.scoring.gathering import gather_columns

logger = logging.getLogger(__name__)

_LEVEL_SCORES = 64  # scores that a class's level is an average of, about
_MERGE_AT = 65536  # ids outside the sorted index; bounds what a merge of the index costs per new id


@dataclass(frozen=True)
class Evidence:
    """What is known about N cut-outs; rows as they were asked for.

    Attributes:
        count: (N,) int64, number of scores so far.
        mean: (N,) float64, weighted mean of the scores, each relative to its class's level of then;
            NaN for one never scored.
        shrunk: (N,) float64, the estimate; 0 for one never scored.
        level: (N,) float64, recent mean of the scores of its class; NaN where there are none.
        spread: (N,) float64, standard deviation of its class's relative scores; NaN below two.
    """

    count: np.ndarray
    mean: np.ndarray
    shrunk: np.ndarray
    level: np.ndarray
    spread: np.ndarray


class _SlotIndex:
    """Maps int64 keys to the order in which they were first seen; vectorised.

    A sorted array plus a small dict of the newest keys, merged now and then: a look-up is a binary
    search, an insertion costs no copy of the whole.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        self._slots = np.empty(0, np.int64)
        self._newest: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._newest)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(N,) int64 slots, -1 for an unknown key."""
        slots = np.full(len(keys), -1, np.int64)
        if len(self._keys):
            place = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
            found = self._keys[place] == keys
            slots[found] = self._slots[place[found]]
        if self._newest:
            for row in np.flatnonzero(slots < 0):
                slots[row] = self._newest.get(int(keys[row]), -1)
        return slots

    def add(self, keys: np.ndarray) -> None:
        """Give the next slots to keys that are unknown and distinct."""
        start = len(self)
        self._newest.update(zip(keys.tolist(), range(start, start + len(keys)), strict=True))
        if len(self._newest) >= _MERGE_AT:
            keys = np.fromiter(self._newest.keys(), np.int64, len(self._newest))
            slots = np.fromiter(self._newest.values(), np.int64, len(self._newest))
            self._set(np.concatenate([self._keys, keys]), np.concatenate([self._slots, slots]))

    def _set(self, keys: np.ndarray, slots: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._slots, self._newest = keys[order], slots[order], {}

    @classmethod
    def of(cls, keys: np.ndarray) -> _SlotIndex:
        """The index in which ``keys[i]`` has slot i."""
        index = cls()
        index._set(keys, np.arange(len(keys)))
        return index


class EvidenceStore:
    """Estimates by pool id, identical on all processes.

    Args:
        num_classes: number of classes.
        prior_count: n0, how many scores the class's level is worth.
        full_area: a1, visible pixels from which on a score has its full weight.

    Raises:
        ValueError: ``prior_count`` or ``full_area`` is not above 0.
    """

    def __init__(
        self, num_classes: int, *, prior_count: float = 0.5, full_area: float = 1024.0
    ) -> None:
        if not prior_count > 0:
            raise ValueError(f"prior_count must be above 0, not {prior_count}.")
        if not full_area > 0:
            raise ValueError(f"full_area must be above 0, not {full_area}.")
        self.num_classes = num_classes
        self.prior_count = prior_count
        self.full_area = full_area
        self.step = 0
        self._index = _SlotIndex()
        self._ids = np.empty(0, np.int64)  # by slot; with spare room at the end, like the next
        self._count = np.empty(0, np.int64)
        self._weight = np.empty(0, np.float64)
        self._mean = np.empty(0, np.float64)
        self._class_moments = np.zeros((num_classes, 3))  # number, sum, squares of relative scores
        # Moving average of scores, and what its weights add up to (it starts at 0).
        self._class_level = np.zeros((num_classes, 2))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> EvidenceStore:
        """The store that ``GAL.ACCEPT.EVIDENCE`` describes.

        Raises:
            UserError: an option is out of range.
        """
        node = cfg.GAL.ACCEPT.EVIDENCE
        for key in ("PRIOR_COUNT", "FULL_AREA"):
            if not node[key] > 0:
                raise UserError(
                    f"The configuration key GAL.ACCEPT.EVIDENCE.{key} is {node[key]}: set it "
                    "above 0."
                )
        return cls(
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            prior_count=node.PRIOR_COUNT,
            full_area=node.FULL_AREA,
        )

    def __len__(self) -> int:
        """Number of cut-outs that were scored at least once."""
        return len(self._index)

    @property
    def pool_ids(self) -> np.ndarray:
        """(n,) int64: the cut-outs that were scored at least once, in the order of their first."""
        return self._ids[: len(self)].copy()

    def update(
        self, pool_ids: Tensor, classes: Tensor, scores: Tensor, areas: Tensor, step: int
    ) -> None:
        """Add the scores of all processes; a collective call, also for a process without rows.

        Args:
            pool_ids: (N,) int64; rows with a negative id (not from the pool) are left out.
            classes: (N,) int64.
            scores: (N,) float; rows that are not finite (missing) are left out.
            areas: (N,) float, visible pixels of each; not finite: not known, taken to be many.
            step: training iteration, from 0; never less than in an earlier call.
        """
        columns = gather_columns(pool_ids.long(), classes.long(), scores.float(), areas.float())
        ids, classes, scores, areas = (column.numpy() for column in columns)
        self.step = step
        scores = scores.astype(np.float64)
        known = np.isfinite(scores) & (ids >= 0)
        ids, classes, scores, areas = ids[known], classes[known], scores[known], areas[known]
        if len(ids) == 0:
            return
        if classes.min() < 0 or classes.max() >= self.num_classes:
            raise ValueError(f"classes must lie in [0, {self.num_classes}).")
        # Sums in an order that does not depend on which process had which row.
        order = np.lexsort((areas, scores, ids))
        ids, classes, scores, areas = ids[order], classes[order], scores[order], areas[order]

        self._move_levels(classes, scores)
        scores -= self._levels()[classes]
        for power in range(3):
            self._class_moments[:, power] += np.bincount(
                classes, scores**power, minlength=self.num_classes
            )

        share = np.where(np.isfinite(areas), areas, self.full_area) / self.full_area
        weights = (step + 1) * share.clip(1e-3, 1.0)
        unique, rows, added = np.unique(ids, return_inverse=True, return_counts=True)
        weight = np.bincount(rows, weights)
        mean = np.bincount(rows, weights * scores) / weight
        slots = self._slots_of(unique)
        self._count[slots] += added
        self._weight[slots] += weight
        self._mean[slots] += (mean - self._mean[slots]) * weight / self._weight[slots]

    def _move_levels(self, classes: np.ndarray, scores: np.ndarray) -> None:
        count = np.bincount(classes, minlength=self.num_classes)
        mean = np.bincount(classes, scores, minlength=self.num_classes) / count.clip(min=1)
        kept = (1 - 1 / _LEVEL_SCORES) ** count[:, None]
        new = np.stack([mean, np.ones_like(mean)], axis=1)
        self._class_level = kept * self._class_level + (1 - kept) * new

    def _levels(self) -> np.ndarray:
        """(C,) recent mean of each class's scores; NaN where there are none."""
        total, weight = self._class_level.T
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)

    def _slots_of(self, unique_ids: np.ndarray) -> np.ndarray:
        slots = self._index.find(unique_ids)
        new = slots < 0
        if new.any():
            start = len(self._index)
            end = start + int(new.sum())
            self._index.add(unique_ids[new])
            slots[new] = np.arange(start, end)
            if end > len(self._ids):
                spare = max(end, 2 * len(self._ids), 1024) - len(self._ids)
                self._ids, self._count, self._weight, self._mean = (
                    np.concatenate([column, np.zeros(spare, column.dtype)])
                    for column in (self._ids, self._count, self._weight, self._mean)
                )
            self._ids[start:end] = unique_ids[new]
        return slots

    def get(self, pool_ids: np.ndarray | Tensor, classes: np.ndarray | Tensor) -> Evidence:
        """What is known about cut-outs, known ones or not.

        Args:
            pool_ids: (N,) int64.
            classes: (N,) int64, the class of each.
        """
        pool_ids = np.asarray(pool_ids, np.int64)
        classes = np.asarray(classes, np.int64)
        slots = self._index.find(pool_ids)
        known = slots >= 0
        count = np.zeros(len(pool_ids), np.int64)
        weight, mean = np.zeros(len(pool_ids)), np.full(len(pool_ids), np.nan)
        count[known] = self._count[slots[known]]
        weight[known], mean[known] = self._weight[slots[known]], self._mean[slots[known]]
        prior = self.prior_count * (self.step + 1)
        shrunk = weight * np.where(known, mean, 0.0) / (weight + prior)
        return Evidence(count, mean, shrunk, self._levels()[classes], self._spread()[classes])

    def _spread(self) -> np.ndarray:
        count, total, squares = self._class_moments.T
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = (squares - total**2 / count) / (count - 1)
        return np.sqrt(np.where(count >= 2, variance.clip(min=0), np.nan))

    def sampling_weights(
        self, pool_ids: np.ndarray | Tensor, classes: np.ndarray | Tensor, *, floor: float = 0.1
    ) -> np.ndarray:
        """:func:`sampling_weights` of cut-outs, each compared with its class's level.

        The difference that makes a difference is the standard error of the cut-out's mean: the more
        scores agree, the surer is what they say.
        """
        known = self.get(pool_ids, classes)
        return sampling_weights(
            known.mean,
            known.count,
            scale=known.spread / np.sqrt(known.count.clip(min=1)),
            floor=floor,
            prior_count=self.prior_count,
        )

    def state_dict(self) -> dict[str, Tensor]:
        size = len(self)
        return {
            "pool_ids": torch.from_numpy(self._ids[:size].copy()),
            "count": torch.from_numpy(self._count[:size].copy()),
            "weight": torch.from_numpy(self._weight[:size].copy()),
            "mean": torch.from_numpy(self._mean[:size].copy()),
            "class_moments": torch.from_numpy(self._class_moments.copy()),
            "class_level": torch.from_numpy(self._class_level.copy()),
            "step": torch.tensor(self.step),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore; a state of other classes, or of a release that kept less, is refused with a
        warning."""
        level = state.get("class_level")
        if level is None or level.shape != self._class_level.shape:
            found = "none" if level is None else str(len(level))
            logger.warning(
                "The checkpoint's evidence on cut-outs is for %s classes, this run has %d: it "
                "starts empty.",
                found,
                self.num_classes,
            )
            return
        self._ids = state["pool_ids"].numpy().copy()
        self._count = state["count"].numpy().copy()
        self._weight = state["weight"].numpy().copy()
        self._mean = state["mean"].numpy().copy()
        self._class_moments = state["class_moments"].numpy().copy()
        self._class_level = level.numpy().copy()
        self.step = int(state["step"])
        self._index = _SlotIndex.of(self._ids)


def sampling_weights(
    mean: np.ndarray,
    count: np.ndarray,
    *,
    reference: np.ndarray | float = 0.0,
    scale: np.ndarray | float = 0.1,
    floor: float = 0.1,
    prior_count: float = 4.0,
) -> np.ndarray:
    """How often to draw each cut-out of a class, relative to one that was never scored.

    The quality q in (0, 1) is the logistic function of (mean - reference) / scale; with n scores it
    is believed to n / (n + prior_count), and the rest of the weight is what a new one would get:

        w = floor + (1 - floor) * (1 - n / (n + prior_count) * (1 - q))

    So one that is never seen has weight 1, the highest, and gets explored; a poor one loses weight
    with every score that confirms it; none falls below ``floor``.

    Args:
        mean: (N,) mean of the scores so far; ignored where ``count`` is 0, so NaN there is fine.
        count: (N,) number of scores so far.
        reference: the score of middling quality, a number or (N,); the class's mean, say. NaN: not
            known, so all its instances are as good as new.
        scale: the difference of scores that makes a difference, a number or (N,), not negative; the
            class's standard deviation, say. 0 or NaN: as a NaN ``reference``.
        floor: in (0, 1], lowest weight.
        prior_count: scores after which quality has half of its say.

    Returns:
        (N,) float64 in [floor, 1]; not normalised.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> sampling_weights(np.array([np.nan, -0.4, -0.4, 0.4]), np.array([0, 1, 40, 40])).round(2)
        array([1.  , 0.82, 0.2 , 0.99])
    """
    mean, count = np.asarray(mean, np.float64), np.asarray(count)
    scale = np.asarray(scale, np.float64)
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be in (0, 1], not {floor}.")
    if not prior_count > 0:
        raise ValueError(f"prior_count must be above 0, not {prior_count}.")
    if (scale < 0).any():
        raise ValueError("scale must not be negative.")
    if (count < 0).any():
        raise ValueError("count must not be negative.")
    margin = (mean - reference) / np.where(scale == 0, np.nan, scale)
    quality = 1 / (1 + np.exp(-margin.clip(-500, 500)))
    quality = np.where((count == 0) | np.isnan(quality), 1.0, quality)
    belief = count / (count + prior_count)
    return (floor + (1 - floor) * (1 - belief * (1 - quality))).clip(floor, 1.0)
