"""What category ids meant: their names, kept in every file that has ids, and compared on opening.

Exporters number categories as they like: the same labels have ids from 0 in one file and from 1 in
the next. A file that keeps ids alone would then be read as something else, and nothing would fail.
So pools, ledgers, journals, lists and snapshots keep the names that their ids had, and

- ids that mean the same stay as they are;
- ids that mean other categories now are taken by name, where the name is there once, and a line
  says so;
- ids whose category is not there any more are left out, and a line says so, if the numbering
  changed elsewhere too; if it did not, the category may have been renamed, and nobody can tell: the
  program stops with a sentence.

A file without names is of an earlier release: its ids are taken as they are, with a warning.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from gal_d2.errors import UserError, some_of

logger = logging.getLogger(__name__)

# In the schema metadata of Arrow and Parquet files; in snapshots, the array's name.
METADATA_KEY = b"gal_d2.categories"

Names = Mapping[int, str]
"""Category names by id (as in the annotation JSON)."""


def dataset_names(dataset_name: str) -> dict[int, str]:
    """The categories of a registered data set.

    Raises:
        UserError: it is unknown, or its annotation file is missing or broken.
    """
    from gal_d2.datasets.registration import load_metadata

    metadata = load_metadata(dataset_name)
    class_of = metadata.thing_dataset_id_to_contiguous_id
    return {category: metadata.thing_classes[index] for category, index in class_of.items()}


# -- Kept in files


def to_text(names: Names) -> str:
    """Names as JSON, ascending by id."""
    return json.dumps({str(i): names[i] for i in sorted(names)}, ensure_ascii=False)


def from_text(text: str | bytes | None) -> dict[int, str] | None:
    """What :func:`to_text` made; None where there is nothing, or nothing that can be read."""
    try:
        return {int(i): str(name) for i, name in json.loads(text).items()}
    except (TypeError, ValueError, AttributeError):
        return None


def with_names(schema: pa.Schema, names: Names | None) -> pa.Schema:
    """A schema of Arrow or Parquet files that also keeps the names, where there are any."""
    if names is None:
        return schema
    return schema.with_metadata({**(schema.metadata or {}), METADATA_KEY: to_text(names).encode()})


def names_in(schema: pa.Schema) -> dict[int, str] | None:
    """The names that a file's schema keeps; None if it is of an earlier release."""
    return from_text((schema.metadata or {}).get(METADATA_KEY))


def names_state(names: Names) -> dict[str, np.ndarray]:
    """As arrays, for a snapshot."""
    return {"names": np.frombuffer(to_text(names).encode(), np.uint8)}


def names_in_state(arrays: Mapping[str, np.ndarray], source: str) -> dict[int, str] | None:
    """The names in a snapshot whose source ``source`` was :func:`names_state`; None without."""
    kept = arrays.get(f"{source}.names")
    return None if kept is None else from_text(np.asarray(kept, np.uint8).tobytes())


# -- Compared


@dataclass(frozen=True)
class Match:
    """How the ids of a file stand to those of now; ids that mean the same are in none of these.

    Attributes:
        moved: by id in the file, the id that its name has now.
        gone: ids in the file whose category is not there now, while another has the id.
        doubtful: ids in the file of which nobody can tell, and why.
    """

    moved: dict[int, int] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    doubtful: dict[int, str] = field(default_factory=dict)


def match(kept: Names, now: Names) -> Match:
    """Compare what ids meant with what they mean.

    Example:
        >>> match({0: "cat", 1: "bun"}, {1: "cat", 2: "bun"}).moved
        {0: 1, 1: 2}
    """
    moved: dict[int, int] = {}
    unknown, doubtful, same = [], {}, 0
    ids_now, ids_kept = _by_name(now), _by_name(kept)
    for category_id, name in kept.items():
        if category_id in now and _same_name(now[category_id], name):
            same += 1
            continue
        found = [i for i in ids_now.get(_plain(name), ()) if now[i] == name]
        found = found or ids_now.get(_plain(name), [])
        if len(found) == 1 and len(ids_kept[_plain(name)]) == 1:
            moved[category_id] = found[0]
        elif found:
            doubtful[category_id] = f"'{name}' is the name of several categories"
        elif category_id in now:
            unknown.append(category_id)
    gone = set()
    for category_id in unknown:
        # Where the numbering changed, or the other name was known too, this is another category.
        if moved or (same and _plain(now[category_id]) in ids_kept):
            gone.add(category_id)
        else:
            doubtful[category_id] = f"'{kept[category_id]}' is not among the categories of now"
    return Match(moved, frozenset(gone), doubtful)


class Renumbering:
    """Turns the ids in files into those of now; says what it does, once. It can be pickled.

    Args:
        now: what ids mean now; None to leave all ids as they are.
        what: the files are, for messages: "the instance pool /data/pool".
    """

    def __init__(self, now: Names | None, what: str) -> None:
        self.now = None if now is None else dict(now)
        self.what = what
        self._matches: dict[str, Match] = {}
        self._said: set = set()

    def __call__(
        self, category_ids: np.ndarray, kept: Names | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids of now, (n,) int64, and which of them still are a category, (n,) bool.

        Args:
            category_ids: (n,) int64, as in the file.
            kept: the names in the file.

        Raises:
            UserError: nobody can tell what an id means now.
        """
        is_there = np.ones(len(category_ids), bool)
        if self.now is None or not len(category_ids):
            return category_ids, is_there
        if kept is None:
            self._say(
                "unnamed",
                f"{self.what} has no category names, as files of earlier releases: its ids are "
                "taken to mean what they mean in the annotations.",
            )
            return category_ids, is_there
        text = to_text(kept)
        if text not in self._matches:
            self._matches[text] = match(kept, self.now)
        found = self._matches[text]
        used, inverse = np.unique(category_ids, return_inverse=True)
        used = used.tolist()
        doubtful = [i for i in used if i in found.doubtful]
        if doubtful:
            raise UserError(self._doubt(doubtful[0], kept, found.doubtful[doubtful[0]]))
        moved = {i: found.moved[i] for i in used if i in found.moved}
        gone = [i for i in used if i in found.gone]
        if moved:
            shown = [f"{i} was '{kept[i]}', which is {moved[i]}" for i in moved]
            self._say(
                ("moved", text, *moved),
                f"{self.what}: its category ids mean others now, and are taken by name: "
                f"{some_of(shown)}.",
            )
        if gone:
            shown = [f"{i} was '{kept[i]}' and is '{self.now[i]}'" for i in gone]
            self._say(
                ("gone", text, *gone),
                f"{self.what}: categories that the annotations do not have are left out: "
                f"{some_of(shown)}.",
            )
        if not moved and not gone:
            return category_ids, is_there
        as_now = np.array([moved.get(i, i) for i in used], np.int64)
        return as_now[inverse], ~np.isin(category_ids, gone)

    def _say(self, key: object, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            logger.warning("%s", message)

    def _doubt(self, category_id: int, kept: Names, reason: str) -> str:
        now = self.now.get(category_id)
        is_now = f"is '{now}'" if now is not None else "is no category"
        return (
            f"{self.what}: category id {category_id} was '{kept[category_id]}' when it was made "
            f"and {is_now} in the annotations, and {reason}: give the annotations that it was made "
            "with (or the category its old name in them), or make it anew."
        )


def require_same(
    kept: Names | None, now: Names | None, what: str, remedy: str, used: Iterable[int] | None = None
) -> None:
    """Refuse to add to a file whose ids mean others.

    Args:
        kept: the names in the file; None: of an earlier release, a warning is logged.
        now: what ids mean now; None: nobody knows, and nothing is compared.
        what: the file is, for messages.
        remedy: ends the sentence.
        used: the ids to compare; default: all that the file has names of.

    Raises:
        UserError: an id has another name now, or a name another id.
    """
    if now is None:
        return
    if kept is None:
        logger.warning(
            "%s has no category names, as files of earlier releases: its ids are taken to mean "
            "what they mean in the annotations.",
            what,
        )
        return
    ids_now = _by_name(now)
    for category_id in sorted(kept if used is None else used):
        name = kept.get(category_id)
        if name is None or (category_id in now and _same_name(now[category_id], name)):
            continue
        other = ids_now.get(_plain(name))
        if category_id in now:
            is_now = f"is '{now[category_id]}'"
        elif other:
            is_now = f"'{name}' has the id {other[0]}"
        else:
            continue
        raise UserError(
            f"{what} was made where category id {category_id} is '{name}'; in the annotations of "
            f"now {'it ' if category_id in now else ''}{is_now}: {remedy}."
        )


def require_same_classes(
    kept: Sequence[str] | None, now: Sequence[str], what: str, remedy: str
) -> None:
    """Refuse state that belongs to classes, by index, of other names.

    Args:
        kept: class names in the file; None: of an earlier release, a warning is logged.
        now: class names.
        what: the file is, for messages.
        remedy: ends the sentence.

    Raises:
        UserError: they are not the same, in the same order.
    """
    if kept is None:
        logger.warning(
            "%s has no class names, as files of earlier releases: its classes are taken to be "
            "those of the annotations.",
            what,
        )
    elif list(kept) != list(now):
        theirs, ours = list(kept), list(now)
        differing = [
            i for i, pair in enumerate(zip(theirs, ours, strict=False)) if len({*pair}) > 1
        ]
        difference = f"it has {len(theirs)} classes, the annotations {len(ours)}"
        if differing:
            i = differing[0]
            difference = f"class {i} is '{theirs[i]}' there and '{ours[i]}' in the annotations"
        raise UserError(f"{what} is for other classes ({difference}): {remedy}.")


def _by_name(names: Names) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for category_id, name in names.items():
        ids.setdefault(_plain(name), []).append(category_id)
    return ids


def _same_name(first: str, second: str) -> bool:
    return _plain(first) == _plain(second)


def _plain(name: str) -> str:
    """Names that differ in case, spaces, underscores or Unicode form are one."""
    return "_".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())
