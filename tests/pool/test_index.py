"""The index of a pool against a plain dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gal_d2.pool.index import PoolIndex

# Hashes in practice; here also ids that crowd into one bucket.
IDS = st.one_of(
    st.integers(0, (1 << 63) - 1), st.integers(0, 40), st.integers((1 << 62), (1 << 62) + 9)
)


def build(rows: list[tuple[int, int, int]]) -> PoolIndex:
    """``rows``: (id, category, shard); an entry's row is its place in the list."""
    ids, categories, shards = np.array(rows, np.int64).reshape(-1, 3).T
    return PoolIndex(ids, categories, shards, np.arange(len(rows)))


@given(
    st.lists(
        st.tuples(IDS, st.sampled_from([1, 5, 70000, 1 << 40]), st.integers(0, 3)), max_size=60
    ),
    st.lists(st.one_of(IDS, st.just(-1)), max_size=20),
)
@settings(max_examples=200, deadline=None)
def test_agrees_with_a_dictionary(rows: list[tuple[int, int, int]], others: list[int]) -> None:
    index = build(rows)
    truth: dict[int, tuple[int, int, int]] = {}
    for row, (pool_id, category, shard) in sorted(enumerate(rows), key=lambda r: (r[1][2], r[0])):
        truth.setdefault(pool_id, (category, shard, row))

    assert index.ids.tolist() == sorted(truth)
    assert len(index) == len(truth)
    wanted = [*truth, *others]
    positions = index.find_many(np.array(wanted, np.int64))
    assert positions.tolist() == [index.find(i) for i in wanted]
    for pool_id, position in zip(wanted, positions.tolist(), strict=True):
        if pool_id not in truth:
            assert position == -1
            continue
        found = (
            index.categories[index.category_index[position]],
            index.shard[position],
            index.row[position],
        )
        assert found == truth[pool_id]

    categories = sorted({category for category, _, _ in truth.values()})
    assert index.categories.tolist() == categories
    for category in categories:
        members = sorted(i for i, (c, _, _) in truth.items() if c == category)
        assert index.ids_of(category).tolist() == members
    assert index.counts().tolist() == [len(index.ids_of(c)) for c in categories]
    assert index.ids_of(3).tolist() == []


def test_lowest_shard_wins_and_in_it_the_first_row() -> None:
    index = build([(9, 1, 2), (9, 1, 1), (9, 1, 1), (4, 1, 3), (9, 1, 3)])
    assert index.ids.tolist() == [4, 9]
    assert index.shard.tolist() == [3, 1]
    assert index.row.tolist() == [3, 1]


def test_ids_outside_63_bits_are_unknown() -> None:
    index = build([(0, 1, 0), ((1 << 63) - 1, 1, 0)])
    assert [index.find(i) for i in (-1, 1 << 63, 1 << 70, 0, (1 << 63) - 1)] == [-1, -1, -1, 0, 1]


def test_empty() -> None:
    index = PoolIndex.empty()
    assert len(index) == 0
    assert index.find(3) == -1
    assert index.find_many(np.array([0, 3, -1])).tolist() == [-1, -1, -1]
    assert index.ids_of(1).dtype == np.int64
    assert index.categories.tolist() == []


def test_what_it_hands_out_cannot_be_written_to() -> None:
    index = build([(3, 1, 0), (4, 1, 0)])
    assert not index.ids.flags.writeable
    assert not index.ids_of(1).flags.writeable
