"""The plan: what is missing, in units that processes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.journal import Journal, Outcome
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.work import plan_work

PROMPTS = PromptBook([Category(3, "bun", "r", 1), Category(5, "boot", "r", 1)])


def shape(units) -> list[tuple[int, int, list[int]]]:
    return [
        (unit.number, unit.category_id, [request.index for request in unit.requests])
        for unit in units
    ]


WHOLE = [
    (0, 3, [0, 1, 2, 3]), (1, 5, [0, 1, 2, 3]),
    (2, 3, [4, 5, 6, 7]), (3, 5, [4, 5, 6, 7]),
    (4, 3, [8, 9]), (5, 5, [8, 9]),
]  # fmt: skip


def test_categories_take_turns() -> None:
    assert shape(plan_work(PROMPTS, [3, 5], 10, 4)) == WHOLE


def test_processes_share_units_whatever_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    journal.append([Outcome(request, None, "area")
                    for request in plan_work(PROMPTS, [3, 5], 10, 4)[2].requests])  # fmt: skip
    shares = [
        shape(plan_work(PROMPTS, [3, 5], 10, 4, journal=journal, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    assert shares == [[WHOLE[0], WHOLE[4]], [WHOLE[1], WHOLE[3], WHOLE[5]]]


def test_a_larger_target_draws_the_rest(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    for unit in plan_work(PROMPTS, [3, 5], 10, 4):
        journal.append([Outcome(request, 1) for request in unit.requests])
    assert plan_work(PROMPTS, [3, 5], 10, 4, journal=journal) == []
    assert plan_work(PROMPTS, [3, 5], 6, 4, journal=journal) == []
    more = plan_work(PROMPTS, [3, 5], 13, 4, journal=journal)
    assert shape(more) == [(4, 3, [10, 11]), (5, 5, [10, 11]), (6, 3, [12]), (7, 5, [12])]


def test_another_prompt_is_missing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    for unit in plan_work(PROMPTS, [3], 4, 4):
        journal.append([Outcome(request, 1) for request in unit.requests])
    other = PromptBook([Category(3, "bun", "r", 1)], ["a photo of a single {name}", "one {name}"])
    assert shape(plan_work(other, [3], 4, 4, journal=journal)) == [(0, 3, [1, 3])]


@pytest.mark.parametrize(("count", "size", "key"), [(0, 4, "PER_CATEGORY"), (4, 0, "UNIT_SIZE")])
def test_numbers_are_positive(count: int, size: int, key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is 0: give at least 1"):
        plan_work(PROMPTS, [3], count, size)
