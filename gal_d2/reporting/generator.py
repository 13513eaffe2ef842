"""What was drawn for a pool and what came of it, from the journal beside it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gal_d2.generation.journal import FOLDER

logger = logging.getLogger(__name__)

KEPT = "kept"


@dataclass
class Drawn:
    """Images of a category or template.

    Attributes:
        outcomes: number of images by what became of them: :data:`KEPT`, or why one was dropped.
        pool_ids: of the kept ones.
    """

    outcomes: Counter = field(default_factory=Counter)
    pool_ids: list[int] = field(default_factory=list)

    @property
    def drawn(self) -> int:
        return self.outcomes.total()

    def add(self, reason: str, pool_id: int | None) -> None:
        self.outcomes[reason or KEPT] += 1
        if not reason and pool_id is not None:
            self.pool_ids.append(pool_id)


@dataclass
class Generation:
    """All journals of a pool together.

    Attributes:
        by_category: by category id.
        by_template: by prompt template.
        names: of the categories, as the journal keeps them.
    """

    by_category: dict[int, Drawn] = field(default_factory=dict)
    by_template: dict[str, Drawn] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    @property
    def outcomes(self) -> Counter:
        return sum((part.outcomes for part in self.by_category.values()), Counter())


def read_journal(pool: Path) -> Generation | None:
    """Add up the journal of a pool; None where nothing was drawn for it.

    Lines that a killed process left incomplete are skipped.
    """
    found = Generation()
    for path in sorted((pool / FOLDER).glob("*.jsonl")):
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                try:
                    _add_line(found, json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    logger.warning("%s, line %d is incomplete and skipped.", path, number)
    return found if found.by_category else None


def _add_line(found: Generation, content: Mapping) -> None:
    entries = [
        (int(e["category_id"]), str(e["template"]), str(e["reason"]), e["pool_id"])
        for e in content["outcomes"]
    ]
    found.names |= {int(i): str(name) for i, name in content.get("categories", {}).items()}
    for category_id, template, reason, pool_id in entries:
        found.by_category.setdefault(category_id, Drawn()).add(reason, pool_id)
        found.by_template.setdefault(template, Drawn()).add(reason, pool_id)
