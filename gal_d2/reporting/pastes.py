"""What a training pasted, from its ledger: by category and time, and by cut-out.

The ledger is read shard by shard; what is kept has the size of the pool and of the categories, not
of the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gal_d2.datasets.category_identity import names_in
from gal_d2.selection.ledger import Ledger
from gal_d2.testbeds.truth import GOOD, PoolTruth

WINDOWS = 20
"""Stretches of the training over which pastes are counted."""
QUARTERS = 4
_COLUMNS = ("pasted", "scored", "total", "offset", "squares")


@dataclass
class Tally:
    """Counts and sums of N cut-outs.

    Attributes:
        pool_id: (N,) int64, ascending.
        category_id: (N,) int64.
        pasted: (N,) int64.
        scored: (N,) int64, pastes with a score.
        total: (N,) float64, sum of the scores.
        offset, squares: (N,) float64, sums of the scores less their category's mean at the time,
            and of the squares of that.
    """

    pool_id: np.ndarray
    category_id: np.ndarray
    pasted: np.ndarray
    scored: np.ndarray
    total: np.ndarray
    offset: np.ndarray
    squares: np.ndarray

    @classmethod
    def of_rows(
        cls,
        pool_id: np.ndarray,
        category_id: np.ndarray,
        window: np.ndarray,
        score: np.ndarray,
    ) -> Tally:
        """Of M pastes, (M,) each.

        Args:
            pool_id, category_id: of the cut-outs.
            window: when; scores of a category and window are compared with each other.
            score: may be NaN.
        """
        ids, first, row = np.unique(pool_id, return_index=True, return_inverse=True)
        known = np.isfinite(score)
        value = np.where(known, score, 0.0)
        _, at = np.unique(category_id * WINDOWS + window, return_inverse=True)
        mean = np.bincount(at, value) / np.maximum(np.bincount(at, known), 1)
        offset = np.where(known, value - mean[at], 0.0)
        size = len(ids)
        return cls(
            ids,
            category_id[first],
            np.bincount(row, minlength=size),
            np.bincount(row, known, minlength=size).astype(np.int64),
            np.bincount(row, value, minlength=size),
            np.bincount(row, offset, minlength=size),
            np.bincount(row, offset**2, minlength=size),
        )

    def __add__(self, other: Tally) -> Tally:
        both = np.concatenate([self.pool_id, other.pool_id])
        ids, first, row = np.unique(both, return_index=True, return_inverse=True)

        def added(name: str) -> np.ndarray:
            column = np.concatenate([getattr(self, name), getattr(other, name)])
            sums = np.bincount(row, column, minlength=len(ids))
            return sums.astype(column.dtype)

        category_id = np.concatenate([self.category_id, other.category_id])[first]
        return Tally(ids, category_id, *map(added, _COLUMNS))

    @property
    def mean(self) -> np.ndarray:
        """(N,) mean score; NaN where there is none."""
        scored = self.scored.astype(np.float64)
        return np.divide(self.total, scored, out=np.full(len(scored), np.nan), where=scored > 0)

    @property
    def std(self) -> np.ndarray:
        """(N,) standard deviation of a cut-out's scores, each compared with its category's."""
        return deviation(self.scored, self.offset, self.squares)


def deviation(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """(N,) standard deviations from sums of values and of their squares; 0 where there is none."""
    count = np.maximum(count, 1)
    return np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0))


@dataclass(frozen=True)
class Pastes:
    """What a ledger says.

    Attributes:
        steps: the last step in it, counted from 1; windows and quarters divide these steps.
        category_ids: (K,) int64, ascending.
        groups: by category id "r", "c" or "f".
        names: by category id, as the ledger keeps them; empty if it is of an earlier release.
        pasted, accepted: (K, ``WINDOWS``) int64.
        distinct: ``QUARTERS`` numbers of different cut-outs.
        good: by quarter, the share of good ones among the pasted; None without the truth.
        tally: by cut-out.
    """

    steps: int
    category_ids: np.ndarray
    groups: Mapping[int, str]
    names: Mapping[int, str]
    pasted: np.ndarray
    accepted: np.ndarray
    distinct: tuple[int, ...]
    good: tuple[float, ...] | None
    tally: Tally

    @property
    def window_steps(self) -> np.ndarray:
        """(``WINDOWS``,) step in the middle of each window."""
        return (np.arange(WINDOWS) + 0.5) * self.steps / WINDOWS


def read_pastes(folder: Path, truth: PoolTruth | None = None) -> Pastes:
    """Add up a ledger.

    Args:
        folder: of the ledger.
        truth: about the pool, where it is known.

    Raises:
        UserError: the ledger is empty, or the truth is of another pool.
    """
    ledger = Ledger(folder)
    steps = 1 + max(pc.max(table["step"]).as_py() or 0 for table in ledger.tables([]))
    counts: dict[int, np.ndarray] = {}
    groups: dict[int, str] = {}
    names: dict[int, str] = {}
    different = [np.empty(0, np.int64)] * QUARTERS
    good = np.zeros((2, QUARTERS))
    tally = None
    wanted = ["pool_id", "category_id", "frequency", "accept", "score"]
    for table in ledger.tables(wanted):
        names |= names_in(table.schema) or {}
        table = table.filter(pc.greater_equal(table["pool_id"], 0))  # real objects are none
        if table.num_rows == 0:
            continue
        pairs = table.group_by(["category_id", "frequency"]).aggregate([]).to_pydict()
        groups |= dict(zip(pairs["category_id"], pairs["frequency"], strict=True))
        pool_id, category, step = (
            table[name].to_numpy() for name in ("pool_id", "category_id", "step")
        )
        accept = table["accept"].to_numpy().astype(bool)
        score = table["score"].cast(pa.float64()).to_numpy()
        window, quarter = step * WINDOWS // steps, step * QUARTERS // steps
        present, row = np.unique(category, return_inverse=True)
        size = len(present) * WINDOWS
        at = row * WINDOWS + window
        parts = [np.bincount(some, minlength=size) for some in (at, at[accept])]
        both = np.stack(parts).reshape(2, len(present), WINDOWS)
        for number, category_id in enumerate(present.tolist()):
            counts[category_id] = counts.get(category_id, 0) + both[:, number]
        for number in np.unique(quarter).tolist():
            different[number] = np.union1d(different[number], pool_id[quarter == number])
        if truth is not None:
            is_good = truth.kind[truth.rows(pool_id)] == GOOD
            good += [np.bincount(quarter, w, minlength=QUARTERS) for w in (is_good, is_good >= 0)]
        part = Tally.of_rows(pool_id, category, window, score)
        tally = part if tally is None else tally + part
    category_ids = sorted(counts)
    windows = np.array([counts[i] for i in category_ids], np.int64).reshape(-1, 2, WINDOWS)
    none = np.empty(0, np.int64)
    return Pastes(
        steps,
        np.array(category_ids, np.int64),
        groups,
        names,
        windows[:, 0],
        windows[:, 1],
        tuple(len(ids) for ids in different),
        None if truth is None else tuple((good[0] / np.maximum(good[1], 1)).tolist()),
        tally or Tally.of_rows(none, none, none, none.astype(np.float64)),
    )


def count_rows(folder: Path) -> int:
    """Rows of a ledger, of its readable shards; 0 where there is none."""
    rows = 0
    for path in folder.glob("*.parquet"):
        try:
            rows += pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException):  # named by Ledger, where it is read
            continue
    return rows
