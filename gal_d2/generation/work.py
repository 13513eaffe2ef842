"""What is to be drawn to fill a pool, in units that processes can share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gal_d2.errors import UserError
from gal_d2.generation.generator import GenerationRequest
from gal_d2.generation.journal import Journal
from gal_d2.generation.prompts import PromptBook


@dataclass(frozen=True)
class WorkUnit:
    """Requests of one category that are drawn, filtered and remembered together.

    Attributes:
        number: position in the plan of the whole pool, whoever does it.
        requests: what is missing of it.
    """

    number: int
    requests: tuple[GenerationRequest, ...]

    @property
    def category_id(self) -> int:
        """The category of all its requests."""
        return self.requests[0].category_id


def plan_work(
    prompts: PromptBook,
    category_ids: Sequence[int],
    per_category: int,
    unit_size: int,
    *,
    journal: Journal | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> list[WorkUnit]:
    """The units that this process has to do, in order.

    The categories take turns, so that a pool that is half filled is so evenly. A unit belongs to a
    process by its number, not by what is missing: processes that start at different times, while
    others write already, agree on whose it is.

    Args:
        prompts: makes the requests.
        category_ids: of the categories to draw.
        per_category: images of each: 0 .. per_category - 1 by index.
        unit_size: images of a unit.
        journal: what was met before; all is missing without it.
        rank: of this process ...
        world_size: ... among so many.

    Raises:
        UserError: a number is not positive.
    """
    for key, value in (("PER_CATEGORY", per_category), ("UNIT_SIZE", unit_size)):
        if value < 1:
            raise UserError(f"GAL.GENERATOR.{key} is {value}: give at least 1.")
    units = []
    starts = range(0, per_category, unit_size)
    places = ((start, category_id) for start in starts for category_id in category_ids)
    for number, (start, category_id) in enumerate(places):
        if number % world_size != rank:
            continue
        indices = range(start, min(start + unit_size, per_category))
        requests = [prompts.request(category_id, index) for index in indices]
        missing = tuple(
            request for request in requests if journal is None or journal.find(request) is None
        )
        if missing:
            units.append(WorkUnit(number, missing))
    return units
