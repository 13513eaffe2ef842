"""Reading the text of an annotation JSON, as a whole or its end alone."""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gal_d2.errors import UserError

# The category list is looked for in this much of the end of the file before the whole is parsed.
_CATEGORY_TAIL_BYTES = 64 * 2**20


class DatasetNotFoundError(UserError):
    """A file of a data set, or the data set itself, is not there."""


def file_signature(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns: what says that a cached reading is still good.

    Raises:
        DatasetNotFoundError: the file is not there.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _not_there(path) from error
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Reading makes millions of objects and no cycle; looking for one takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _not_there(path: Path) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"The annotation file '{path}' is not there: docs/datasets.md describes where each data "
        "set is expected (below $DETECTRON2_DATASETS) and how to get it."
    )


def fail(path: Path, problem: str, cause: BaseException | None = None) -> None:
    """Raise a UserError that names the file."""
    raise UserError(f"{path}: {problem}") from cause


def parse(path: Path) -> dict[str, Any]:
    """The whole content.

    Raises:
        DatasetNotFoundError, UserError: the file is missing, or holds no JSON object.
    """
    file_signature(path)
    try:
        with path.open("rb") as file:
            content = json.loads(file.read())
    except OSError as error:
        fail(path, f"cannot be read ({error.strerror}); give a readable annotation JSON.", error)
    except (ValueError, RecursionError) as error:  # also JSONDecodeError and UnicodeDecodeError
        fail(path, f"is not valid JSON ({error}); download or export the file again.", error)
    if not isinstance(content, dict):
        fail(path, "must hold one JSON object with images, annotations and categories.")
    return content


def parse_tail(path: Path) -> dict[str, Any] | None:
    """The part of the file from the last '"categories"' key on, if that key is a top-level one.

    It is one exactly when the text from there to the end, with '{' before it, is a whole object.
    """
    size, _ = file_signature(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            start = view.rfind(b'"categories"', max(0, size - _CATEGORY_TAIL_BYTES))
            tail = view[start:] if start >= 0 else b""
        return json.loads(b"{" + tail)
    except (OSError, ValueError, RecursionError):
        return None  # parsing the whole file tells what is wrong, if anything is
