"""What is believed about each cut-out, from its scores in training and in auditions.

One score is noisy, and a cut-out is scored many times. For each cut-out and each signal (the box
head's cosine says whether it is the right object, the mask head's loss whether its mask is right
and its picture clean) the posterior keeps a mean and how sure it is. Signals stay apart until a
value is formed, because each finds its own kind of fault.

- *Relative to the class.* A score s counts as r = (s - l) / d, with l the level and d the spread of
  its class's candidates at that time. The level must not rise because better cut-outs are drawn, so
  it is the mean of s - d q, with q what the posterior expected of the cut-out beyond the mean of
  all cut-outs of the class: what is known about those that are drawn is taken out again. Training
  and auditions have levels of their own.
- *Later scores weigh more, covered objects less.* A score of step t on a visible area of a pixels
  weighs (t + 1) * min(1, a / a1).
- *Few scores say little.* The prior is worth n0 scores of full weight: see
  :mod:`gal_d2.selection.draw` for the formulas.
- *A network that is not trained here may have seen them before.* See
  :mod:`gal_d2.selection.likeness_evidence`.
- *A person's verdict says most.* See :mod:`gal_d2.selection.verdict_evidence`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from scipy.special import ndtr
from torch import Tensor

from gal_d2.distributed import gather_columns
from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.draw import posterior_moments, value_of
from gal_d2.selection.likeness_evidence import NOTHING_COMPARED, Likenesses, merged, with_likeness
from gal_d2.selection.signals import (
    ceiling_of,
    check_signals,
    is_alignment,
    neutral_value,
    signal_column,
)
from gal_d2.selection.slot_index import SlotIndex
from gal_d2.selection.verdict_evidence import NOTHING_JUDGED, with_verdicts

logger = logging.getLogger(__name__)

TRAINING, AUDITION = 0, 1
"""Where a score comes from."""
_NUM_SOURCES = 2
_LEVEL_SCORES = 64  # scores that a class's level and spread are an average of, about
_FEW_SCORES = 8  # with fewer, a class has the spread of all classes
_MAX_DEVIATION = 3.0  # a score further from its level says no more; in spreads
_BY_SLOT = ("ids", "count", "auditions", "weight", "mean")
_BY_CLASS = ("sum", "number", "level", "square", "seen")


@dataclass(frozen=True)
class Belief:
    """What is known about N cut-outs in S signals; rows as they were asked for.

    Attributes:
        count: (N,) int64, number of scores so far.
        mean, std: (N, S) float64, of the quality in each signal; (N, S + 1) with the likeness.
    """

    count: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class Posterior:
    """Beliefs by pool id, identical on all processes.

    Args:
        num_classes: C.
        signals: names, S of them; see :func:`~gal_d2.selection.signals.signal_column`.
        weights: (S,) of each signal in the value.
        ceilings: (S,) quality from which on more counts nothing in the value.
        prior_count: n0, how many scores the class's level is worth.
        full_area: a1, visible pixels from which on a score has its full weight.
        likeness_weight: of the likeness in the value, a signal beside the S; None: there is none.

    Attributes:
        weights, ceilings: of all signals, the likeness, if there is one, last.
        likeness: what is known of it so far; see :func:`add_likeness`.
        judged: what people said so far: pool ids (J,) int64 ascending and (J,) int8, 1 good and -1
            bad.

    Raises:
        ValueError: a number is out of its range, or lengths differ.
    """

    def __init__(
        self,
        num_classes: int,
        signals: Sequence[str] = ("score",),
        *,
        weights: Sequence[float] | None = None,
        ceilings: Sequence[float] | None = None,
        prior_count: float = 0.5,
        full_area: float = 1024.0,
        likeness_weight: float | None = None,
    ) -> None:
        if not prior_count > 0:
            raise ValueError(f"prior_count must be above 0, not {prior_count}.")
        if not full_area > 0:
            raise ValueError(f"full_area must be above 0, not {full_area}.")
        self.num_classes = num_classes
        self.signals = tuple(signals)
        size = len(self.signals)
        self.weights = np.ones(size) if weights is None else np.asarray(weights, np.float64)
        self.ceilings = (
            np.full(size, np.inf) if ceilings is None else np.asarray(ceilings, np.float64)
        )
        if self.weights.shape != (size,) or self.ceilings.shape != (size,):
            raise ValueError("weights and ceilings must have one entry for each signal.")
        self.has_likeness = likeness_weight is not None
        if self.has_likeness:
            self.weights = np.append(self.weights, likeness_weight)
            self.ceilings = np.append(self.ceilings, np.inf)
        self.likeness = NOTHING_COMPARED
        self._new_likeness = NOTHING_COMPARED  # that no snapshot has yet
        self.prior_count = prior_count
        self.full_area = full_area
        self.step = 0
        self.judged = NOTHING_JUDGED
        self._index = SlotIndex()
        # By slot; with spare room at the end.
        self._ids = np.empty(0, np.int64)
        self._count = np.empty(0, np.int64)
        self._auditions = np.empty(0, np.int64)
        self._weight = np.empty((0, size))
        self._mean = np.empty((0, size))
        self._changed = np.empty(0, bool)
        # By class: the sum of the means of its cut-outs, by signal, and their number.
        self._sum = np.zeros((num_classes, size))
        self._number = np.zeros(num_classes, np.int64)
        # By source, class and signal: moving averages of the level and of the squared deviation,
        # and what their weights add up to (they start at 0).
        self._level = np.zeros((_NUM_SOURCES, num_classes, size))
        self._square = np.zeros((_NUM_SOURCES, num_classes, size))
        self._seen = np.zeros((_NUM_SOURCES, num_classes, size))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Posterior:
        """The one that ``GAL.POSTERIOR`` describes.

        Raises:
            UserError: an option is out of range.
        """
        node = cfg.GAL.POSTERIOR
        check_signals(node.SIGNALS, cfg.GAL.SCORER.HEADS)
        if len(node.WEIGHTS) != len(node.SIGNALS):
            raise UserError(
                f"GAL.POSTERIOR.WEIGHTS has {len(node.WEIGHTS)} entries, GAL.POSTERIOR.SIGNALS has "
                f"{len(node.SIGNALS)}: give one for each signal."
            )
        return cls(
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            node.SIGNALS,
            weights=node.WEIGHTS,
            ceilings=[ceiling_of(signal) for signal in node.SIGNALS],
            likeness_weight=likeness_weight(cfg),
        )

    def __len__(self) -> int:
        """Number of cut-outs that were scored at least once."""
        return len(self._index)

    @property
    def pool_ids(self) -> np.ndarray:
        """(n,) int64: the cut-outs that were scored at least once, in the order of their first."""
        return self._ids[: len(self)].copy()

    # -- Learning

    def update(
        self,
        contribution: Contribution,
        step: int,
        *,
        source: int = TRAINING,
        leave_out: Tensor | None = None,
    ) -> None:
        """Add the scores of all processes; a collective call, also for a process without rows.

        Args:
            contribution: of N instances, on the CPU; rows that are not from the pool are left out,
                and so are values that are not finite. A visible area that is not finite is taken to
                be large.
            step: training iteration, from 0; never less than in an earlier call.
            source: ``TRAINING`` or ``AUDITION``.
            leave_out: (N,) bool, rows not to remember.
        """
        rows = self._rows(contribution, leave_out)
        ids, classes, areas, *values = gather_columns(
            rows.pool_id.long(), rows.gt_class.long(), rows.area, *self._signals(rows)
        )
        self._enter(ids, classes, areas, values, step, source)

    def add_gathered(
        self, contribution: Contribution, step: int, *, leave_out: Tensor | None = None
    ) -> None:
        """The same for rows of training that every process has already; no communication."""
        rows = self._rows(contribution, leave_out)
        values = self._signals(rows)
        self._enter(rows.pool_id, rows.gt_class, rows.area, values, step, TRAINING)

    def add_likeness(self, likeness: Likenesses) -> None:
        """Take in how much cut-outs look like their categories; the same on all processes.

        Args:
            likeness: pool ids (L,) int64 and (L,) float32; what is known of one already stays.
        """
        self.likeness = merged(self.likeness, likeness)
        self._new_likeness = merged(self._new_likeness, likeness)

    @staticmethod
    def _rows(contribution: Contribution, leave_out: Tensor | None) -> Contribution:
        keep = contribution.pool_id >= 0
        return contribution[keep if leave_out is None else keep & ~leave_out]

    def _signals(self, rows: Contribution) -> list[Tensor]:
        return [signal_column(rows, name).float() for name in self.signals]

    def _enter(self, ids, classes, areas, values, step: int, source: int) -> None:
        self.step = step
        if len(ids):
            values = torch.stack(list(values), dim=1).double().numpy()
            self._add(ids.numpy(), classes.numpy(), areas.numpy(), values, source)

    def _add(
        self,
        ids: np.ndarray,
        classes: np.ndarray,
        areas: np.ndarray,
        values: np.ndarray,
        source: int,
    ) -> None:
        if classes.min() < 0 or classes.max() >= self.num_classes:
            raise ValueError(f"classes must lie in [0, {self.num_classes}).")
        # Sums in an order that does not depend on which process had which row.
        order = np.lexsort((areas, *values.T[::-1], ids))
        ids, classes, areas, values = ids[order], classes[order], areas[order], values[order]
        known = np.isfinite(values)
        is_scored = known.any(1)
        expected = self._expected(ids, classes)
        self._move_levels(classes, np.where(known, values, 0.0), known, expected, source)
        level = self._average(self._level, source)[classes]
        spread = self._spread(source)[classes]
        known &= np.isfinite(spread)
        deviation = np.divide(values - level, spread, out=np.zeros_like(values), where=known)
        deviation = deviation.clip(-_MAX_DEVIATION, _MAX_DEVIATION)

        share = np.where(np.isfinite(areas), areas, self.full_area) / self.full_area
        weight = ((self.step + 1) * share.clip(1e-3, 1.0))[:, None] * known
        unique, first, rows, added = np.unique(
            ids, return_index=True, return_inverse=True, return_counts=True
        )
        known_before = len(self)
        slots = self._slots_of(unique)
        np.add.at(self._count, slots[rows], is_scored)
        if source == AUDITION:
            self._auditions[slots] += added
        self._changed[slots] = True
        new_weight = np.zeros((len(unique), len(self.signals)))
        np.add.at(new_weight, rows, weight)
        new_sum = np.zeros_like(new_weight)
        np.add.at(new_sum, rows, weight * deviation)
        total = self._weight[slots] + new_weight
        summed = self._weight[slots] * self._mean[slots] + new_sum
        mean = np.divide(summed, total, out=np.zeros_like(total), where=total > 0)
        np.add.at(self._sum, classes[first], mean - self._mean[slots])
        np.add.at(self._number, classes[first], slots >= known_before)
        self._mean[slots] = mean
        self._weight[slots] = total

    def _expected(self, ids: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """(N, S) quality of each cut-out beyond the mean of all cut-outs of its class."""
        slots = self._index.find(ids)
        known = slots >= 0
        centre = self._sum[classes[known]] / self._number[classes[known], None].clip(min=1)
        weight, mean = self._weight[slots[known]], self._mean[slots[known]]
        expected = np.zeros((len(ids), len(self.signals)))
        expected[known], _ = posterior_moments(weight, mean - centre, self.step, self.prior_count)
        return expected

    def _move_levels(
        self,
        classes: np.ndarray,
        values: np.ndarray,
        known: np.ndarray,
        expected: np.ndarray,
        source: int,
    ) -> None:
        """Let the classes' levels and spreads follow scores, less what was expected of them."""
        size = (self.num_classes, len(self.signals))
        count = np.zeros(size)
        np.add.at(count, classes, known.astype(np.float64))
        spread = np.nan_to_num(self._spread(source))[classes]
        mean = np.zeros(size)
        np.add.at(mean, classes, known * (values - spread * expected))
        mean /= count.clip(min=1)
        kept = (1 - 1 / _LEVEL_SCORES) ** count
        self._level[source] = kept * self._level[source] + (1 - kept) * mean
        self._seen[source] = kept * self._seen[source] + (1 - kept)
        square = np.zeros(size)
        level = np.nan_to_num(self._average(self._level, source))[classes]
        np.add.at(square, classes, known * (values - level) ** 2)
        square /= count.clip(min=1)
        self._square[source] = kept * self._square[source] + (1 - kept) * square

    def _average(self, sums: np.ndarray, source: int) -> np.ndarray:
        """(C, S) of a moving average; NaN where there is nothing."""
        seen = self._seen[source]
        return np.divide(sums[source], seen, out=np.full_like(seen, np.nan), where=seen > 0)

    def _spread(self, source: int) -> np.ndarray:
        """(C, S) standard deviation of single scores; NaN before there is any difference."""
        seen, square = self._seen[source], self._square[source]
        few = seen < 1 - (1 - 1 / _LEVEL_SCORES) ** _FEW_SCORES
        own = np.divide(square, seen, out=np.zeros_like(square), where=seen > 0)
        pooled = square.sum(0) / np.maximum(seen.sum(0), 1e-12)
        variance = np.where(few, pooled, own)
        return np.sqrt(np.where(variance > 1e-12, variance, np.nan))

    def _slots_of(self, unique_ids: np.ndarray) -> np.ndarray:
        slots = self._index.find(unique_ids)
        new = slots < 0
        if new.any():
            start = len(self._index)
            end = start + int(new.sum())
            self._index.add(unique_ids[new])
            slots[new] = np.arange(start, end)
            if end > len(self._ids):
                self._grow(max(end, 2 * len(self._ids), 1024))
            self._ids[start:end] = unique_ids[new]
        return slots

    def _grow(self, size: int) -> None:
        for name in (*_BY_SLOT, "changed"):
            column = getattr(self, f"_{name}")
            spare = np.zeros((size - len(column), *column.shape[1:]), column.dtype)
            setattr(self, f"_{name}", np.concatenate([column, spare]))

    # -- Asking

    def get(self, pool_ids: np.ndarray | Tensor) -> Belief:
        """What is known about cut-outs (N,), known ones or not."""
        pool_ids = np.asarray(pool_ids, np.int64)
        slots = self._index.find(pool_ids)
        known = slots >= 0
        count = np.zeros(len(pool_ids), np.int64)
        weight = np.zeros((len(pool_ids), len(self.signals)))
        mean = np.zeros_like(weight)
        count[known] = self._count[slots[known]]
        weight[known], mean[known] = self._weight[slots[known]], self._mean[slots[known]]
        moments = posterior_moments(weight, mean, self.step, self.prior_count)
        if self.has_likeness:
            moments = with_likeness(*moments, pool_ids, self.likeness)
        return Belief(count, *with_verdicts(*moments, pool_ids, self.judged))

    def value(self, pool_ids: np.ndarray | Tensor) -> np.ndarray:
        """(N,) expected quality of each cut-out over all signals; 0 at most if never scored."""
        return self.value_of(self.get(pool_ids))

    def value_of(self, belief: Belief) -> np.ndarray:
        """(N,) expected quality over all signals."""
        return value_of(belief.mean, self.weights, self.ceilings)

    def auditions(self, pool_ids: np.ndarray) -> np.ndarray:
        """(N,) int64: how often each cut-out was auditioned."""
        slots = self._index.find(np.asarray(pool_ids, np.int64))
        counts = np.zeros(len(slots), np.int64)
        counts[slots >= 0] = self._auditions[slots[slots >= 0]]
        return counts

    def helping(self) -> np.ndarray:
        """The share of each class's cut-outs that help, as far as it can be trusted.

        With level l and spread d of a class's auditions in a signal, Phi((l - z) / d) of them lie
        above the neutral value z (:func:`gal_d2.selection.signals.neutral_value`); the least of all
        signals counts, for each sees its own kind of fault. A class's own share is less certain
        than the mean of all classes, h, so (h + own) / 2 is returned, and h at most.

        Returns:
            (C,) in [0, 1]; NaN for a class without auditions, and for all where no signal is a
            cosine or one has no neutral value.
        """
        share = np.full(self.num_classes, np.nan)
        if not any(map(is_alignment, self.signals)):
            return share
        neutral = np.array([neutral_value(name) for name in self.signals])
        level, spread = self._average(self._level, AUDITION), self._spread(AUDITION)
        own = ndtr((level - neutral) / spread).min(1)
        known = np.isfinite(own)
        if known.any():
            of_all = own[known].mean()
            share[known] = np.minimum(of_all, (of_all + own[known]) / 2)
        return share

    # -- Snapshots and checkpoints

    def take_changes(self, everything: bool = False) -> dict[str, np.ndarray]:
        """What the sampler needs of the cut-outs that changed since the last call.

        Returns:
            ``pool_ids`` (n,) int64 ascending, ``weight`` and ``mean`` (n, S) float32, ``step``,
            ``prior_count``, ``weights`` and ``ceilings`` (S,) of the value, ``helping`` (C,)
            float32, and all verdicts: ``judged_ids`` (J,) int64 ascending and ``judged_signs`` (J,)
            int8. With the likeness, weights and ceilings have one more entry, and there are the new
            ones' ``alike_ids`` (L,) int64 ascending and ``alike_values`` (L,) float32.
        """
        size = len(self)
        rows = np.arange(size) if everything else np.flatnonzero(self._changed[:size])
        rows = rows[np.argsort(self._ids[rows], kind="stable")]
        self._changed[:size] = False
        alike = {}
        if self.has_likeness:
            ids, values = self.likeness if everything else self._new_likeness
            alike = {"alike_ids": ids, "alike_values": values}
            self._new_likeness = NOTHING_COMPARED
        return alike | {
            "pool_ids": self._ids[rows],
            "weight": self._weight[rows].astype(np.float32),
            "mean": self._mean[rows].astype(np.float32),
            "step": np.array(self.step),
            "prior_count": np.array(self.prior_count),
            "weights": self.weights,
            "ceilings": self.ceilings,
            "helping": self.helping().astype(np.float32),
            "judged_ids": self.judged[0],
            "judged_signs": self.judged[1],
        }

    def state_dict(self) -> dict:
        size = len(self)
        arrays = {name: getattr(self, f"_{name}")[:size].copy() for name in _BY_SLOT}
        arrays |= {name: getattr(self, f"_{name}").copy() for name in _BY_CLASS}
        arrays |= {"judged_ids": self.judged[0], "judged_signs": self.judged[1]}
        state: dict = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return state | {"step": self.step, "signals": list(self.signals)}

    def load_state_dict(self, state: dict) -> None:
        """Restore; a state of other classes or signals is refused with a warning."""
        level = state.get("level")
        same = level is not None and tuple(level.shape) == self._level.shape
        if not same or tuple(state.get("signals", ())) != self.signals:
            logger.warning(
                "The checkpoint's posterior of the cut-outs is of other classes or signals "
                "(GAL.POSTERIOR.SIGNALS), or there is none: it starts empty."
            )
            return
        for name in (*_BY_SLOT, *_BY_CLASS):
            setattr(self, f"_{name}", state[name].numpy().copy())
        self._changed = np.ones(len(self._ids), bool)
        self.step = int(state["step"])
        if "judged_ids" in state:  # a checkpoint of an earlier release has none
            self.judged = state["judged_ids"].numpy(), state["judged_signs"].numpy()
        self._index = SlotIndex.of(self._ids)


def likeness_weight(cfg: CfgNode) -> float | None:
    """``GAL.LIKENESS.WEIGHT``, where ``GAL.LIKENESS`` names a network; else None.

    Raises:
        UserError: it is negative, or two networks are named.
    """
    node = cfg.GAL.LIKENESS
    if node.TIMM and node.CLIP:
        raise UserError(
            f"GAL.LIKENESS.TIMM is '{node.TIMM}' and GAL.LIKENESS.CLIP '{node.CLIP}': name one "
            "network, and leave the other one empty."
        )
    if node.WEIGHT < 0:
        raise UserError(f"GAL.LIKENESS.WEIGHT is {node.WEIGHT}: set it to 0 or more.")
    return node.WEIGHT if node.TIMM or node.CLIP else None
