"""How the miniature is made: its size, and what is the matter with its candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gal_d2.errors import UserError
from gal_d2.testbeds.miniature.categories import CATEGORIES
from gal_d2.testbeds.miniature.faults import (
    FAULTS,
    fault_shares,
)
from gal_d2.testbeds.miniature.sources import OBJECT_SOURCES


@dataclass(frozen=True)
class MiniatureConfig:
    """What to prepare. Equal configs give equal files.

    Attributes:
        seed: of everything.
        train_images, val_images: number of scenes. Below about 260 training scenes no category
            has the more than 100 images that make it frequent.
        pool_per_category: number of candidates.
        wrong, noise, misplaced: shares of the candidates that show the partner, are noisy, have a
            misplaced mask; the rest is good.
        blur, colour, cut_off, two_objects: shares of those that are blurred, have false colours,
            lack a part at one side, show two objects of the category.
        ambiguous_wrong: share of wrong objects in ambiguous categories, where it is above
            ``wrong``; the other faults keep their proportion among the others.
        bad: share of bad candidates over all categories, to which the shares above are scaled
            (see :func:`gal_d2.testbeds.miniature.faults.fault_shares`); None: they are as they are.
        object_source: "auto", "fashion-mnist" or "digits" (see ``miniature_sources``).
    """

    seed: int = 0
    train_images: int = 600
    val_images: int = 200
    pool_per_category: int = 300
    wrong: float = 0.3
    noise: float = 0.1
    misplaced: float = 0.1
    ambiguous_wrong: float = 0.65
    object_source: str = "auto"
    blur: float = 0.0
    colour: float = 0.0
    cut_off: float = 0.0
    two_objects: float = 0.0
    bad: float | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: choose one from 0 on.")
        for field in ("train_images", "val_images", "pool_per_category"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}: it must be at least 1.")
        for field in (*FAULTS.values(), "ambiguous_wrong", "bad"):
            share = getattr(self, field)
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"{field} is {share}: it must lie in [0, 1].")
        faults = {field: getattr(self, field) for field in FAULTS.values()}
        if sum(faults.values()) > 1 + 1e-9:
            named = " + ".join(field for field, share in faults.items() if share)
            raise UserError(
                f"{named} is {sum(faults.values()):g}, more than 1: lower one of these shares."
            )
        self.fault_shares()
        if self.object_source not in OBJECT_SOURCES:
            raise UserError(
                f"object_source is '{self.object_source}': "
                f"choose one of {', '.join(OBJECT_SOURCES)}."
            )

    def fault_shares(self) -> np.ndarray:
        """(categories, faults): shares of the candidates, in the order of ``FAULTS``."""
        shares = {field: getattr(self, field) for field in FAULTS.values()}
        ambiguous = [category.ambiguous for category in CATEGORIES]
        return fault_shares(shares, ambiguous, self.ambiguous_wrong, self.bad)
