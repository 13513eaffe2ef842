"""Files that appear as a whole or not at all, and that a power cut does not take back."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.tmp")
"""Names of temporary files; ``name`` is that of the file to be."""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file to write in the block; after it, it has the place of ``path``.

    Whoever reads ``path`` sees what was there before or all that was written. If the block raises,
    nothing is left; after a kill, a file that :data:`TEMPORARY` matches. Several processes may
    write the same file: the last one wins.

    Example:
        >>> with replacing("/tmp/gal_d2_example.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> Path("/tmp/gal_d2_example.txt").read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def remove_temporaries(folder: str | os.PathLike, suffix: str) -> None:
    """Delete what killed writers of files ``*suffix`` left; nobody else may be writing there."""
    for path in Path(folder).glob(f".*{suffix}.*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync(path: str | os.PathLike) -> None:
    """Make a file's content, or the names in a folder, survive a power cut, where the system can.

    Raises:
        OSError: a file's content cannot be stored.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not os.path.isdir(path):  # some network file systems refuse it for folders
            raise
