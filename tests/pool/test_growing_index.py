"""The index of a pool that grows against one that is built anew from all entries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gal_d2.pool.growing_index import GrowingIndex
from gal_d2.pool.index import PoolIndex

# Few ids, so that the same ones come again, and hashes.
IDS = st.one_of(st.integers(0, 30), st.integers(0, (1 << 63) - 1))
CATEGORIES = (1, 5, 70000, 1 << 40)
Rows = list[tuple[int, int]]  # id and category of each row of a shard


def part_of(shards: list[Rows], first: int = 0) -> PoolIndex:
    """An index of some shards, whose numbers begin with ``first``."""
    entries = [
        (pool_id, category, first + number, row)
        for number, rows in enumerate(shards)
        for row, (pool_id, category) in enumerate(rows)
    ]
    return PoolIndex(*np.array(entries, np.int64).reshape(-1, 4).T)


def assert_same(grown: GrowingIndex, names: list[str], shards: list[Rows]) -> None:
    """``names`` and ``shards``: in the order in which they came."""
    ordered = sorted(zip(names, shards, strict=True))
    fresh = part_of([rows for _, rows in ordered])
    assert len(grown) == len(fresh)
    np.testing.assert_array_equal(grown.ids, fresh.ids)
    np.testing.assert_array_equal(grown.categories, fresh.categories)
    np.testing.assert_array_equal(grown.counts(), fresh.counts())
    for category in (*CATEGORIES, 3):
        np.testing.assert_array_equal(grown.ids_of(category), fresh.ids_of(category))
        assert not grown.ids_of(category).flags.writeable

    wanted = np.concatenate([fresh.ids[::-1], [-1, 31, 1 << 62]])
    positions, places = fresh.find_many(wanted), grown.find_many(wanted)
    np.testing.assert_array_equal(places >= 0, positions >= 0)
    positions, places = positions[positions >= 0], places[places >= 0]
    categories = fresh.categories[fresh.category_index]
    np.testing.assert_array_equal(grown.category_at(places), categories[positions])
    name_of = [names[number] for number in grown.shard_at(places).tolist()]
    assert name_of == [ordered[number][0] for number in fresh.shard[positions].tolist()]
    some = range(0, len(names), 2)
    shard_of = np.array([ordered[number][0] for number in fresh.shard.tolist()], dtype=str)
    of_some = fresh.ids[np.isin(shard_of, [names[number] for number in some])]
    np.testing.assert_array_equal(grown.ids_in(some), of_some)
    whole = grown.whole()
    np.testing.assert_array_equal(whole.ids, fresh.ids)
    for position, pool_id in enumerate(fresh.ids.tolist()):
        shard, row, category = grown.find(pool_id)
        assert names[shard] == ordered[fresh.shard[position]][0] == names[whole.shard[position]]
        assert row == fresh.row[position] == whole.row[position]
        assert category == categories[position]
    assert grown.find(-1) is None


@given(
    st.lists(
        st.lists(
            st.lists(st.tuples(IDS, st.sampled_from(CATEGORIES)), max_size=12),
            min_size=1,
            max_size=3,
        ),
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_equals_one_that_is_built_anew(growths: list[list[Rows]], random) -> None:
    """Whatever the order of the shards' names, and with ids that come again in other shards."""
    names = [f"{number:02d}" for number in range(18)]
    random.shuffle(names)
    index, seen = GrowingIndex(), []
    for shards in growths:
        first = len(seen)
        names[first : first + len(shards)] = sorted(names[first : first + len(shards)])
        seen += shards
        for category in CATEGORIES[:2]:  # some are asked for before it grows
            index.ids_of(category)
        index = index.grown(part_of(shards, first), names)
        assert_same(index, names[: len(seen)], seen)


@pytest.mark.parametrize("seed", range(3))
def test_many_small_growths(seed: int) -> None:
    """Parts stay few, and what an older index has handed out stays as it was."""
    rng = np.random.default_rng(seed)
    index, names, shards, before = GrowingIndex(), [], [], []
    for step, size in enumerate([3000, *rng.integers(1, 40, size=120).tolist()]):
        ids = rng.integers(1 << 63, size=size).tolist()
        if step % 10 == 9:  # a cut-out that is there already
            ids[0] = shards[int(rng.integers(step))][0][0]
        rows = list(zip(ids, rng.choice(CATEGORIES, size=size).tolist(), strict=True))
        names.append(f"{int(rng.integers(step + 1)):03d}-{step:03d}")
        shards.append(rows)
        before.append((index, index.ids_of(5), index.ids_of(5).tolist()))
        index = index.grown(part_of([rows], step), names)
        assert len(index._parts) <= 5
    assert_same(index, names, shards)
    assert all(ids.tolist() == listed for _, ids, listed in before)
    assert_same(before[60][0], names[:60], shards[:60])


def test_parts_are_shared_with_the_index_before() -> None:
    large = part_of([[(number, 1) for number in range(1000)]])
    index = GrowingIndex([large]).grown(part_of([[(5000, 5)]], 1), ["a", "b"])
    assert index._parts[0] is large
    assert np.shares_memory(index.ids_of(1), large.ids_of(1))


def test_empty() -> None:
    index = GrowingIndex()
    assert (len(index), index.find(3), len(index.whole())) == (0, None, 0)
    assert index.find_many(np.array([0, 3, -1])).tolist() == [-1, -1, -1]
    assert index.ids_of(1).dtype == index.ids.dtype == np.int64
    assert index.categories.tolist() == index.counts().tolist() == []
