"""The sums of :mod:`gal_d2.selection.ledger_sums` where there may be as many groups as cut-outs.

A cut-out has a few rows in each of many shards: sums of shards, put together and grouped again,
hardly become fewer, and a long training's would be grouped again and again. Here the sums of all
ids lie in one array, and each row of the ledger is touched once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gal_d2.selection.ledger_sums import partial_sums

ID = "pool_id"
# With an id these are the same in almost all of its rows.
_WITH_ID = {"gt_class", "category_id"}
_PIECE = 1 << 16  # rows that are added up at a time


def is_by_id(keys: Sequence[str]) -> bool:
    """Whether groups of these keys are added up here."""
    return keys[0] == ID and set(keys[1:]) <= _WITH_ID


class SumsById:
    """Adds up the rows of one group for each id: that of its first row's other keys.

    Args:
        keys: of the groups, the id first.
        flags: columns that are true or false.
        values: columns of numbers, "score" among them.
    """

    def __init__(self, keys: Sequence[str], flags: Sequence[str], values: Sequence[str]) -> None:
        self._keys, self._flags, self._values = list(keys), list(flags), list(values)
        names = ["rows", *flags, *values, *(f"{name}_known" for name in values), "score_squares"]
        self._place = {name: place for place, name in enumerate(names)}
        self._seen: dict[str, None] = {}  # values that any shard has
        self._ids = np.zeros(0, np.int64)  # ascending
        self._slots = np.zeros(0, np.int64)  # the row that each id has below
        self._others = np.zeros((0, len(keys) - 1), np.int64)
        self._sums = np.zeros((0, len(names)))
        self._least = np.zeros((0, 2))  # of step and score
        self._most = np.zeros((0, 2))

    def add(self, table: pa.Table) -> pa.Table | None:
        """Add the rows of a shard, N of them.

        Returns:
            The sums of those rows that are in another group than the first row of their id, as
            :func:`gal_d2.selection.ledger_sums.partial_sums`; None: there are none.
        """
        self._seen |= dict.fromkeys(name for name in self._values if name in table.column_names)
        ids = table[ID].to_numpy()
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        others = np.zeros((len(ids), len(self._keys) - 1), np.int64)
        for place, key in enumerate(self._keys[1:]):
            others[:, place] = table[key].to_numpy()[order]
        is_first = np.concatenate([[True], ids[1:] != ids[:-1]])[: len(ids)]
        slots = self._slots_of(ids[is_first], others[is_first])[np.cumsum(is_first) - 1]
        fits = (self._others[slots] == others).all(1)
        rest = None
        if not fits.all():
            rest = partial_sums(
                table.take(pa.array(order[~fits])), self._keys, 1, self._flags, self._values
            )
            order, slots = order[fits], slots[fits]
        names = ["step", *self._flags, *self._values]
        columns = {n: table[n].to_numpy() for n in names if n in table.column_names}
        # In pieces, whose temporary arrays are small enough to be used again.
        for start in range(0, len(order), _PIECE):
            piece = slice(start, start + _PIECE)
            self._add_sorted(columns, order[piece], slots[piece])
        return rest

    def _slots_of(self, ids: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(U,) slots of ids (U,), ascending and distinct; new ones get the next.

        ``others`` (U, K - 1) are the other keys of the new ones.
        """
        place = np.searchsorted(self._ids, ids)
        is_new = np.ones(len(ids), bool)
        inside = place < len(self._ids)
        is_new[inside] = self._ids[place[inside]] != ids[inside]
        start, count = len(self._ids), int(is_new.sum())
        self._reserve(start + count)
        self._others[start : start + count] = others[is_new]
        new_slots = np.arange(start, start + count)
        self._ids = np.insert(self._ids, place[is_new], ids[is_new])
        self._slots = np.insert(self._slots, place[is_new], new_slots)
        # Each new id before a place has moved it by one.
        return self._slots[place + np.cumsum(is_new) - is_new]

    def _reserve(self, count: int) -> None:
        """Make room for ``count`` ids, and some more, so that it is not copied for each shard."""
        if count <= len(self._sums):
            return
        more = max(count, len(self._sums) * 5 // 4) - len(self._sums)
        for name, empty in (("_others", 0), ("_sums", 0), ("_least", np.inf), ("_most", -np.inf)):
            array = getattr(self, name)
            grown = np.full((more, array.shape[1]), empty, array.dtype)
            setattr(self, name, np.concatenate([array, grown]))

    def _add_sorted(
        self, columns: dict[str, np.ndarray], order: np.ndarray, slots: np.ndarray
    ) -> None:
        """Add the rows ``order`` (M,) of columns (N,), in which NaN is what is not known.

        They are in the groups ``slots`` (M,), equal ones together; M is at least 1.
        """
        starts = np.flatnonzero(np.concatenate([[True], slots[1:] != slots[:-1]]))
        slots = slots[starts]
        rows = np.diff(starts, append=len(order))
        sums = np.zeros((len(slots), len(self._place)))
        sums[:, self._place["rows"]] = rows
        for name in self._flags:
            flag = columns[name][order]
            sums[:, self._place[name]] = np.add.reduceat(flag, starts, dtype=np.int64)
        step = columns["step"][order].astype(np.float64)
        score = np.full(len(order), np.nan)
        for name in self._values:
            if name not in columns:  # a head that this part did not score
                continue
            value = columns[name][order].astype(np.float64)
            is_known = ~np.isnan(value)
            if name == "score":
                score = value
                squares = np.where(is_known, value * value, 0.0)
                sums[:, self._place["score_squares"]] = np.add.reduceat(squares, starts)
            known = rows
            if not is_known.all():
                value = np.where(is_known, value, 0.0)
                known = np.add.reduceat(is_known, starts, dtype=np.int64)
            sums[:, self._place[name]] = np.add.reduceat(value, starts)
            sums[:, self._place[f"{name}_known"]] = known
        self._sums[slots] += sums
        # fmin and fmax pass over NaN.
        least = np.stack([np.fmin.reduceat(column, starts) for column in (step, score)], axis=1)
        most = np.stack([np.fmax.reduceat(column, starts) for column in (step, score)], axis=1)
        self._least[slots] = np.fmin(self._least[slots], least)
        self._most[slots] = np.fmax(self._most[slots], most)

    def sums(self) -> pa.Table:
        """A row for each id, ascending; the columns of ``partial_sums``."""
        slots = self._slots

        def whole(name: str) -> pa.Array:
            return pa.array(self._sums[slots, self._place[name]].astype(np.int64))

        columns = {ID: pa.array(self._ids)}
        for place, key in enumerate(self._keys[1:]):
            columns[key] = pa.array(self._others[slots, place])
        columns["sum_rows"] = whole("rows")
        columns["min_step"] = pa.array(self._least[slots, 0].astype(np.int64))
        columns["max_step"] = pa.array(self._most[slots, 0].astype(np.int64))
        columns |= {f"sum_{name}": whole(name) for name in self._flags}
        for name in self._seen:
            columns[f"sum_{name}"] = pa.array(self._sums[slots, self._place[name]])
            columns[f"sum_{name}_known"] = whole(f"{name}_known")
        unknown = self._sums[slots, self._place["score_known"]] == 0
        squares = self._sums[slots, self._place["score_squares"]]
        columns["sum_score_squares"] = pa.array(squares)
        columns["min_score"] = pa.array(self._least[slots, 1], mask=unknown)
        columns["max_score"] = pa.array(self._most[slots, 1], mask=unknown)
        return pa.table(columns)
