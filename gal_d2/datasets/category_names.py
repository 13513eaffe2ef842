"""The categories of an LVIS or COCO annotation file, found by name, synonym or id."""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping

from gal_d2.errors import UserError

_PARENTHESES = re.compile(r"\(.*?\)")


class CategoryNames:
    """Resolves what people write for a category ("bun", "Sandal (type of shoe)", "12") to its id.

    An exact name comes first, then a name up to case, spaces and underscores, then a synonym that
    only one category has, then a name without its part in parentheses ("sandal" for
    "sandal_(type_of_shoe)") that only one has, then the id.

    Args:
        categories: dicts with "id" and "name", and "synonyms" (list of names) where there are any.

    Attributes:
        names: name by category id.
        ids: category ids, ascending: the contiguous class index numbers them.

    Raises:
        UserError: there are none, one lacks an integer id or a name, or two have the same.
    """

    def __init__(self, categories: Iterable[Mapping], origin: str = "the category list") -> None:
        self.names: dict[int, str] = {}
        self._by_exact_name: dict[str, int] = {}
        synonyms: dict[str, set[int]] = {}
        for category in categories:
            if (
                not isinstance(category, Mapping)
                or type(category.get("id")) is not int
                or not isinstance(category.get("name"), str)
            ):
                raise UserError(
                    f"{origin}: each of 'categories' needs an integer 'id' and a 'name', got "
                    f"{category!r:.200}; correct the file"
                )
            if category["name"] in self._by_exact_name:
                raise UserError(
                    f"{origin}: the categories {self._by_exact_name[category['name']]} and "
                    f"{category['id']} are both named '{category['name']}'; rename one"
                )
            self._by_exact_name[category["name"]] = category["id"]
            self.names[category["id"]] = category["name"]
            listed = category.get("synonyms")
            for synonym in listed if isinstance(listed, list | tuple) else ():
                synonyms.setdefault(_plain(synonym), set()).add(category["id"])
        if not self.names:
            raise UserError(
                f"{origin}: 'categories' is empty; give an LVIS or COCO annotation file"
            )
        self.ids = sorted(self.names)
        self._by_exact_name = {_composed(name): i for i, name in self.names.items()}
        plain: dict[str, set[int]] = {}
        short: dict[str, set[int]] = {}
        for i, name in self.names.items():
            plain.setdefault(_plain(name), set()).add(i)
            short.setdefault(_plain(_PARENTHESES.sub("", name)), set()).add(i)
        # Names shadow synonyms, and these short names; what stays ambiguous is not guessed.
        self._owners = {**short, **synonyms, **plain}
        self._by_plain_name = {
            name: next(iter(owners)) for name, owners in self._owners.items() if len(owners) == 1
        }

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> CategoryNames:
        """Read "categories" of an annotation file.

        Raises:
            UserError: the file is missing, no JSON, or has no categories.
        """
        content = read_json(path, "give an LVIS or COCO annotation file")
        categories = content.get("categories") if isinstance(content, dict) else None
        if not isinstance(categories, list):
            raise UserError(f"{path}: no list 'categories'; give an LVIS or COCO annotation file")
        return cls(_without_roots(categories, content.get("annotations")), str(path))

    def resolve(self, text: str) -> int | None:
        """The id of the category called ``text``, or None."""
        text = _composed(text)
        if text in self._by_exact_name:
            return self._by_exact_name[text]
        plain = _plain(text)
        if plain in self._by_plain_name:
            return self._by_plain_name[plain]
        if plain.isascii() and plain.isdigit() and int(plain) in self.names:
            return int(plain)
        return None

    def nearest(self, text: str, count: int = 3) -> list[str]:
        """Names of the categories that look most like ``text``, best first; perhaps none."""
        matches = difflib.get_close_matches(_plain(text), self._owners, n=count)
        # An ambiguous name stands for all that have it.
        owners = (i for match in matches for i in sorted(self._owners[match]))
        return list(dict.fromkeys(self.names[i] for i in owners))[:count]

    def resolve_all(self, texts: Iterable[str], option: str) -> list[int]:
        """The ids of several categories, in order, each once.

        Args:
            texts: names, synonyms or ids.
            option: what the user gave them with, for the message.

        Raises:
            UserError: some are unknown; it names those that look alike.
        """
        found = {text: self.resolve(text) for text in texts}
        unknown = []
        for text, category_id in found.items():
            if category_id is None:
                nearest = " or ".join(self.nearest(text))
                unknown.append(f"'{text}'" + (f" (did you mean {nearest}?)" if nearest else ""))
        if unknown:
            raise UserError(
                f"{option}: not in the annotation file: {', '.join(unknown)}; correct the names"
            )
        return list(dict.fromkeys(found.values()))


def _without_roots(categories: list, annotations: object) -> list:
    """Without the root categories that some exporters add, and that no annotation is of.

    A root is the "supercategory" of another one; it may well have the same name as a real one.
    """
    dicts = [category for category in categories if isinstance(category, dict)]
    if len(dicts) < len(categories) or not isinstance(annotations, list) or not annotations:
        return categories
    parents = {repr(c.get("supercategory")) for c in dicts}
    used = {repr(a.get("category_id")) for a in annotations if isinstance(a, dict)}
    return [
        category
        for category in categories
        if repr(category.get("name")) not in parents
        or repr(category.get("id")) in used
        or "image_count" in category
        or "frequency" in category
    ]


def read_json(path: str | os.PathLike, remedy: str) -> object:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, unreadable or no JSON; the message ends with ``remedy``.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (str or Path alike)
            return json.loads(file.read())  # from bytes: with or without a byte order mark
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from error


def _composed(name: str) -> str:
    # macOS and some archivers store "é" in a file name as "e" and an accent of its own.
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    return "_".join(_composed(str(name)).casefold().replace("_", " ").split())
