"""What became of each request, in append-only files beside a pool.

A pool tells what was kept. That an image was drawn and dropped it does not, and on resuming it
would be drawn again. The journal is a folder of JSON-lines files, one for each process that wrote;
readers take all of them together.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gal_d2.datasets.category_identity import require_same
from gal_d2.errors import UserError
from gal_d2.generation.generator import GenerationRequest

logger = logging.getLogger(__name__)

_CHECKSUM = '{"checksum": "%08x", '
_START = len(_CHECKSUM % 0)
# In the pool's folder, whose readers look at *.arrow only.
FOLDER = "journal"


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        request: which one.
        pool_id: the cut-out's id; None where it was dropped.
        reason: why it was dropped: :data:`gal_d2.generation.generator.FLAGGED` and others, or the
            name of a filter; "" where it was kept.
        scores: what segmenters and filters said, by name.
        recalled: it was in the journal, and nothing was drawn.
    """

    request: GenerationRequest
    pool_id: int | None
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict, compare=False)
    recalled: bool = field(default=False, compare=False)


class Journal:
    """Remembers outcomes under a *recipe*, and tells which requests are still to be met.

    Args:
        root: the pool's folder.
        recipe: names the settings that decide what is drawn and kept. Entries of another recipe
            are not taken into account.
        names: of the categories by id, kept with the entries.

    Attributes:
        others: number of entries of other recipes that were found.

    Raises:
        UserError: a file of the journal cannot be read, or its category ids mean others.
    """

    def __init__(
        self, root: str | os.PathLike, recipe: str, names: Mapping[int, str] | None = None
    ) -> None:
        self.folder = Path(root).absolute() / FOLDER
        self.recipe = recipe
        self.names = names
        self.others = 0
        self._known: dict[tuple[int, int], tuple[str, int | None, str]] = {}
        self._next: Counter = Counter()
        self._path: Path | None = None
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else ():
            self._read(path)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, request: GenerationRequest) -> Outcome | None:
        """What became of a request; None if it was not met yet, or with another prompt or seed."""
        entry = self._known.get((request.category_id, request.index))
        if entry is None or entry[0] != _fingerprint(request.prompt, request.seed):
            return None
        return Outcome(request, entry[1], entry[2], recalled=True)

    def next_index(self, category_id: int) -> int:
        """The smallest index above all that the journal has of a category."""
        return self._next[category_id]

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes to disk, all of them or none.

        Call it when what they speak of is in the pool for good.

        Raises:
            UserError: the disk is full or gone.
        """
        if not outcomes:
            return
        ids = sorted({outcome.request.category_id for outcome in outcomes})
        line = json.dumps(
            {
                "recipe": self.recipe,
                "categories": {i: self.names[i] for i in ids if i in (self.names or ())},
                "outcomes": [_to_json(outcome) for outcome in outcomes],
            }
        )
        try:
            if self._path is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                stem = f"{time.time_ns():019d}-{os.getpid()}-{secrets.token_hex(4)}"
                self._path = self.folder / f"{stem}.jsonl"
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_with_checksum(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._path = None  # what comes next is not to stand behind half a line
            raise UserError(
                f"the journal of the instance pool, {self.folder}, cannot be written to "
                f"({error.strerror or error}); make room there and run again"
            ) from error
        for outcome in outcomes:
            self._remember(_to_json(outcome))

    def _read(self, path: Path) -> None:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, start=1):
                    self._read_line(path, number, line)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); mend it") from error

    def _read_line(self, path: Path, number: int, line: str) -> None:
        try:
            content = json.loads(_without_checksum(line))
            if content["recipe"] != self.recipe:
                self.others += len(content["outcomes"])
                return
            kept = {int(i): name for i, name in content.get("categories", {}).items()}
            for entry in content["outcomes"]:
                self._remember(entry)
        except (ValueError, KeyError, TypeError) as error:
            # The last line of a killed process, or a damaged one: what it spoke of is drawn again.
            logger.warning("%s, line %d is damaged and skipped (%r)", path, number, error)
            return
        # Entries of earlier releases keep no names; their prompts are compared in any case.
        require_same(
            *(kept, self.names, f"the journal {path}"),
            "choose another folder for what is drawn for these annotations",
        )

    def _remember(self, entry: dict) -> None:
        key = int(entry["category_id"]), int(entry["index"])
        fingerprint = _fingerprint(entry["prompt"], int(entry["seed"]))
        # One string object for each reason: there may be a million entries.
        reason = _REASONS.setdefault(entry["reason"], entry["reason"])
        self._known[key] = fingerprint, entry["pool_id"], reason
        self._next[key[0]] = max(self._next[key[0]], key[1] + 1)


_REASONS: dict[str, str] = {}


def recipe_of(settings: object) -> str:
    """A short name of settings (anything that JSON can hold): equal settings, equal name."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _with_checksum(line: str) -> str:
    """A JSON object's text with the checksum of that text as its first field."""
    return _CHECKSUM % zlib.crc32(line.encode()) + line[1:]


def _without_checksum(line: str) -> str:
    """The text that the checksum is of; as it is where there is none, as in earlier releases.

    Raises:
        ValueError: it is another text.
    """
    line = line.removesuffix("\n")
    if not line.startswith(_CHECKSUM[:12]):
        return line
    text = "{" + line[_START:]
    if line[:_START] != _CHECKSUM % zlib.crc32(text.encode()):
        raise ValueError("its checksum does not fit")
    return text


def _fingerprint(prompt: str, seed: int) -> str:
    return hashlib.blake2b(f"{seed} {prompt}".encode(), digest_size=8).hexdigest()


def _to_json(outcome: Outcome) -> dict:
    request = outcome.request
    return {
        "category_id": request.category_id,
        "index": request.index,
        "template": request.template,
        "prompt": request.prompt,
        "seed": request.seed,
        "pool_id": outcome.pool_id,
        "reason": outcome.reason,
        "scores": {name: round(score, 6) for name, score in outcome.scores.items()},
    }


class DropStatistics:
    """How many images were drawn, kept and dropped for which reason, by category.

    Attributes:
        drawn, kept: by category id.
        dropped: by (category id, reason).
    """

    def __init__(self) -> None:
        self.drawn: Counter = Counter()
        self.kept: Counter = Counter()
        self.dropped: Counter = Counter()

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count outcomes; those that were recalled are none of this run."""
        for outcome in outcomes:
            if outcome.recalled:
                continue
            category_id = outcome.request.category_id
            self.drawn[category_id] += 1
            if outcome.reason:
                self.dropped[category_id, outcome.reason] += 1
            else:
                self.kept[category_id] += 1

    def by_reason(self) -> Counter:
        """Number of dropped images by reason, over all categories."""
        total: Counter = Counter()
        for (_, reason), count in self.dropped.items():
            total[reason] += count
        return total

    def describe(self, names: dict[int, str]) -> str:
        """A line for each category, and one for all.

        Args:
            names: category names by id.
        """
        reasons = sorted(self.by_reason())
        rows = [["id", "category", "drawn", "kept", *reasons]]
        for category_id in sorted(self.drawn):
            counts = [self.dropped[category_id, reason] for reason in reasons]
            rows.append(
                [
                    str(category_id),
                    names.get(category_id, ""),
                    *(
                        f"{count:,}"
                        for count in (self.drawn[category_id], self.kept[category_id], *counts)
                    ),
                ]
            )
        total = self.by_reason()
        counts = (self.drawn.total(), self.kept.total(), *(total[reason] for reason in reasons))
        rows.append(["", "all", *(f"{count:,}" for count in counts)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column == 1 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
