"""What a run believed of its pool in the end, from its last snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gal_d2.selection.draw import separation
from gal_d2.selection.posterior_view import PosteriorView
from gal_d2.testbeds.truth import GOOD, PoolTruth

BINS = 32
FEWEST = 5  # cut-outs of a category from which on its figures say something


@dataclass(frozen=True)
class PoolBelief:
    """Of N cut-outs that were scored, by ascending pool id.

    Attributes:
        pool_id, category_id: (N,) int64.
        value: (N,) expected value, in standard deviations of single scores of the category.
        std: (N,) of the value.
    """

    pool_id: np.ndarray
    category_id: np.ndarray
    value: np.ndarray
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.pool_id)

    def of(self, pool_id: int) -> tuple[float, float] | None:
        """Value and standard deviation of a cut-out; None if it was never scored."""
        row = int(np.searchsorted(self.pool_id, pool_id))
        if row == len(self) or self.pool_id[row] != pool_id:
            return None
        return float(self.value[row]), float(self.std[row])


@dataclass(frozen=True)
class CategoryBelief:
    """Figures of a category.

    Attributes:
        scored: number of cut-outs that were scored.
        separation: see :func:`gal_d2.selection.draw.separation`; NaN for fewer than ``FEWEST``.
        better: share with a value above 0, the mean of the category's candidates.
        histogram: (``BINS``,) int64.
        auc: probability that a good one has a higher value than a bad one; NaN where not known.
    """

    scored: int
    separation: float
    better: float
    histogram: np.ndarray
    auc: float


def read_belief(run: Path, pool_id: np.ndarray, category_id: np.ndarray) -> PoolBelief | None:
    """The last snapshot's posterior; None where a run keeps none.

    Args:
        run: its OUTPUT_DIR.
        pool_id, category_id: (M,) int64, ascending by pool id: the cut-outs whose category is
            known. Others are left out.

    Raises:
        UserError: a snapshot that is needed is gone or damaged.
    """
    view = PosteriorView.latest(run)
    if view is None:
        return None
    ids = view.pool_ids
    if len(ids) == 0 or len(pool_id) == 0:
        return None
    row = np.searchsorted(pool_id, ids).clip(max=len(pool_id) - 1)
    known = pool_id[row] == ids
    ids = ids[known]
    return PoolBelief(ids, category_id[row[known]], *view.values(ids)) if len(ids) else None


def edges_of(belief: PoolBelief) -> np.ndarray:
    """(``BINS`` + 1,) bin edges that all but the outermost thousandths lie in."""
    low, high = np.quantile(belief.value, [0.001, 0.999])
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(``BINS``,) int64; what lies outside counts in the outermost bins."""
    return np.histogram(values.clip(edges[0], edges[-1]), edges)[0]


def by_category(belief: PoolBelief, truth: PoolTruth | None) -> dict[int, CategoryBelief]:
    """Figures by category id.

    Args:
        belief: of the pool.
        truth: about the pool, where it is known.
    """
    edges = edges_of(belief)
    is_good = None if truth is None else truth.kind[truth.rows(belief.pool_id)] == GOOD
    order = np.argsort(belief.category_id, kind="stable")
    ids, starts = np.unique(belief.category_id[order], return_index=True)
    found = {}
    for category_id, rows in zip(ids.tolist(), np.split(order, starts[1:]), strict=True):
        value, std = belief.value[rows], belief.std[rows]
        found[category_id] = CategoryBelief(
            len(rows),
            separation(value, std) if len(rows) >= FEWEST else float("nan"),
            float((value > 0).mean()),
            histogram(value, edges),
            float("nan") if is_good is None else auc(value, is_good[rows]),
        )
    return found


def auc(value: np.ndarray, is_good: np.ndarray) -> float:
    """Probability that a good one has a higher value than a bad one, ties counting half.

    Example:
        >>> auc(np.array([0.1, 0.2, 0.3]), np.array([False, True, True]))
        1.0
    """
    good, bad = np.sort(value[is_good]), value[~is_good]
    if len(good) == 0 or len(bad) == 0:
        return float("nan")
    above = (
        len(good) - (np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")) / 2
    )
    return float(above.mean() / len(good))
