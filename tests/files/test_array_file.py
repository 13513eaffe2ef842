"""Array files: what goes in comes out mapped, and no damage passes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from gal_d2.files import array_file
from gal_d2.files.array_file import CorruptArrayFileError, map_arrays, write_arrays

ARRAYS = {
    "ids": np.array([3, -1, 2**63 - 1]),
    "boxes": np.array([[0.1, 2.0], [np.nan, -0.0]]),
    "text": np.frombuffer(b"bun", np.uint8),
    "nothing": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_arrays(tmp_path / "a.bin", ARRAYS, {"names": {"1": "pão"}})
    return tmp_path / "a.bin"


def test_round_trip(path: Path) -> None:
    arrays, about = map_arrays(path)
    assert about == {"names": {"1": "pão"}}
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and not arrays[name].flags.writeable
        np.testing.assert_array_equal(arrays[name], array)
        assert not arrays[name].size or arrays[name].ctypes.data % 64 == 0
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_every_flipped_bit_is_noticed(path: Path) -> None:
    sound = path.read_bytes()
    padding = 0
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found, _ = map_arrays(path)
        except CorruptArrayFileError:
            continue
        padding += 1  # between arrays, where nobody reads
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
    assert padding < 8 * 64 * (len(ARRAYS) + 1)


def test_every_truncation_is_noticed(path: Path) -> None:
    sound = path.read_bytes()
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        with pytest.raises(CorruptArrayFileError):
            map_arrays(path)


def test_an_array_beyond_the_end_is_not_read(path: Path) -> None:
    """Even where whoever made the header computed its checksum."""
    about = {"dtype": "<f8", "shape": [1 << 50], "offset": 0, "crc": 0}
    header = json.dumps({"about": {}, "arrays": {"a": about}}).encode()
    prefix = array_file._PREFIX.pack(array_file._MAGIC, len(header), zlib.crc32(header))
    path.write_bytes(prefix + header)
    with pytest.raises(CorruptArrayFileError, match="ends within 'a'"):
        map_arrays(path)


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only numbers"):
        write_arrays(tmp_path / "a.bin", {"a": np.array([{}])}, {})
    assert not list(tmp_path.iterdir())
