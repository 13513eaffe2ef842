"""The index of a pool that grows: new cut-outs cost what they are, not what the pool is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gal_d2.pool.index import PoolIndex

# Of two parts that follow each other the first is at least so many times as long. So there are
# few parts to look into, and an entry is sorted anew a few times for each factor of this size.
_RATIO = 8


class Entry(NamedTuple):
    """Where a cut-out lies, and its category id as in the JSON."""

    shard: int
    row: int
    category_id: int


class GrowingIndex:
    """What :class:`PoolIndex` says of all entries, kept as a few of them that are merged at times.

    It does not change: :meth:`grown` gives another one, which shares the parts that stay. So
    forked loader workers share the large parts, too, whatever they take in.

    Places 0 .. n - 1 number the entries; unlike the positions of a :class:`PoolIndex` in no order.

    Args:
        parts: no id is in two of them.

    Attributes:
        categories: (k,) int64 ascending, the category ids that occur.
    """

    def __init__(self, parts: Sequence[PoolIndex] = ()) -> None:
        self._parts = tuple(part for part in parts if len(part))
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.categories, self._counts = _count_categories(self._parts)
        # Ids of categories that are in several parts, from when they are first asked for.
        self._merged: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def grown(self, new: PoolIndex, shards: Sequence[str]) -> GrowingIndex:
        """The index that has new entries as well.

        Args:
            new: of shards that have no entry here yet.
            shards: their names by number: an id that is in several is taken from the first of
                these names, whichever was there first.
        """
        known = self.find_many(new.ids)
        again = np.flatnonzero(known >= 0)
        if not again.size:
            return self._with(new)
        numbers = new.shard[again].tolist(), self.shard_at(known[again]).tolist()
        wins = np.array([shards[a] < shards[b] for a, b in zip(*numbers, strict=True)])
        old = self
        if wins.any():  # few pools have any
            old = GrowingIndex([_without(self.whole(), new.ids[again[wins]])])
        return old._with(_without(new, new.ids[again[~wins]]))

    def _with(self, new: PoolIndex) -> GrowingIndex:
        parts = [*self._parts, new]
        while len(parts) > 1 and len(parts[-1]) * _RATIO > len(parts[-2]):
            parts[-2:] = [_joined(parts[-2:])]
        grown = GrowingIndex(parts)
        # What is known of the categories that did not grow stays true.
        of_new = set(new.categories.tolist())
        grown._merged = {c: ids for c, ids in self._merged.items() if c not in of_new}
        return grown

    def whole(self) -> PoolIndex:
        """All entries as one part; made anew each time where there are several."""
        return self._parts[0] if len(self._parts) == 1 else _joined(self._parts)

    @cached_property
    def ids(self) -> np.ndarray:
        """(n,) int64 ascending, read-only."""
        return _merged_ids([part.ids for part in self._parts])

    def find(self, pool_id: int) -> Entry | None:
        """What is known of one id; None: it is not there."""
        for part in self._parts:
            position = part.find(pool_id)
            if position >= 0:
                category_id = part.categories[part.category_index[position]]
                return Entry(int(part.shard[position]), int(part.row[position]), int(category_id))
        return None

    def find_many(self, pool_ids: np.ndarray) -> np.ndarray:
        """(n,) int64 places of ``pool_ids`` (n,), -1 where an id is unknown."""
        pool_ids = np.asarray(pool_ids, np.int64)
        places = np.full(len(pool_ids), -1, np.int64)
        missing = np.arange(len(pool_ids))
        for part, start in zip(self._parts, self._starts.tolist(), strict=False):
            positions = part.find_many(pool_ids[missing])
            found = positions >= 0
            places[missing[found]] = positions[found] + start
            missing = missing[~found]
            if not missing.size:
                break
        return places

    def shard_at(self, places: np.ndarray) -> np.ndarray:
        """(n,) int32 numbers of the shards of entries (n,)."""
        shards = np.empty(len(places), np.int32)
        for part, here, positions in self._by_part(places):
            shards[here] = part.shard[positions]
        return shards

    def category_at(self, places: np.ndarray) -> np.ndarray:
        """(n,) int64 category ids of entries (n,)."""
        categories = np.empty(len(places), np.int64)
        for part, here, positions in self._by_part(places):
            categories[here] = part.categories[part.category_index[positions]]
        return categories

    def _by_part(self, places: np.ndarray) -> Iterator[tuple[PoolIndex, np.ndarray, np.ndarray]]:
        """Each part with which of ``places`` lie in it, and their positions there."""
        which = np.searchsorted(self._starts, places, side="right") - 1
        for number, part in enumerate(self._parts):
            here = np.flatnonzero(which == number)
            if here.size:
                yield part, here, places[here] - self._starts[number]

    def ids_of(self, category_id: int) -> np.ndarray:
        """(m,) int64 ids of one category, ascending, read-only; empty if it has none."""
        if category_id not in self._merged:
            ids = _merged_ids([part.ids_of(category_id) for part in self._parts])
            if len(self._parts) < 2:
                return ids  # which is a view already
            self._merged[category_id] = ids
        return self._merged[category_id]

    def ids_in(self, shards: Sequence[int]) -> np.ndarray:
        """(m,) int64 ids of the entries in some shards, by their numbers; ascending, read-only."""
        here = [part.ids[np.isin(part.shard, np.asarray(shards, np.int32))] for part in self._parts]
        return _merged_ids(here)

    def counts(self) -> np.ndarray:
        """(k,) int64 number of cut-outs of each of ``categories``."""
        return self._counts


def _count_categories(parts: Sequence[PoolIndex]) -> tuple[np.ndarray, np.ndarray]:
    """The category ids in any of the parts, ascending, and the number of entries of each."""
    categories = np.unique(np.concatenate([np.zeros(0, np.int64), *(p.categories for p in parts)]))
    counts = np.zeros(len(categories), np.int64)
    for part in parts:
        counts[np.searchsorted(categories, part.categories)] += part.counts()
    categories.flags.writeable = counts.flags.writeable = False
    return categories, counts


def _merged_ids(runs: Sequence[np.ndarray]) -> np.ndarray:
    """The ids of several ascending arrays, ascending, read-only."""
    runs = [run for run in runs if len(run)]
    if len(runs) == 1:
        return runs[0]
    merged = np.concatenate([np.zeros(0, np.int64), *runs])
    merged.sort(kind="stable")  # a merge sort, which is quick with what is nearly sorted
    merged.flags.writeable = False
    return merged


def _joined(parts: Sequence[PoolIndex]) -> PoolIndex:
    if not parts:
        return PoolIndex.empty()
    return PoolIndex(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.categories[part.category_index] for part in parts]),
        np.concatenate([part.shard for part in parts]),
        np.concatenate([part.row for part in parts]),
    )


def _without(part: PoolIndex, ids: np.ndarray) -> PoolIndex:
    """The part without some of its entries."""
    if not len(ids):
        return part
    kept = np.ones(len(part), bool)
    kept[part.find_many(ids)] = False
    categories = part.categories[part.category_index[kept]]
    return PoolIndex(part.ids[kept], categories, part.shard[kept], part.row[kept])
