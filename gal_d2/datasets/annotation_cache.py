"""Checked annotations, kept in a form that the next start maps in place of parsing the JSON.

The file lies beside the JSON, or where that folder cannot be written, in the user's cache folder.
It is good for one content of the JSON, by size and CRC-32, and for one version of the checks. One
that is damaged is made anew. All processes of a machine share the pages of one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gal_d2.datasets.annotation_json import file_signature
from gal_d2.datasets.annotation_table import AnnotationTable
from gal_d2.errors import UserError
from gal_d2.files.array_file import CorruptArrayFileError, map_arrays, write_arrays
from gal_d2.files.checksum import crc32_of

logger = logging.getLogger(__name__)

# Part of the cache's identity: raise it when the checks, or what is kept of a file, change.
FORMAT = 1
# A smaller JSON is parsed in a second, and needs no file beside it.
LEAST_BYTES = 32 * 2**20
SUFFIX = ".annotations.cache"
# So many files' annotations are held by a process.
_HELD = 8


@dataclass(frozen=True)
class CheckedAnnotations:
    """What is kept of an annotation JSON.

    Attributes:
        table: its images and annotations.
        about: the rest, in what JSON has.
    """

    table: AnnotationTable
    about: dict[str, Any]


# By absolute path of the JSON: its size and time, and what it holds.
_held: dict[Path, tuple[tuple[int, int], CheckedAnnotations]] = {}
_homes: dict[tuple[str, int], AnnotationTable] = {}


def checked_annotations(path: Path, check: Callable[[], CheckedAnnotations]) -> CheckedAnnotations:
    """What ``check`` makes of the JSON at ``path``, or made of it in this or another process.

    Of processes that start together one parses the JSON, and the others wait for its file.

    Args:
        path: of the JSON.
        check: reads it.

    Raises:
        DatasetNotFoundError: the JSON is not there.
        UserError: as ``check`` raises it.
    """
    path = Path(os.path.abspath(path))
    signature = file_signature(path)
    if path in _held and _held[path][0] == signature:
        return _held[path][1]
    checked = check() if signature[0] < LEAST_BYTES else _mapped_or_made(path, check)
    _held.pop(path, None)
    _held[path] = signature, checked
    while len(_held) > _HELD:
        _held.pop(next(iter(_held)))
    return checked


def table_at(home: str, identity: int) -> AnnotationTable:
    """The table that another process mapped from ``home``, e.g. the one that a loader works for.

    Raises:
        UserError: the file is gone, damaged, or another one by now.
    """
    if (home, identity) not in _homes:
        try:
            checked = _mapped(Path(home), None)
        except (OSError, CorruptArrayFileError) as error:
            raise UserError(
                f"the checked annotations {home} cannot be read ({error}); delete the file, and "
                "start again with --resume"
            ) from error
        if checked.table.home[1] != identity:
            raise UserError(
                f"the annotations that {home} was made of have changed since this run began; start "
                "again with --resume"
            )
    return _homes[home, identity]


def cache_places(path: Path) -> list[Path]:
    """Where the checked annotations of a JSON may lie, the best place first."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    marked = f"{path.stem}-{zlib.crc32(os.fsencode(path)):08x}{SUFFIX}"
    return [path.with_name(path.stem + SUFFIX), Path(user) / "gal_d2" / marked]


def _mapped_or_made(path: Path, check: Callable[[], CheckedAnnotations]) -> CheckedAnnotations:
    identity = _identity(path)
    found = _find(path, identity)
    if found is not None:
        return found
    if not any(map(_is_writable, cache_places(path))):
        return _without(path, check(), "no folder for it can be written to")
    with _one_at_a_time(path):
        found = _find(path, identity)  # another process may have been quicker
        if found is not None:
            return found
        checked = check()
        about = {"identity": identity, "content": checked.about}
        for place in cache_places(path):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                write_arrays(place, checked.table.arrays, about)
                found = _mapped(place, identity)
            except (OSError, CorruptArrayFileError) as error:
                reason = str(error)
                continue
            logger.info("%s: what was checked is kept in %s for the next start", path, place)
            return found
    return _without(path, checked, reason)


def _without(path: Path, checked: CheckedAnnotations, reason: str) -> CheckedAnnotations:
    logger.warning(
        "%s: what was checked cannot be kept for the next start (%s): each start parses the file, "
        "and processes do not share its memory",
        path,
        reason,
    )
    return checked


def _find(path: Path, identity: list[int]) -> CheckedAnnotations | None:
    for place in cache_places(path):
        try:
            found = _mapped(place, identity)
        except OSError:  # not there, as a rule
            continue
        except CorruptArrayFileError as error:
            logger.warning("%s is damaged (%s); it is made anew", place, error)
            continue
        if found is not None:
            return found
    return None


def _mapped(place: Path, identity: list[int] | None) -> CheckedAnnotations | None:
    """What lies in a file; None where that is of another identity than the one given."""
    arrays, about = map_arrays(place)
    if identity is not None and about.get("identity") != identity:
        return None
    home = str(place), zlib.crc32(repr(about.get("identity")).encode())
    table = _homes.setdefault(home, AnnotationTable(arrays, home=home))
    return CheckedAnnotations(table, about["content"])


def _identity(path: Path) -> list[int]:
    """Format, size and CRC-32 of a JSON; reading it costs a hundredth of parsing it."""
    size = path.stat().st_size
    return [FORMAT, size, crc32_of(path, size)]


def _is_writable(place: Path) -> bool:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place.parent, os.W_OK | os.X_OK)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("rb") as file:
        # Some network file systems have no locks: there, each process parses the JSON.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
