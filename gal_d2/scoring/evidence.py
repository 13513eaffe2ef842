"""What the scores of a cut-out add up to over its repeated exposures.

One score is noisy, and a cut-out is pasted many times. With n scores of mean m, in a class whose
scores have mean c, the estimate is the mean shrunk towards the class's,

    e = (n * m + n0 * c) / (n + n0),

the posterior mean of a normal model whose prior is worth ``n0`` observations. The class's mean is
shrunk towards the mean of all scores in the same way.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gal_d2.scoring.gathering import gather_columns

logger = logging.getLogger(__name__)

_MERGE_AT = 65536  # ids outside the sorted index; bounds what a merge of the index costs per new id


@dataclass(frozen=True)
class Evidence:
    """What is known about N cut-outs; rows as they were asked for.

    Attributes:
        mean: (N,) float64, plain mean of the scores so far; NaN for one never scored.
        count: (N,) int64, number of scores so far.
        shrunk: (N,) float64, the mean shrunk towards the class's; NaN only where nothing at all has
            been scored yet.
        class_mean: (N,) float64, mean over its class, shrunk towards the mean of all scores.
        class_std: (N,) float64, standard deviation of single scores of its class; NaN below two.
    """

    mean: np.ndarray
    count: np.ndarray
    shrunk: np.ndarray
    class_mean: np.ndarray
    class_std: np.ndarray


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
    """Running means of scores by pool id, identical on all processes.

    Args:
        num_classes: number of classes.
        prior_count: n0, how many scores the class's mean is worth.

    Raises:
        ValueError: ``prior_count`` is not above 0.
    """

    def __init__(self, num_classes: int, *, prior_count: float = 4.0) -> None:
        if not prior_count > 0:
            raise ValueError(f"prior_count must be above 0, not {prior_count}.")
        self.num_classes = num_classes
        self.prior_count = prior_count
        self._index = _SlotIndex()
        self._ids = np.empty(0, np.int64)  # by slot; with spare room at the end, like the next two
        self._count = np.empty(0, np.int64)
        self._mean = np.empty(0, np.float64)
        self._class_moments = np.zeros((num_classes, 3))  # number, sum, sum of squares of scores

    def __len__(self) -> int:
        """Number of cut-outs that were scored at least once."""
        return len(self._index)

    @property
    def pool_ids(self) -> np.ndarray:
        """(n,) int64: the cut-outs that were scored at least once, in the order of their first."""
        return self._ids[: len(self)].copy()

    def update(self, pool_ids: Tensor, classes: Tensor, scores: Tensor) -> None:
        """Add the scores of all processes; a collective call, also for a process without rows.

        Args:
            pool_ids: (N,) int64; rows with a negative id (not from the pool) are left out.
            classes: (N,) int64.
            scores: (N,) float; rows that are not finite (missing) are left out.
        """
        columns = gather_columns(pool_ids.long(), classes.long(), scores.float())
        ids, classes, scores = (column.numpy() for column in columns)
        scores = scores.astype(np.float64)
        known = np.isfinite(scores) & (ids >= 0)
        ids, classes, scores = ids[known], classes[known], scores[known]
        if len(ids) == 0:
            return
        if classes.min() < 0 or classes.max() >= self.num_classes:
            raise ValueError(f"classes must lie in [0, {self.num_classes}).")
        # Sums in an order that does not depend on which process had which row.
        order = np.lexsort((scores, ids))
        ids, classes, scores = ids[order], classes[order], scores[order]
        for power in range(3):
            self._class_moments[:, power] += np.bincount(
                classes, scores**power, minlength=self.num_classes
            )

        unique, rows, added = np.unique(ids, return_inverse=True, return_counts=True)
        batch_mean = np.bincount(rows, scores) / added
        slots = self._slots_of(unique)
        self._count[slots] += added
        self._mean[slots] += (batch_mean - self._mean[slots]) * added / self._count[slots]

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
                self._ids, self._count, self._mean = (
                    np.concatenate([column, np.zeros(spare, column.dtype)])
                    for column in (self._ids, self._count, self._mean)
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
        mean = np.full(len(pool_ids), np.nan)
        count = np.zeros(len(pool_ids), np.int64)
        mean[known], count[known] = self._mean[slots[known]], self._count[slots[known]]

        class_mean, class_std = (column[classes] for column in self._class_statistics())
        own = np.where(known, mean, 0.0)
        shrunk = (count * own + self.prior_count * class_mean) / (count + self.prior_count)
        return Evidence(mean, count, shrunk, class_mean, class_std)

    def _class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (shrunk towards the mean of all) and standard deviation by class, each (C,)."""
        count, total, squares = self._class_moments.T
        with np.errstate(invalid="ignore", divide="ignore"):
            overall = total.sum() / count.sum()
            mean = (total + self.prior_count * overall) / (count + self.prior_count)
            variance = (squares - total**2 / count) / (count - 1)
        std = np.sqrt(np.where(count >= 2, variance.clip(min=0), np.nan))
        return mean, std

    def sampling_weights(
        self, pool_ids: np.ndarray | Tensor, classes: np.ndarray | Tensor, *, floor: float = 0.1
    ) -> np.ndarray:
        """:func:`sampling_weights` of cut-outs, each compared with the scores of its class."""
        known = self.get(pool_ids, classes)
        return sampling_weights(
            known.mean,
            known.count,
            reference=known.class_mean,
            scale=known.class_std,
            floor=floor,
            prior_count=self.prior_count,
        )

    def state_dict(self) -> dict[str, Tensor]:
        size = len(self)
        return {
            "pool_ids": torch.from_numpy(self._ids[:size].copy()),
            "count": torch.from_numpy(self._count[:size].copy()),
            "mean": torch.from_numpy(self._mean[:size].copy()),
            "class_moments": torch.from_numpy(self._class_moments.copy()),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore; a state of other classes is refused with a warning."""
        moments = state.get("class_moments")
        if moments is None or moments.shape != self._class_moments.shape:
            found = "none" if moments is None else str(len(moments))
            logger.warning(
                "The checkpoint's evidence on cut-outs is for %s classes, this run has %d: it "
                "starts empty.",
                found,
                self.num_classes,
            )
            return
        self._ids = state["pool_ids"].numpy().copy()
        self._count = state["count"].numpy().copy()
        self._mean = state["mean"].numpy().copy()
        self._class_moments = moments.numpy().copy()
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
