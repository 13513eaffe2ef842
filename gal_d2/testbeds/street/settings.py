"""How the street set is made, and its categories."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gal_d2.errors import UserError
from gal_d2.testbeds.street.categories import CATEGORIES, StreetCategory

SPLITS = ("train", "val")
PHOTO_SIDE = 448  # long side of a photograph, pixels; larger ones are shrunk
GARMENT_SIDE = 288


@dataclass(frozen=True)
class StreetConfig:
    """What to prepare. Equal configs give equal files.

    Attributes:
        seed: of the split and of what candidates show.
        val_share: share of the photographs that validate.
        merge: unite near-synonyms, as :data:`CATEGORIES` has them.
        rare: names of the categories that keep at most ``rare_images`` training images; the other
            photographs with one of them validate.
        min_images: a category in fewer photographs is left out.
    """

    seed: int = 0
    val_share: float = 0.3
    merge: bool = True
    rare: tuple[str, ...] = ()
    rare_images: int = 10
    min_images: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise UserError(f"--val-share is {self.val_share}: set it above 0 and below 1.")
        for name in ("rare_images", "min_images"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is {getattr(self, name)}: set it to 1 or more.")
        known = {category.name for category in street_categories(self.merge)}
        if unknown := sorted(set(self.rare) - known):
            raise UserError(f"--rare has {unknown[0]}: choose from {', '.join(sorted(known))}.")


def street_categories(merge: bool = True) -> tuple[StreetCategory, ...]:
    """The categories, by name; without ``merge`` every label is one of its own."""
    if merge:
        return CATEGORIES
    apart = [
        replace(category, name=category.name if k == 0 else label, labels=(label,))
        for category in CATEGORIES
        for k, label in enumerate(category.labels)
    ]
    return tuple(sorted(apart, key=lambda category: category.name))
