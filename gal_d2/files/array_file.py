"""Named arrays in one file that any number of processes map: pages are read once, and shared.

A file is: the magic, the header's length and CRC-32, the header (JSON), and the arrays, each at a
multiple of 64 bytes and with a CRC-32 in the header. There are only numbers in it, so reading one
runs no code, and damage anywhere in it is noticed when it is opened.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gal_d2.files.atomic_file import replacing

_MAGIC = b"galarr01"
_PREFIX = struct.Struct("<8sQI")  # magic; the header's length and CRC-32
_ALIGNMENT = 64
_KINDS = frozenset("biuf")  # of NumPy's: numbers


class CorruptArrayFileError(Exception):
    """A file is no array file, or was changed after it was written; the message says how."""


def write_arrays(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Write ``arrays`` and what JSON can say ``about`` them; the file appears whole or not at all.

    Raises:
        OSError: there is no room, or no right to write there.
    """
    entries, offset = {}, 0
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, array in contiguous.items():
        if array.dtype.kind not in _KINDS:
            raise ValueError(f"an array of {array.dtype} is not stored, only numbers are")
        offset = -(-offset // _ALIGNMENT) * _ALIGNMENT
        entries[name] = {
            "dtype": array.dtype.str,
            "shape": array.shape,
            "offset": offset,
            "crc": zlib.crc32(array),
        }
        offset += array.nbytes
    header = json.dumps({"about": about, "arrays": entries}).encode()
    start = _start_of_arrays(len(header))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_PREFIX.pack(_MAGIC, len(header), zlib.crc32(header)))
        file.write(header)
        for name, array in contiguous.items():
            file.write(bytes(start + entries[name]["offset"] - file.tell()))
            file.write(array)


def map_arrays(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, read-only and mapped, and what was said about them.

    All of it is read once, to compare it with its checksums.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptArrayFileError: it is damaged, or no such file.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _PREFIX.size:
            raise CorruptArrayFileError(f"it has {size} bytes")
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    magic, length, crc = _PREFIX.unpack_from(view)
    header = view[_PREFIX.size : _PREFIX.size + length] if length < size else b""
    if magic != _MAGIC or zlib.crc32(header) != crc:
        raise CorruptArrayFileError("its header is damaged")
    content = json.loads(header)
    start = _start_of_arrays(length)
    arrays = {}
    for name, entry in content["arrays"].items():
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape, dtype=np.int64))
        offset = start + entry["offset"]
        if offset + count * dtype.itemsize > size:
            raise CorruptArrayFileError(f"it ends within '{name}'")
        array = np.frombuffer(view, dtype, count, offset) if count else np.zeros(0, dtype)
        if zlib.crc32(array) != entry["crc"]:
            raise CorruptArrayFileError(f"'{name}' was changed after it was written")
        array.flags.writeable = False
        arrays[name] = array.reshape(shape)
    return arrays, content["about"]


def _start_of_arrays(header_length: int) -> int:
    return -(-(_PREFIX.size + header_length) // _ALIGNMENT) * _ALIGNMENT
