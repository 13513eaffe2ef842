"""Reading a large annotation JSON piece by piece: a whole one takes five times its size in memory.

Images and categories have to be known before annotations are checked, and LVIS's files have them
behind. They are then read from the end of the file first.
"""

from __future__ import annotations

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_BLOCK = 1 << 23
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_WANTED = frozenset({"images", "categories"})
_LIST = "annotations"


class NotStreamedError(Exception):
    """A file has an unusual form, or a fault: reading it as a whole says which."""


class AnnotationStream:
    """Images and categories of a JSON, and its annotations some thousands at a time.

    Args:
        path: of the JSON.

    Attributes:
        content: ``images`` and ``categories``, and what else stands at the top, as in the JSON.

    Raises:
        NotStreamedError: see there; also while :meth:`chunks` are read.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text, self._position = "", 0
        self._decoder = json.JSONDecoder()
        self._tail, self._at_end = b"", frozenset()
        self.content: dict[str, Any] = {}
        self._expect("{")
        while (key := self._value()) != _LIST:
            if not isinstance(key, str):
                self._give_up("a key is no text")
            self._expect(":")
            self.content[key] = self._value()
            self._expect(",")
        self._expect(":")
        self._expect("[")
        missing = _WANTED - self.content.keys()
        if missing:
            self._read_end(path, missing)

    def __enter__(self) -> AnnotationStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def chunks(self, size: int) -> Iterator[list[dict[str, Any]]]:
        """Lists of ``size`` annotations, the last one maybe shorter."""
        chunk: list[dict[str, Any]] = []
        following = ","
        while following == ",":
            if self._next() != "{":
                self._give_up("an annotation is no object")
            chunk.append(self._value())
            if len(chunk) == size:
                yield chunk
                chunk = []
            following = self._take()
        if following != "]":
            self._give_up("the list of annotations does not end")
        if chunk:
            yield chunk
        self._check_end()

    def _read_end(self, path: Path, missing: frozenset[str]) -> None:
        """Take missing keys from the end of the file, if that is the end of the top object."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            start = min(view.rfind(f'"{key}"'.encode()) for key in missing)
            if start < 0:
                self._give_up("a key is missing")
            self._tail = view[start:]
        try:
            end = json.loads(b"{" + self._tail)
        except (ValueError, RecursionError):
            self._give_up("its end is no object")
        self._at_end = _WANTED & end.keys()
        if self._at_end != missing or _LIST in end:
            self._give_up("a key is missing, or occurs twice")
        self.content |= end

    def _check_end(self) -> None:
        """What follows the annotations is an object's rest, and ends with what was read of it."""
        rest = [self._text[self._position :]]
        while block := self._file.read(_BLOCK):
            rest.append(self._decode(block))
        rest.append(self._decode(b"", True))
        text = "".join(rest)
        if not text.encode().endswith(self._tail):
            self._give_up("its end stands among the annotations")
        try:
            end = json.loads('{"": 0' + text)
        except (ValueError, RecursionError):
            self._give_up("its end is broken")
        if _LIST in end or _WANTED & end.keys() != self._at_end:
            self._give_up("a key occurs twice")

    def _value(self) -> Any:
        """The next JSON value; numbers and literals must be followed by something."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except (json.JSONDecodeError, RecursionError):
                end = len(self._text)
            if end < len(self._text):
                self._position = end
                return value
            if not self._more():
                self._give_up("it ends too early")

    def _next(self) -> str:
        """The next character that is no white space; it stays."""
        while True:
            self._position = _WHITESPACE.match(self._text, self._position).end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                self._give_up("it ends too early")

    def _take(self) -> str:
        character = self._next()
        self._position += 1
        return character

    def _expect(self, character: str) -> None:
        if self._take() != character:
            self._give_up(f"'{character}' is missing")

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        # What is long is tried again and again: read twice as much each time.
        block = self._file.read(max(_BLOCK, len(self._text) - self._position))
        try:
            self._text = self._text[self._position :] + self._decode(block, not block)
        except UnicodeDecodeError:
            self._give_up("it is not UTF-8")
        self._position = 0
        return bool(block)

    def _give_up(self, reason: str) -> NoReturn:
        self._file.close()
        raise NotStreamedError(reason)
