"""Checks that a cut-out must pass; each leaves its score, and its name where it dropped one.

A filter looks at a *group* at a time: the cut-outs of one category that were made together. The
pipeline forms the same groups whether or not a run is interrupted, so that a filter may compare
within the group.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from gal_d2.generation.generator import GeneratedImage


@dataclass(eq=False)
class Candidate:
    """A cut-out on its way through the filters.

    Attributes:
        image: what the generator drew.
        mask: (H, W) bool: the object in the whole image.
        rgba: (h, w, 4) uint8: the object, cropped.
        scores: what segmenters and filters said so far, by name.
    """

    image: GeneratedImage
    mask: np.ndarray
    rgba: np.ndarray
    scores: dict[str, float] = field(default_factory=dict)


class Verdict(NamedTuple):
    """A filter's score of one cut-out (NaN: none), and whether it lets it pass."""

    score: float
    passed: bool


class InstanceFilter(Protocol):
    """One check.

    Attributes:
        name: of its score in the pool, and of the reason of a drop.
    """

    name: str

    def check(self, group: Sequence[Candidate]) -> list[Verdict]:
        """A verdict on each cut-out of a group (of one category), in order."""
        ...


class _ShareFilter(ABC):
    """A check of where the object lies in its image, by some share of it.

    Cut-outs that come finished have no image around them, and pass.
    """

    minimum = 0.0
    maximum: float

    @abstractmethod
    def share(self, mask: np.ndarray) -> float:
        """What is compared with the bounds; ``mask`` is (H, W) bool."""

    def check(self, group: Sequence[Candidate]) -> list[Verdict]:
        """See :class:`InstanceFilter`."""
        verdicts = []
        for candidate in group:
            if candidate.image.finished:
                verdicts.append(Verdict(math.nan, True))
                continue
            share = self.share(candidate.mask)
            verdicts.append(Verdict(share, self.minimum <= share <= self.maximum))
        return verdicts


class AreaFilter(_ShareFilter):
    """The object covers neither too little nor too much of the image.

    The score is the share of the image's pixels.

    Args:
        minimum, maximum: bounds of the share, inclusive (published: 0.05 and 0.95).
    """

    name = "area"

    def __init__(self, minimum: float = 0.05, maximum: float = 0.95) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def share(self, mask: np.ndarray) -> float:
        return float(mask.mean())


class TruncationFilter(_ShareFilter):
    """The object is not cut off by the border of the image.

    The score is the share of the object's outline that lies on the border.

    Args:
        maximum: the largest share that passes. Above 0, since a tip that just touches is no harm.
    """

    name = "truncated"

    def __init__(self, maximum: float = 0.05) -> None:
        self.maximum = maximum

    def share(self, mask: np.ndarray) -> float:
        return border_share(mask)


def border_share(mask: np.ndarray) -> float:
    """The share of a mask's outline that lies on the image's border, counted in pixel edges.

    Args:
        mask: (H, W) bool.

    Returns:
        0 .. 1; 0 for an empty mask.

    Example:
        >>> mask = np.zeros((4, 4), bool)
        >>> mask[1:3, :2] = True  # 2 x 2 pixels, 8 edges, of which 2 on the left border
        >>> border_share(mask)
        0.25
    """
    on_border = sum(int(side.sum()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    inside = int((mask[1:] != mask[:-1]).sum()) + int((mask[:, 1:] != mask[:, :-1]).sum())
    return on_border / (on_border + inside) if on_border else 0.0
