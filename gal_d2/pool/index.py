"""The index of an instance pool: where each cut-out lies, and which ids each category has."""

from __future__ import annotations

import numpy as np

_ID_BITS = 63
# Category ids below this are looked up in a table.
_TABLE_SIZE = 1 << 20


class PoolIndex:
    """Finds cut-outs by id and by category in constant time; 28 bytes an entry and a table.

    Positions 0 .. n - 1 number the cut-outs in the order of their ids. Ids are hashes, so the top
    bits of one say almost exactly where it stands: a table over them leaves about one candidate.

    Args:
        ids: (n,) int64 cut-out ids, 0 .. 2**63 - 1. Of equal ids the one in the lowest shard, and
            in it the first, is kept.
        category_ids: (n,) category ids as in the JSON.
        shard: (n,) number of the shard that holds the entry.
        row: (n,) the entry's row in that shard.

    Attributes:
        ids: (m,) int64 ascending.
        categories: (k,) int64 ascending, the category ids that occur.
        category_index: (m,) int32, into ``categories``.
        shard, row: (m,) int32.
    """

    def __init__(
        self, ids: np.ndarray, category_ids: np.ndarray, shard: np.ndarray, row: np.ndarray
    ) -> None:
        ids = np.asarray(ids, np.int64)
        order = _unique_order(ids, np.asarray(shard), np.asarray(row))
        self.ids = _frozen(ids[order])
        self.shard = _frozen(np.asarray(shard, np.int32)[order])
        self.row = _frozen(np.asarray(row, np.int32)[order])

        categories, category_index = _categories(np.asarray(category_ids, np.int64)[order])
        self.categories, self.category_index = _frozen(categories), _frozen(category_index)
        counts = np.bincount(self.category_index, minlength=len(self.categories))
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        by_category = np.argsort(_narrow(self.category_index), kind="stable")
        self._ids_by_category = _frozen(self.ids[by_category])

        bits = max(1, len(self.ids).bit_length() - 1)
        self._shift = _ID_BITS - bits
        occupancy = np.bincount(self.ids >> self._shift, minlength=1 << bits)
        self._table = np.concatenate([[0], np.cumsum(occupancy)]).astype(np.int32)
        self._search_steps = int(occupancy.max()).bit_length()

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls) -> PoolIndex:
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, nothing, nothing)

    def find(self, pool_id: int) -> int:
        """The position of one id, or -1."""
        bucket = pool_id >> self._shift
        if not 0 <= bucket < len(self._table) - 1:
            return -1
        start, stop = int(self._table[bucket]), int(self._table[bucket + 1])
        position = start + int(np.searchsorted(self.ids[start:stop], pool_id))
        return position if position < stop and int(self.ids[position]) == pool_id else -1

    def find_many(self, pool_ids: np.ndarray) -> np.ndarray:
        """(n,) int64 positions of ``pool_ids`` (n,), -1 where an id is unknown."""
        wanted = np.asarray(pool_ids, np.int64)
        valid = wanted >= 0
        bucket = np.where(valid, wanted, 0) >> self._shift
        low = self._table[bucket].astype(np.int64)
        end = self._table[bucket + 1].astype(np.int64)
        high = end.copy()
        # A binary search in every bucket at once; buckets hold a handful of ids.
        for _ in range(self._search_steps):
            active = low < high
            middle = (low + high) // 2
            below = active & (self.ids[np.where(active, middle, 0)] < wanted)
            low = np.where(below, middle + 1, low)
            high = np.where(active & ~below, middle, high)
        inside = valid & (low < end)
        found = inside & (self.ids[np.where(inside, low, 0)] == wanted) if len(self) else inside
        return np.where(found, low, -1)

    def ids_of(self, category_id: int) -> np.ndarray:
        """(m,) int64 ids of one category, ascending; empty if it has none. A read-only view."""
        k = int(np.searchsorted(self.categories, category_id))
        if k == len(self.categories) or self.categories[k] != category_id:
            return self._ids_by_category[:0]
        return self._ids_by_category[self._offsets[k] : self._offsets[k + 1]]

    def counts(self) -> np.ndarray:
        """(k,) int64 number of cut-outs of each of ``categories``."""
        return np.diff(self._offsets)


def _unique_order(ids: np.ndarray, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The order that sorts ``ids`` and leaves out all but the first (shard, row) of equal ones."""
    # A pool that grows has a few new ids behind its sorted ones: a merge sort is done at once.
    descents = np.count_nonzero(ids[1:] < ids[:-1])
    order = np.argsort(ids, kind="stable" if descents < len(ids) // 64 else None)
    ordered = ids[order]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not repeated.size:
        return order
    # Sorting by three keys takes several times as long, so only the repeated ids are put in order.
    tied = np.union1d(repeated, repeated + 1)
    among = order[tied]
    order[tied] = among[np.lexsort((row[among], shard[among], ids[among]))]
    return np.delete(order, repeated + 1)


def _categories(category_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that occur, (k,) int64 ascending, and (n,) int32, the place of each entry's in it."""
    if not category_ids.size or category_ids.min() < 0 or category_ids.max() >= _TABLE_SIZE:
        categories, index = np.unique(category_ids, return_inverse=True)
        return categories, index.reshape(-1).astype(np.int32)
    # Counting takes a tenth of the time of sorting millions.
    categories = np.flatnonzero(np.bincount(category_ids))
    place = np.zeros(int(category_ids.max()) + 1, np.int32)
    place[categories] = np.arange(len(categories))
    return categories.astype(np.int64), place[category_ids]


def _narrow(values: np.ndarray) -> np.ndarray:
    """Small non-negative numbers as uint16 where they fit: NumPy sorts these in linear time."""
    return values.astype(np.uint16) if values.size and values.max() < 1 << 16 else values


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
