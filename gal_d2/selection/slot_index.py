"""Rows by key, in the order in which the keys were first seen."""

from __future__ import annotations

import numpy as np

_MERGE_AT = (
    65536  # keys outside the sorted index; bounds what a merge of the index costs per new key
)


class SlotIndex:
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
    def of(cls, keys: np.ndarray) -> SlotIndex:
        """The index in which ``keys[i]`` has slot i."""
        index = cls()
        index._set(keys, np.arange(len(keys)))
        return index
