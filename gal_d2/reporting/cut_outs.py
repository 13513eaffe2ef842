"""Which cut-outs a report shows: the best, the worst and the most disputed, and their histories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gal_d2.errors import UserError
from gal_d2.reporting.belief import PoolBelief
from gal_d2.reporting.pastes import Tally, count_rows, deviation
from gal_d2.selection.ledger import Ledger

SHOWN = 12  # cut-outs of each kind
PER_CATEGORY = 2  # of one category among them, so that a report is not about one alone
CATEGORIES = 40  # of which the best and the worst are shown besides, those pasted most often
ROW = 6  # best, and worst, of such a category
LEAST_SCORES = 4  # of a cut-out whose scores can disagree


@dataclass(frozen=True)
class Event:
    """One score of a cut-out.

    Attributes:
        step: of the training.
        score: the scorer's combined one.
        kind: "pasted", "rejected" or "audition".
    """

    step: int
    score: float
    kind: str


@dataclass(frozen=True)
class Shown:
    """A cut-out of a report.

    Attributes:
        pool_id, category_id: of it.
        value: what it is ranked by: the expected value of the posterior, or its mean score.
        std: of the value; NaN where not known.
        scored: number of its scores in training.
        disagreement: standard deviation of its scores, as a multiple of that of all scores of its
            category.
        history: in order of time.
    """

    pool_id: int
    category_id: int
    value: float
    std: float
    scored: int
    disagreement: float
    history: Sequence[Event] = ()


@dataclass(frozen=True)
class Selection:
    """The cut-outs of a report.

    Attributes:
        best, worst, disputed: the first one is the best, the worst and the most disputed.
        by_category: by category id, its best and its worst.
    """

    best: Sequence[Shown]
    worst: Sequence[Shown]
    disputed: Sequence[Shown]
    by_category: dict[int, tuple[Sequence[Shown], Sequence[Shown]]]

    def pool_ids(self) -> set[int]:
        """Of all of them."""
        rows = [self.best, self.worst, self.disputed]
        rows += [row for pair in self.by_category.values() for row in pair]
        return {shown.pool_id for row in rows for shown in row}

    def with_histories(self, histories: dict[int, list[Event]]) -> Selection:
        """The same, each with its history."""

        def told(row: Sequence[Shown]) -> list[Shown]:
            return [replace(shown, history=histories.get(shown.pool_id, ())) for shown in row]

        pairs = {i: (told(best), told(worst)) for i, (best, worst) in self.by_category.items()}
        return Selection(told(self.best), told(self.worst), told(self.disputed), pairs)


def select(tally: Tally, belief: PoolBelief | None, seen: np.ndarray | None = None) -> Selection:
    """Choose the cut-outs to show.

    Args:
        tally: of what was pasted.
        belief: they are ranked by its values; without one, by their mean scores.
        seen: (N,) bool, which rows of the tally may be shown; None: all.
    """
    disagreement = disagreements(tally)
    value, std = tally.mean, np.full(len(tally.pool_id), np.nan)
    if belief is not None:
        value = np.full(len(tally.pool_id), np.nan)
        row = np.searchsorted(belief.pool_id, tally.pool_id).clip(max=len(belief) - 1)
        known = belief.pool_id[row] == tally.pool_id
        value[known], std[known] = belief.value[row[known]], belief.std[row[known]]
    usable = np.isfinite(value) if seen is None else np.isfinite(value) & seen
    rows = np.flatnonzero(usable)
    # Ties are broken by id, so that the same run gives the same page.
    ascending = rows[np.lexsort((tally.pool_id[rows], value[rows]))]

    def shown(some: Iterable[int]) -> list[Shown]:
        return [
            Shown(
                int(tally.pool_id[i]),
                int(tally.category_id[i]),
                float(value[i]),
                float(std[i]),
                int(tally.scored[i]),
                float(disagreement[i]),
            )
            for i in some
        ]

    disputed = rows[np.isfinite(disagreement[rows])]
    disputed = disputed[np.lexsort((tally.pool_id[disputed], -disagreement[disputed]))]
    by_category = {}
    for category_id in _pasted_most(tally):
        mine = ascending[tally.category_id[ascending] == category_id]
        row = min(ROW, len(mine) // 2)
        if row:
            by_category[category_id] = shown(mine[::-1][:row]), shown(mine[:row])
    return Selection(
        shown(varied(ascending[::-1], tally.category_id)),
        shown(varied(ascending, tally.category_id)),
        shown(varied(disputed, tally.category_id)),
        by_category,
    )


def disagreements(tally: Tally) -> np.ndarray:
    """(N,) standard deviation of each cut-out's scores over that of all scores of its category.

    Scores are compared with the category's mean at the time: they drift as the model learns.

    NaN for a cut-out with fewer than ``LEAST_SCORES``.
    """
    ids, row = np.unique(tally.category_id, return_inverse=True)
    sums = (
        np.bincount(row, column, minlength=len(ids))
        for column in (tally.scored, tally.offset, tally.squares)
    )
    spread = deviation(*sums)[row]
    enough = (tally.scored >= LEAST_SCORES) & (spread > 0)
    return np.divide(tally.std, spread, out=np.full(len(row), np.nan), where=enough)


def _pasted_most(tally: Tally) -> list[int]:
    ids, row = np.unique(tally.category_id, return_inverse=True)
    pasted = np.bincount(row, tally.pasted, minlength=len(ids))
    return ids[np.argsort(-pasted, kind="stable")][:CATEGORIES].tolist()


def varied(order: np.ndarray, category_id: np.ndarray) -> list[int]:
    """The first ``SHOWN`` rows, at most ``PER_CATEGORY`` of a category, where there are others.

    Args:
        order: (M,) int64, rows from the first on.
        category_id: (N,) int64, of each row.
    """
    seen: dict[int, int] = {}
    first, rest = [], []
    for row in order.tolist():
        count = seen[category_id[row]] = seen.get(category_id[row], 0) + 1
        (first if count <= PER_CATEGORY else rest).append(row)
        if len(first) == SHOWN:
            return first
        if len(rest) > 100 * SHOWN:
            break
    chosen = set(first + rest[: SHOWN - len(first)])
    return [row for row in order.tolist() if row in chosen]


def histories(run: Path, pool_ids: set[int]) -> dict[int, list[Event]]:
    """Every score of some cut-outs, from training and from auditions, in order of time.

    Args:
        run: its OUTPUT_DIR.
        pool_ids: which ones.
    """
    found: dict[int, list[Event]] = {}
    wanted = pa.array(sorted(pool_ids), pa.int64())
    for folder in ("ledger", "auditions"):
        if not count_rows(run / folder):
            continue
        for table in Ledger(run / folder).tables(["pool_id", "score", "accept"]):
            table = table.filter(pc.is_in(table["pool_id"], wanted))
            columns = (table[name].to_pylist() for name in ("pool_id", "step", "score", "accept"))
            for pool_id, step, score, accept in zip(*columns, strict=True):
                if score is None:
                    continue
                kind = "audition" if folder == "auditions" else "pasted" if accept else "rejected"
                found.setdefault(pool_id, []).append(Event(step + 1, score, kind))
    for events in found.values():
        events.sort(key=lambda event: event.step)
    return found


def require_single_scores(config: dict[str, object]) -> None:
    """Refuse to rank cut-outs by scores that are of whole batches.

    Raises:
        UserError: they are.
    """
    if config.get("GAL.ACCEPT.UNIT") == "batch":
        raise UserError(
            "This run scores all pastes of a step together (GAL.ACCEPT.UNIT is batch): its scores "
            "say nothing about single cut-outs."
        )
