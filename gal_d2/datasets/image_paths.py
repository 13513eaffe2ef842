"""From the names that an annotation JSON gives its images to files."""

from __future__ import annotations

import json
import mmap
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

# No longer file name is looked for without parsing the JSON.
_NAME_BYTES = 4096


def find_image(root: str | Path, name: str) -> str:
    """The path of an image below ``root``.

    A name that is no file as it stands is tried with ``/`` for each backslash (annotations that
    were made on Windows), and in the other Unicode forms of its letters with accents (archives of
    macOS). Only names that have such characters cost a look at the disk.

    Returns:
        The path of the file, or that of the name as it stands where there is none.
    """
    path = os.path.join(root, name)
    if ("\\" not in name and name.isascii()) or os.path.exists(path):
        return path
    for slashed in dict.fromkeys((name, name.replace("\\", "/"))):
        for form in ("NFC", "NFD"):
            other = os.path.join(root, unicodedata.normalize(form, slashed))
            if os.path.exists(other):
                return other
    return path


def leaves_folder(root: str | Path, name: str) -> bool:
    """Whether a name that a file gives leads out of the folder that it is relative to.

    A link in the folder is the user's own, and leads where it leads.
    """
    if ".." not in name and not name.startswith(("/", "\\")):
        return False
    folder = os.path.abspath(root)
    path = os.path.abspath(os.path.join(folder, name.replace("\\", "/")))
    return os.path.commonpath((folder, path)) != folder


def first_value(json_file: Path, keys: Iterable[str]) -> tuple[str, str] | None:
    """The first of ``keys`` that the JSON has, and its first value, found without parsing.

    Returns:
        None where there is no such key, or no text after it.
    """
    try:
        with (
            json_file.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            for key in keys:
                start = view.find(f'"{key}"'.encode())
                text = view[start : start + _NAME_BYTES] if start >= 0 else b""
                match = re.match(rb'"\w+"\s*:\s*("(?:[^"\\]|\\.)+")', text)
                if match:
                    return key, json.loads(match.group(1))
    except (OSError, ValueError):  # unreadable or empty: reading the annotations will say so
        pass
    return None
