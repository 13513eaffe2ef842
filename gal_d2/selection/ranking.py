"""Which cut-outs of a pool a ledger says are best, and which of them to keep.

Works on the ledger of a training as on that of an offline pass: a cut-out's value is the mean over
its exposures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gal_d2.errors import UserError
from gal_d2.selection.ledger import Ledger

COMBINED, PHI, LOSS = "combined", "phi", "loss"
_HEAD_SCORE, _HEAD_LOSS = "head_score_", "head_loss_"


def criteria(ledger: Ledger) -> dict[str, str]:
    """What the cut-outs of a ledger can be ranked by, and what each means."""
    heads = [name.removeprefix(_HEAD_SCORE) for name in ledger.columns if _HEAD_SCORE in name]
    found = {COMBINED: "the combined score"}
    found |= {head: f"cosine of the {head} head's gradient with its direction" for head in heads}
    return found | {PHI: "first-order drop of the real loss", LOSS: "loss, the lower the better"}


def instance_values(ledger: Ledger, by: str = COMBINED, category_id: int | None = None) -> pa.Table:
    """One row a cut-out: what it is worth, and all means that the ledger has of it.

    Args:
        ledger: of a training or an offline pass.
        by: one of :func:`criteria`.
        category_id: of this category alone.

    Returns:
        The columns of :meth:`Ledger.by_instance` and ``value`` (float64; null: never scored).
        Higher is better, but for "loss", the sum of the heads' mean losses.

    Raises:
        UserError: ``by`` is none of the criteria.
    """
    known = criteria(ledger)
    if by not in known:
        raise UserError(
            f"--by is '{by}', but the ledger {ledger.root} has {', '.join(known)}: choose one."
        )
    table = ledger.by_instance(category_id=category_id)
    if by == LOSS:
        losses = [name for name in table.column_names if name.startswith(_HEAD_LOSS)]
        value = table[losses[0]]
        for name in losses[1:]:
            value = pc.add(value, table[name])
    else:
        column = {COMBINED: "score_mean", PHI: "phi_mean"}.get(by, f"{_HEAD_SCORE}{by}_mean")
        value = table[column]
    return table.append_column("value", value.cast(pa.float64()))


def rank(ledger: Ledger, category_id: int, by: str = COMBINED) -> pa.Table:
    """The cut-outs of a category, best first; those without a value come last and have no rank.

    Equal ones are in the order of their ids.

    Returns:
        The columns of :func:`instance_values` with ``rank`` (from 1) in front.

    Raises:
        UserError: ``by`` is unknown, or the ledger has nothing of the category.
    """
    table = instance_values(ledger, by, category_id)
    if table.num_rows == 0:
        raise UserError(
            f"the ledger {ledger.root} has no cut-out of category {category_id}: score some with "
            "tools/score_pool.py, or name another category."
        )
    order = "ascending" if by == LOSS else "descending"
    table = table.sort_by([("value", order), ("pool_id", "ascending")])  # nulls come last
    known = table.num_rows - table["value"].null_count
    numbers = [n + 1 if n < known else None for n in range(table.num_rows)]
    return table.add_column(0, "rank", pa.array(numbers, pa.int64()))


@dataclass(frozen=True)
class Exposure:
    """One time that a cut-out was scored. ``score`` is None where it could not be."""

    step: int
    score: float | None
    accept: bool


def histories(ledger: Ledger, category_id: int) -> dict[int, list[Exposure]]:
    """By pool id, the exposures of the cut-outs of a category, in order of time."""
    found: dict[int, list[Exposure]] = {}
    wanted = ["pool_id", "score", "accept"]
    for table in ledger.tables(wanted, category_id=category_id):
        columns = (table[name].to_pylist() for name in ("pool_id", "step", "score", "accept"))
        for pool_id, *values in zip(*columns, strict=True):
            found.setdefault(pool_id, []).append(Exposure(*values))
    for exposures in found.values():
        exposures.sort(key=lambda exposure: exposure.step)
    return found


@dataclass(frozen=True)
class KeepRule:
    """Which cut-outs of a category stay; exactly one of the first three is given.

    Attributes:
        threshold: those with at least this value.
        quantile: those at or above this quantile, in [0, 1], of the values of their category.
        top: so many of the best.
        at_least: of each category so many stay in any case, the best first, then those without
            a value.
        keep_unscored: those without a value stay.
    """

    threshold: float | None = None
    quantile: float | None = None
    top: int | None = None
    at_least: int = 0
    keep_unscored: bool = False

    def __post_init__(self) -> None:
        given = [value for value in (self.threshold, self.quantile, self.top) if value is not None]
        if len(given) != 1:
            raise UserError("give exactly one of --threshold, --quantile and --top.")
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            raise UserError(f"--quantile is {self.quantile}: set it in [0, 1].")
        if self.top is not None and self.top < 0:
            raise UserError(f"--top is {self.top}: set it to 0 or more.")
        if self.at_least < 0:
            raise UserError(f"--at-least is {self.at_least}: set it to 0 or more.")


def keep(values: np.ndarray, rule: KeepRule) -> np.ndarray:
    """(N,) bool: which cut-outs of one category stay.

    Args:
        values: (N,) float64, higher is better; NaN: no value. Ties go to the earlier one.
        rule: see there.

    Example:
        >>> keep(np.array([0.1, 0.9, np.nan, 0.5]), KeepRule(threshold=0.5))
        array([False,  True, False,  True])
    """
    known = np.isfinite(values)
    # Best first, those without a value last.
    order = np.argsort(np.where(known, -values, np.inf), kind="stable")
    if rule.threshold is not None:
        kept = known & (np.where(known, values, -np.inf) >= rule.threshold)
    elif rule.quantile is not None:
        limit = np.quantile(values[known], rule.quantile) if known.any() else np.inf
        kept = known & (np.where(known, values, -np.inf) >= limit)
    else:
        kept = np.zeros(len(values), bool)
        kept[order[: rule.top]] = True
        kept &= known
    if rule.keep_unscored:
        kept |= ~known
    for position in order:
        if kept.sum() >= rule.at_least:
            break
        kept[position] = True
    return kept


def keep_by_category(
    pool_ids: np.ndarray, categories: np.ndarray, values: Mapping[int, float], rule: KeepRule
) -> np.ndarray:
    """(N,) bool over the cut-outs of a pool.

    Args:
        pool_ids, categories: (N,) int64.
        values: by pool id, higher is better; those that are not in it have no value.
        rule: applied to each category by itself.
    """
    column = np.array([values.get(int(pool_id), np.nan) for pool_id in pool_ids], np.float64)
    kept = np.zeros(len(pool_ids), bool)
    for category in np.unique(categories):
        mine = categories == category
        kept[mine] = keep(column[mine], rule)
    return kept


def values_by_id(table: pa.Table, by: str) -> dict[int, float]:
    """By pool id the value of :func:`instance_values`, turned so that higher is better."""
    sign = -1.0 if by == LOSS else 1.0
    pairs = zip(table["pool_id"].to_pylist(), table["value"].to_pylist(), strict=True)
    return {pool_id: sign * value for pool_id, value in pairs if value is not None}


def names_of(columns: Sequence[str]) -> dict[str, str]:
    """What the means of a ledger are called in tables that people read."""
    names = {"score_mean": "combined", "phi_mean": "phi"}
    for column in columns:
        for prefix, kind in ((_HEAD_SCORE, "score"), (_HEAD_LOSS, "loss")):
            if column.startswith(prefix) and column.endswith("_mean"):
                names[column] = f"{column.removeprefix(prefix).removesuffix('_mean')} {kind}"
    return names
