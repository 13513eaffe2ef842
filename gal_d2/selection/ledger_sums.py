"""Sums over the rows of a ledger by group, which add up over its shards."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def partial_sums(
    table: pa.Table, keys: list[str], step_bin: int, flags: list[str], values: list[str]
) -> pa.Table:
    """Sums that add up over shards: named ``sum_*``, ``min_*`` and ``max_*``."""
    step = table["step"]
    columns = {key: table[key] for key in keys if key != "step_bin"}
    if "step_bin" in keys:
        columns["step_bin"] = pc.multiply(pc.divide(step, step_bin), step_bin)
    ones = pa.array(np.ones(table.num_rows, np.int64))
    columns |= {"sum_rows": ones, "min_step": step, "max_step": step}
    columns |= {f"sum_{name}": table[name].cast(pa.int64()) for name in flags}
    for name in values:
        if name not in table.column_names:  # a head that this part of the training did not score
            continue
        value = table[name].cast(pa.float64())
        columns[f"sum_{name}"] = value
        columns[f"sum_{name}_known"] = pc.is_valid(value).cast(pa.int64())
        if name == "score":
            columns["sum_score_squares"] = pc.multiply(value, value)
            columns["min_score"] = columns["max_score"] = value
    return _reduce(pa.table(columns), keys)


def _reduce(table: pa.Table, keys: list[str]) -> pa.Table:
    names = [name for name in table.column_names if name not in keys]
    reduced = table.group_by(keys).aggregate([(name, name[:3]) for name in names])
    return reduced.select([*keys, *(f"{name}_{name[:3]}" for name in names)]).rename_columns(
        [*keys, *names]
    )


def merge_sums(partials: list[pa.Table], keys: list[str]) -> pa.Table:
    """One table of sums, a row a group."""
    return _reduce(pa.concat_tables(partials, promote_options="default"), keys)


def finish_sums(sums: pa.Table, keys: list[str], means: list[str]) -> pa.Table:
    """Counts, rates and means of sums; the columns of :meth:`Ledger.aggregate`."""

    def mean_of(name: str) -> pa.ChunkedArray:
        known = sums[f"sum_{name}_known"].cast(pa.float64())
        return pc.divide(sums[f"sum_{name}"], pc.if_else(pc.equal(known, 0), None, known))

    rows = sums["sum_rows"]
    scored = sums["sum_score_known"]
    score_mean = mean_of("score")
    squares = pc.divide(sums["sum_score_squares"], scored.cast(pa.float64()))
    variance = pc.max_element_wise(
        pc.subtract(squares, pc.multiply(score_mean, score_mean)), 0.0, skip_nulls=False
    )
    columns = {key: sums[key] for key in keys}
    columns |= {
        "count": rows,
        "scored": scored,
        "accepted": sums["sum_accept"],
        "undecided": sums["sum_undecided"],
        "acceptance_rate": pc.divide(sums["sum_accept"].cast(pa.float64()), rows),
        "score_mean": score_mean,
        "score_std": pc.sqrt(variance),
        "score_min": sums["min_score"],
        "score_max": sums["max_score"],
    }
    columns |= {
        f"{name}_mean": mean_of(name) for name in means if f"sum_{name}" in sums.schema.names
    }
    columns |= {"step_first": sums["min_step"], "step_last": sums["max_step"]}
    return pa.table(columns).sort_by([(key, "ascending") for key in keys])
