"""Ids that meant other categories: taken by name where that is clear, else one sentence."""

from __future__ import annotations

import logging
import pickle

import numpy as np
import pyarrow as pa
import pytest

from gal_d2.datasets.category_identity import (
    Match,
    Renumbering,
    from_text,
    match,
    names_in,
    names_in_state,
    names_state,
    require_same,
    require_same_classes,
    to_text,
    with_names,
)
from gal_d2.errors import UserError

FROM_0 = {0: "cup", 1: "bun", 2: "cat"}
FROM_1 = {1: "cup", 2: "bun", 3: "cat"}


@pytest.mark.parametrize(
    ("kept", "now", "expected"),
    [
        (FROM_0, FROM_0, Match()),
        (FROM_0, FROM_1, Match({0: 1, 1: 2, 2: 3})),
        (FROM_1, FROM_0, Match({1: 0, 2: 1, 3: 2})),
        # Case, spaces and Unicode form are no difference.
        ({4: "cafe\u0301_table"}, {4: "Café table"}, Match()),
        ({4: "cafe\u0301_table"}, {9: "Café table"}, Match({4: 9})),
        # More categories now, and one that is not there any more and whose id is free.
        ({1: "cup", 9: "zebra"}, {1: "cup", 2: "bun"}, Match()),
        # The numbering changed and 'cup' is gone: its id is another's now.
        (FROM_0, {0: "bun", 1: "cat"}, Match({1: 0, 2: 1}, frozenset({0}))),
        # An exact name goes before one in another case.
        ({1: "cup"}, {5: "Cup", 6: "cup"}, Match({1: 6})),
    ],
)
def test_what_is_clear(kept, now, expected):
    assert match(kept, now) == expected


@pytest.mark.parametrize(
    ("kept", "now", "doubtful"),
    [
        ({1: "cup", 2: "tv"}, {1: "cup", 2: "television"}, {2}),  # renamed, or another?
        ({1: "cup", 2: "bun"}, {1: "dog", 2: "cow"}, {1, 2}),  # of another data set
        ({1: "cup"}, {5: "cup", 6: "cup"}, {1}),  # which one?
        ({1: "cup", 2: "cup"}, {5: "cup"}, {1, 2}),
    ],
)
def test_what_nobody_can_tell(kept, now, doubtful):
    found = match(kept, now)
    assert set(found.doubtful) == doubtful and not found.moved and not found.gone


def test_ids_are_renumbered_and_it_is_said_once(caplog):
    as_now = Renumbering({0: "bun", 1: "cat"}, "the file f")
    for _ in range(2):
        ids, is_there = as_now(np.array([2, 0, 1, 1]), FROM_0)
        assert ids[is_there].tolist() == [1, 0, 0] and is_there.tolist() == [
            True,
            False,
            True,
            True,
        ]
    moved, gone = (record.message for record in caplog.records)
    assert moved.startswith("the file f: ") and "1 was 'bun', which is 0" in moved
    assert "left out: 0 was 'cup' and is 'bun'" in gone


def test_doubt_matters_only_for_ids_that_occur():
    kept, now = {1: "cup", 2: "tv"}, {1: "cup", 2: "television"}
    as_now = Renumbering(now, "the file f")
    assert as_now(np.array([1, 1]), kept)[0].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"the file f: category id 2 was 'tv'.*is 'television'"):
        as_now(np.array([1, 2]), kept)


def test_without_names_ids_stay_with_a_warning(caplog):
    as_now = Renumbering(FROM_1, "the file f")
    assert as_now(np.array([2, 7]), None)[0].tolist() == [2, 7]
    assert as_now(np.array([2]), None)[0].tolist() == [2]
    assert [r.message for r in caplog.records if "no category names" in r.message] == [
        caplog.records[0].message
    ]


def test_nobody_asked(caplog):
    ids, is_there = Renumbering(None, "f")(np.array([1, 0]), FROM_0)
    assert ids.tolist() == [1, 0] and is_there.all() and not caplog.records


def test_a_copy_in_another_process_says_nothing_again(caplog):
    as_now = Renumbering(FROM_1, "the file f")
    as_now(np.array([0]), FROM_0)
    count = len(caplog.records)
    ids, _ = pickle.loads(pickle.dumps(as_now))(np.array([0]), FROM_0)
    assert ids.tolist() == [1] and len(caplog.records) == count


@pytest.mark.parametrize("now", [FROM_1, {**FROM_1, 9: "new"}])
def test_the_same_may_be_added(now):
    require_same(FROM_1, now, "the pool", "go")


@pytest.mark.parametrize(
    ("kept", "now", "sentence"),
    [
        (FROM_0, FROM_1, r"the pool .* id 0 is 'cup'.*'cup' has the id 1: go\."),
        (FROM_1, {1: "bun"}, r"id 1 is 'cup'; in the annotations of now it is 'bun': go\."),
    ],
)
def test_others_may_not(kept, now, sentence):
    with pytest.raises(UserError, match=sentence):
        require_same(kept, now, "the pool", "go")
    require_same(kept, now, "the pool", "go", used=[77])  # of which neither speaks


def test_adding_to_a_file_without_names_warns(caplog):
    with caplog.at_level(logging.WARNING):
        require_same(None, FROM_0, "the pool", "go")
        require_same_classes(None, ["cup"], "the file", "go")
    assert [r.message.split(",")[0] for r in caplog.records] == [
        "the pool has no category names",
        "the file has no class names",
    ]


def test_classes_are_compared_in_order():
    require_same_classes(["cup", "bun"], ("cup", "bun"), "the file", "go")
    with pytest.raises(UserError, match=r"class 0 is 'cup' there and 'bun'.*: go\."):
        require_same_classes(["cup", "bun"], ["bun", "cup"], "the file", "go")
    with pytest.raises(UserError, match=r"it has 1 classes, the annotations 2"):
        require_same_classes(["cup"], ["cup", "bun"], "the file", "go")


def test_names_survive_a_file():
    names = {3: "blåbær", 0: 'a "b"'}
    assert from_text(to_text(names)) == names and list(from_text(to_text(names))) == [0, 3]
    schema = with_names(pa.schema([("x", pa.int64())], metadata={"other": "1"}), names)
    assert names_in(schema) == names and schema.metadata[b"other"] == b"1"
    arrays = {f"categories.{key}": value for key, value in names_state(names).items()}
    assert names_in_state(arrays, "categories") == names


@pytest.mark.parametrize("text", [None, "", "[1]", '{"a": "b"}', b"\xff"])
def test_what_is_no_list_of_names_is_none(text):
    assert from_text(text) is None
    assert names_in(pa.schema([])) is None and names_in_state({}, "categories") is None
