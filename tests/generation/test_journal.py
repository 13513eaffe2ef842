"""What was drawn is remembered, whether it was kept or dropped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gal_d2.errors import UserError
from gal_d2.generation.journal import DropStatistics, Journal, Outcome, recipe_of


def test_outcomes_are_recalled_by_another_process(tmp_path: Path, request_for) -> None:
    kept, dropped = request_for(1, 0), request_for(1, 1)
    Journal(tmp_path, "r").append([Outcome(kept, 42, scores={"area": 0.5}),
                                   Outcome(dropped, None, "area")])  # fmt: skip
    journal = Journal(tmp_path, "r")
    assert len(journal) == 2
    assert journal.find(kept) == Outcome(kept, 42)
    assert journal.find(dropped) == Outcome(dropped, None, "area")
    assert journal.find(kept).recalled
    assert journal.find(request_for(1, 2)) is None
    assert journal.find(request_for(2, 0)) is None
    assert (journal.next_index(1), journal.next_index(2)) == (2, 0)


def test_another_prompt_or_seed_is_another_request(tmp_path: Path, request_for) -> None:
    request = request_for(1, 0)
    journal = Journal(tmp_path, "r")
    journal.append([Outcome(request, 42)])
    assert journal.find(request) is not None
    assert journal.find(dataclasses.replace(request, prompt="a bun")) is None
    assert journal.find(dataclasses.replace(request, seed=1)) is None


def test_other_recipes_do_not_count(tmp_path: Path, request_for) -> None:
    Journal(tmp_path, "r").append([Outcome(request_for(1, 0), 42), Outcome(request_for(1, 1), 43)])
    journal = Journal(tmp_path, "s")
    assert (len(journal), journal.others) == (0, 2)
    journal.append([Outcome(request_for(1, 0), None, "area")])
    assert Journal(tmp_path, "r").find(request_for(1, 0)).pool_id == 42
    assert Journal(tmp_path, "s").find(request_for(1, 0)).reason == "area"


def test_several_processes_write_files_of_their_own(tmp_path: Path, request_for) -> None:
    for index in range(3):
        Journal(tmp_path, "r").append([Outcome(request_for(1, index), index)])
    assert len(list((tmp_path / "journal").iterdir())) == 3
    assert Journal(tmp_path, "r").next_index(1) == 3


def test_torn_line_is_skipped(tmp_path: Path, request_for, caplog) -> None:
    journal = Journal(tmp_path, "r")
    journal.append([Outcome(request_for(1, 0), 42)])
    journal.append([Outcome(request_for(1, 1), 43)])
    (path,) = (tmp_path / "journal").iterdir()
    path.write_text(path.read_text()[:-30])
    again = Journal(tmp_path, "r")
    assert (again.find(request_for(1, 0)).pool_id, again.find(request_for(1, 1))) == (42, None)
    assert "line 2 is damaged" in caplog.text


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    Journal(tmp_path, "r").append([])
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_is_named(tmp_path: Path, request_for) -> None:
    (tmp_path / "journal").write_text("a file")
    with pytest.raises(UserError, match="journal.*cannot be written"):
        Journal(tmp_path, "r").append([Outcome(request_for(1, 0), 42)])


def test_recipe_names_settings() -> None:
    assert recipe_of({"a": 1, "b": [1.0, "x"]}) == recipe_of({"b": [1.0, "x"], "a": 1})
    assert recipe_of({"a": 1}) != recipe_of({"a": 2})


def test_statistics_by_category_and_reason(request_for) -> None:
    statistics = DropStatistics()
    statistics.add(
        [
            Outcome(request_for(1, 0), 42),
            Outcome(request_for(1, 1), None, "area"),
            Outcome(request_for(2, 0), None, "area"),
            Outcome(request_for(2, 1), None, "vlm"),
            Outcome(request_for(2, 2), 5, recalled=True),
        ]
    )
    assert statistics.drawn == {1: 2, 2: 2}
    assert statistics.kept == {1: 1}
    assert statistics.dropped == {(1, "area"): 1, (2, "area"): 1, (2, "vlm"): 1}
    assert statistics.by_reason() == {"area": 2, "vlm": 1}
    assert [line.split() for line in statistics.describe({1: "bun", 2: "boot"}).splitlines()] == [
        ["id", "category", "drawn", "kept", "area", "vlm"],
        ["1", "bun", "2", "1", "1", "0"],
        ["2", "boot", "2", "0", "1", "1"],
        ["all", "4", "1", "2", "1"],
    ]


def test_category_ids_keep_their_names(tmp_path: Path, request_for) -> None:
    Journal(tmp_path, "r", {1: "bun", 2: "cat"}).append([Outcome(request_for(1, 0), 42)])
    assert len(Journal(tmp_path, "r", {1: "bun", 2: "dog"})) == 1  # of which it does not speak
    with pytest.raises(UserError, match=r"the journal .*: choose another folder"):
        Journal(tmp_path, "r", {0: "bun", 1: "cat"})
    assert len(Journal(tmp_path, "s", {0: "bun", 1: "cat"})) == 0  # other recipes do not count


def test_a_journal_without_names_is_read(tmp_path: Path, request_for) -> None:
    Journal(tmp_path, "r").append([Outcome(request_for(1, 0), 42)])
    assert Journal(tmp_path, "r", {1: "bun"}).find(request_for(1, 0)).pool_id == 42
