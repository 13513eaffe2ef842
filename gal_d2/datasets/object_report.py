"""What became of the objects of an annotation file, and the sentences that say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from gal_d2.errors import some_of

_IDS_SHOWN = 10
_CATEGORIES_SHOWN = 10


class Unusable(Enum):
    """Why an object has no usable mask: what it has instead, and what to do."""

    NO_MASK = (
        "no polygons and no RLE",
        "boxes alone cannot train: export polygons or masks",
    )
    FEW_POINTS = (
        "only polygons of fewer than 3 points",
        "a polygon needs 3 points, x and y of each: export the masks again",
    )
    SHARES = (
        "only coordinates within 0..1",
        "coordinates must be in pixels: multiply each x by the image's width and each y by its "
        "height",
    )
    NO_PIXEL = (
        "polygons that cover no pixel of the image",
        "check that coordinates are pixels of this very image, from its upper left corner on",
    )
    EMPTY_RLE = ("an RLE without a pixel", "export the masks again")

    @property
    def what(self) -> str:
        return self.value[0]

    @property
    def remedy(self) -> str:
        return self.value[1]


class Correction(Enum):
    """What was put right from the mask, as a sentence after 'N annotations'."""

    AREA = "have an area that their mask contradicts (0 counts as one); the mask's is taken"
    BOX = "have a bbox that their mask contradicts; the mask's is taken"
    XYXY = (
        "have a bbox of two corners (x0, y0, x1, y1), where COCO has x, y, width, height; the "
        "mask's is taken"
    )
    POINTS = "have polygons of fewer than 3 points, which are dropped"


CROWD_REMEDY = "set 'iscrowd' to 0 where an annotation is one object (CVAT writes 1 for every mask)"


@dataclass
class Finding:
    """How many annotations it was, the first ones' ids, and the image of the first."""

    count: int = 0
    ids: list[int] = field(default_factory=list)
    first_image: int | None = None

    def add(self, annotation_id: int, image_id: int) -> None:
        if not self.count:
            self.first_image = image_id
        if len(self.ids) < _IDS_SHOWN:
            self.ids.append(annotation_id)
        self.count += 1

    @property
    def first(self) -> str:
        return f"annotation {self.ids[0]} of image {self.first_image}"

    @property
    def some_ids(self) -> str:
        return ", ".join(map(str, self.ids)) + (", ..." if self.count > len(self.ids) else "")


@dataclass
class ObjectReport:
    """Counts of a whole annotation file, each with its first examples.

    Attributes:
        total: annotations in the file.
        crowds: those with a mask that are crowds.
        unusable: those without a usable mask, crowds or not, by reason.
        foreign: those with a mask, of a category that is no class.
        corrections: those of which a field was put right.
        objects_of, crowds_of: annotations, and crowds with a mask, by category id.
        unusable_of: by category id, how many are unusable for each reason.
    """

    total: int = 0
    crowds: Finding = field(default_factory=Finding)
    unusable: dict[Unusable, Finding] = field(default_factory=dict)
    foreign: Finding = field(default_factory=Finding)
    corrections: dict[Correction, Finding] = field(default_factory=dict)
    objects_of: Counter[int] = field(default_factory=Counter)
    crowds_of: Counter[int] = field(default_factory=Counter)
    unusable_of: dict[int, Counter[Unusable]] = field(default_factory=dict)

    @property
    def num_unusable(self) -> int:
        return sum(finding.count for finding in self.unusable.values())

    @property
    def num_used(self) -> int:
        """Objects with a mask that are no crowds: what trains, and what is found or missed."""
        return self.total - self.crowds.count - self.num_unusable - self.foreign.count

    def to_json(self) -> dict[str, Any]:
        """In what JSON has; of a file alone, before categories of another one are applied."""
        return {
            "total": self.total,
            "crowds": asdict(self.crowds),
            "unusable": [[why.name, asdict(finding)] for why, finding in self.unusable.items()],
            "corrections": [
                [what.name, asdict(finding)] for what, finding in self.corrections.items()
            ],
            "objects_of": list(self.objects_of.items()),
            "crowds_of": list(self.crowds_of.items()),
            "unusable_of": [
                [category_id, [[why.name, count] for why, count in reasons.items()]]
                for category_id, reasons in self.unusable_of.items()
            ],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ObjectReport:
        """What :meth:`to_json` gave."""
        return cls(
            total=stored["total"],
            crowds=Finding(**stored["crowds"]),
            unusable={Unusable[name]: Finding(**found) for name, found in stored["unusable"]},
            corrections={
                Correction[name]: Finding(**found) for name, found in stored["corrections"]
            },
            objects_of=Counter(dict(stored["objects_of"])),
            crowds_of=Counter(dict(stored["crowds_of"])),
            unusable_of={
                category_id: Counter({Unusable[name]: count for name, count in reasons})
                for category_id, reasons in stored["unusable_of"]
            },
        )

    def add_crowd(self, annotation_id: int, image_id: int, category_id: int) -> None:
        self.crowds.add(annotation_id, image_id)
        self.crowds_of[category_id] += 1

    def add_foreign(self, annotation: Mapping[str, Any]) -> None:
        """Count an annotation with a mask, crowd or not, as one of a category that is no class."""
        self.foreign.add(annotation["id"], annotation["image_id"])
        if annotation["iscrowd"]:
            self.crowds.count -= 1
            self.crowds_of[annotation["category_id"]] -= 1

    def add_unusable(
        self, reason: Unusable, annotation_id: int, image_id: int, category_id: int
    ) -> None:
        self.unusable.setdefault(reason, Finding()).add(annotation_id, image_id)
        self.unusable_of.setdefault(category_id, Counter())[reason] += 1

    def add_correction(self, what: Correction, annotation_id: int, image_id: int) -> None:
        self.corrections.setdefault(what, Finding()).add(annotation_id, image_id)

    def counts(self, use: str) -> str:
        """The one line of counts, such as "10 of 12 objects train; 2 crowds (...), 0 without ...".

        Args:
            use: what the objects do: "train".
        """
        crowds = f"{self.crowds.count} crowd{'s' * (self.crowds.count != 1)}"
        if self.crowds.count:
            crowds += f" (first: {self.crowds.first})"
        line = f"{self.num_used} of {self.total} objects {use}; {crowds}, "
        line += f"{self.num_unusable} without a usable mask"
        if self.unusable:
            line += " (" + "; ".join(self._reasons()) + ")"
        if self.foreign.count:
            line += f", {self.foreign.count} of other categories (first: {self.foreign.first})"
        return line

    def fallen_out(self, names: Mapping[int, str]) -> str | None:
        """A sentence on the categories most objects of which are not used; None if there is none.

        Args:
            names: of the categories, by id.
        """
        lost, crowds, reasons = [], 0, Counter()
        for category_id, total in self.objects_of.items():
            category_crowds = self.crowds_of[category_id]
            category_reasons = self.unusable_of.get(category_id, Counter())
            out = category_crowds + category_reasons.total()
            if 2 * out > total:
                lost.append(f"{names.get(category_id, category_id)} ({out} of {total})")
                crowds += category_crowds
                reasons += category_reasons
        if not lost:
            return None
        shown = some_of(lost, _CATEGORIES_SHOWN)
        return f"most objects of these categories are left out: {shown}; " + "; ".join(
            _remedies(crowds, reasons)
        )

    def nothing_left(self) -> str:
        """Why no object is used, and what to do; for a file of which :attr:`num_used` is 0."""
        if not self.total:
            return "it has no annotation; export the annotations again"
        reasons = [f"{self.crowds.count} are crowds"] if self.crowds.count else []
        if self.foreign.count:
            reasons.append(f"{self.foreign.count} are of categories that are no classes")
        reasons += self._reasons()
        counts = Counter({reason: finding.count for reason, finding in self.unusable.items()})
        return "; ".join([", ".join(reasons), *_remedies(self.crowds.count, counts)])

    def _reasons(self) -> list[str]:
        return [
            f"{finding.count} {'has' if finding.count == 1 else 'have'} {reason.what}, first: "
            f"{finding.first}"
            for reason, finding in self.unusable.items()
        ]


def _remedies(crowds: int, reasons: Mapping[Unusable, int]) -> list[str]:
    remedies: Iterable[str] = [CROWD_REMEDY] if crowds else []
    ordered: Sequence[Unusable] = sorted(reasons, key=lambda r: -reasons[r])
    return [*remedies, *(reason.remedy for reason in ordered)]
