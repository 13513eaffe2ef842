"""What people said of a pool's cut-outs: one append-only file in the pool's folder.

``verdicts.jsonl`` has a line, a JSON object, for each verdict, oldest first. A line is written in
one go under a lock and forced to disk, so that several reviewers may write at the same time; a
reader leaves out a last line that has no end yet. Nothing is ever changed: who takes a verdict back
adds a line that says so, and of one reviewer's lines about a cut-out the last one counts.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from gal_d2.errors import UserError
from gal_d2.files.atomic_file import sync
from gal_d2.pool.instance_pool import InstancePool

logger = logging.getLogger(__name__)

FILE_NAME = "verdicts.jsonl"
GOOD, BAD, SKIP, UNDO = "good", "bad", "skip", "undo"
WORDS = (GOOD, BAD, SKIP, UNDO)
_SIGNS = {GOOD: 1, BAD: -1}


@dataclass(frozen=True)
class Verdict:
    """One line of the file.

    Attributes:
        pool_id: of the cut-out.
        category_id: as in the annotations at that time.
        category: its name, "" where the pool keeps none; the verdict is about the cut-out as one of
            these.
        verdict: one of :data:`WORDS`. "skip" says nothing of the cut-out; "undo" takes the same
            reviewer's last verdict back.
        reviewer: who said it.
        time: when, ISO 8601 in UTC.
    """

    pool_id: int
    category_id: int
    category: str
    verdict: str
    reviewer: str = ""
    time: str = ""

    @classmethod
    def now(
        cls, pool_id: int, category_id: int, category: str, verdict: str, reviewer: str
    ) -> Verdict:
        """A verdict of this moment."""
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(int(pool_id), int(category_id), category, verdict, reviewer, time)


class VerdictFile:
    """The verdicts in a pool's folder; a file that is not there has none.

    Args:
        root: the pool's folder.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.path = Path(root) / FILE_NAME
        self._read: tuple[tuple[int, int], list[Verdict]] | None = None
        self._complained = 0

    def read(self) -> list[Verdict]:
        """All verdicts, oldest first; the file is read again only where it has changed.

        A line that cannot be understood is left out, with a warning.

        Raises:
            UserError: the file is there but cannot be read.
        """
        try:
            stat = self.path.stat()
            signature = stat.st_size, stat.st_mtime_ns
            if self._read is None or self._read[0] != signature:
                self._read = signature, self._parse(self.path.read_bytes())
        except FileNotFoundError:
            if self._read is None or self._read[1]:
                self._read = (0, 0), []
        except OSError as error:
            raise UserError(
                f"the verdicts {self.path} cannot be read ({error.strerror}): change the file's "
                "permissions, or move it away to go on without them"
            ) from error
        return self._read[1]

    def _parse(self, content: bytes) -> list[Verdict]:
        lines = content.split(b"\n")[:-1]  # after the last end of line nothing is complete
        verdicts = [_verdict_of(line) for line in lines if line.strip()]
        broken = sum(verdict is None for verdict in verdicts)
        if broken > self._complained:
            logger.warning("%d lines of %s are broken and left out.", broken, self.path)
            self._complained = broken
        return [verdict for verdict in verdicts if verdict is not None]

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Append verdicts: all of them or none, whoever else appends.

        Raises:
            UserError: the file cannot be written to.
        """
        import fcntl  # here: a reader on a system without it needs none

        text = "".join(json.dumps(asdict(v), ensure_ascii=False) + "\n" for v in verdicts)
        if not text:
            return
        try:
            is_new = not self.path.exists()
            with self.path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
                end = file.seek(0, os.SEEK_END)
                # A writer that was killed, or a full disk, may have left part of a line.
                torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
                content = b"\n" * torn + text.encode()
                if file.write(content) != len(content):
                    file.truncate(end)
                    raise OSError(28, "the disk is full")
                os.fsync(file.fileno())
            if is_new:
                sync(self.path.parent)
        except OSError as error:
            raise UserError(
                f"the verdicts {self.path} cannot be written to ({error.strerror or error}): make "
                "room there or change the folder's permissions"
            ) from error


def _verdict_of(line: bytes) -> Verdict | None:
    """A line of the file; None where it is broken."""
    try:
        verdict = Verdict(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (verdict.pool_id, verdict.category_id)
    texts = (verdict.category, verdict.reviewer, verdict.time)
    is_sound = (
        all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and verdict.verdict in WORDS
    )
    return verdict if is_sound else None


def standing(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Each reviewer's last verdict on each cut-out, in the order of the first; none taken back.

    Example:
        >>> lines = [Verdict(7, 1, "bun", word, "ann") for word in ("good", "bad")]
        >>> [v.verdict for v in standing(lines)]
        ['bad']
        >>> standing([*lines, Verdict(7, 1, "bun", "undo", "ann")])
        []
    """
    last = {(verdict.pool_id, verdict.reviewer): verdict for verdict in verdicts}
    return [verdict for verdict in last.values() if verdict.verdict != UNDO]


def settled(
    verdicts: Iterable[Verdict], pool: InstancePool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What reviewers agree on: of each cut-out, what most of them say.

    Args:
        verdicts: all lines, oldest first.
        pool: verdicts on a cut-out that is of another category in it, by name, are left out, with
            a warning. Of those that it does not have nothing is known, and they stay.

    Returns:
        Pool ids (N,) int64, ascending, and (N,) int8: 1 good, -1 bad. A cut-out on which as many
        say the one as the other is not in there, nor one that was only skipped.
    """
    said = [verdict for verdict in standing(verdicts) if verdict.verdict in _SIGNS]
    if pool is not None:
        said = _of_the_same_category(said, pool)
    votes: dict[int, int] = {}
    for verdict in said:
        votes[verdict.pool_id] = votes.get(verdict.pool_id, 0) + _SIGNS[verdict.verdict]
    pool_ids = np.array(sorted(i for i, vote in votes.items() if vote), np.int64)
    signs = np.array([np.sign(votes[i]) for i in pool_ids.tolist()], np.int8)
    return pool_ids, signs


def signs_of(pool_ids: np.ndarray, judged: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(N,) int8: 1 good, -1 bad, 0 not judged, of ``pool_ids`` (any shape).

    Args:
        pool_ids: int64.
        judged: as :func:`settled` gives them.

    Example:
        >>> signs_of(np.array([[3, 5]]), (np.array([5]), np.array([-1], np.int8))).tolist()
        [[0, -1]]
    """
    ids, signs = judged
    found = np.zeros(pool_ids.shape, np.int8)
    if len(ids):
        place = np.searchsorted(ids, pool_ids).clip(max=len(ids) - 1)
        is_known = ids[place] == pool_ids
        found[is_known] = signs[place[is_known]]
    return found


class PoolVerdicts:
    """Reads what reviewers agree on in a pool's own file; call it, as often as you like.

    Args:
        pool: see :func:`settled`.
    """

    def __init__(self, pool: InstancePool) -> None:
        self.pool = pool
        self._file = VerdictFile(pool.root)
        self._last: tuple[list[Verdict], tuple[np.ndarray, np.ndarray]] | None = None

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        """As :func:`settled` gives it; where nobody wrote since the last call, the same arrays.

        Raises:
            UserError: the file is there but cannot be read.
        """
        verdicts = self._file.read()
        if self._last is None or self._last[0] is not verdicts:
            self._last = verdicts, settled(verdicts, self.pool)
        return self._last[1]


def _of_the_same_category(verdicts: Sequence[Verdict], pool: InstancePool) -> list[Verdict]:
    ids = np.array([verdict.pool_id for verdict in verdicts], np.int64)
    there = pool.contains(ids)
    names = pool.category_names or {}
    categories = np.zeros(len(ids), np.int64)
    categories[there] = pool.category_of(ids[there])
    kept = []
    for verdict, is_there, category_id in zip(
        verdicts, there.tolist(), categories.tolist(), strict=True
    ):
        name = names.get(category_id, "") if is_there else ""
        if not name or not verdict.category or name == verdict.category:
            kept.append(verdict)
    if len(kept) < len(verdicts):
        logger.warning(
            "%d verdicts in %s are about cut-outs that are of another category now, and are left "
            "out.",
            len(verdicts) - len(kept),
            pool.root / FILE_NAME,
        )
    return kept
