"""Checksums of files whose formats leave damage unnoticed: torch reads a flipped bit as a weight.

A zip archive, which ``.npz`` and torch's ``.pth`` are, may end with a comment: :func:`seal_zip`
puts the CRC-32 of all that stands before it there. Readers that know nothing of it ignore it.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

_LABEL = b"gal_d2 crc32 "
_SEAL = re.compile(re.escape(_LABEL) + rb"([0-9a-f]{8})")
_SIZE = len(_LABEL) + 8
_CHUNK = 1 << 20


class DamagedFileError(ValueError):
    """A file is not as it was written; the message says so."""


def crc32_of(path: str | os.PathLike, end: int | None = None) -> int:
    """CRC-32 of a file, or of its first ``end`` bytes."""
    checksum, left = 0, os.path.getsize(path) if end is None else end
    with Path(path).open("rb") as file:
        while chunk := file.read(min(left, _CHUNK)):
            checksum = zlib.crc32(chunk, checksum)
            left -= len(chunk)
    return checksum


def seal_zip(path: str | os.PathLike) -> None:
    """Append the checksum to a zip archive that has no comment."""
    with Path(path).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        if file.read() != b"\0\0":
            raise ValueError(f"{path} is no zip archive without a comment")
        file.seek(-2, os.SEEK_END)
        file.write(_SIZE.to_bytes(2, "little"))  # the length of the comment, which is covered too
        file.flush()
        file.write(_LABEL + b"%08x" % crc32_of(path))


def require_intact(path: str | os.PathLike) -> None:
    """Compare a sealed archive with its checksum; one of an earlier release has none, and passes.

    Raises:
        DamagedFileError: they differ.
        OSError: the file cannot be read.
    """
    size = os.path.getsize(path)
    with Path(path).open("rb") as file:
        file.seek(max(size - _SIZE, 0))
        seal = _SEAL.fullmatch(file.read())
    if seal is not None and crc32_of(path, size - _SIZE) != int(seal[1], 16):
        raise DamagedFileError("its checksum does not fit: it was changed after it was written")
