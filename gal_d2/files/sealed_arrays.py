"""Named arrays in a file with a checksum: an ``.npz`` that appears whole, or not at all."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gal_d2.files.atomic_file import replacing
from gal_d2.files.checksum import require_intact, seal_zip

# What reading a broken file raises.
DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Store arrays by name.

    Raises:
        OSError: the disk is full or the folder cannot be written to.
    """
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        seal_zip(temporary)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name; no code that a file brings is run.

    Raises:
        DAMAGE: the file is not there, or not as it was written.
    """
    require_intact(path)
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
