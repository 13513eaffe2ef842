"""Which cut-outs can be pasted: the one definition that importer, filters, checks and mapper share.

A cut-out is usable if some of its pixels are at least half opaque: the threshold from which on a
pixel belongs to a pasted object's mask. The picture that it comes from must not be of one colour
all over, nor opaque from corner to corner, which is a photograph with its background. Of a cut-out
that is cropped to its object that means nothing any more: an object may fill its box.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import cv2
import numpy as np

FOREGROUND_ALPHA = 128  # a pixel belongs to a cut-out from this alpha on: half opaque

TRANSPARENT = "transparent"
FAINT = "faint"
BLANK = "blank"
OPAQUE = "opaque"

# By name of the problem, the sentence that a user reads.
PROBLEMS = {
    TRANSPARENT: "it is fully transparent (alpha is 0 everywhere)",
    FAINT: f"no pixel is half opaque (alpha {FOREGROUND_ALPHA} or more), so it can never be pasted",
    BLANK: "all of its pixels have one colour, so there is nothing to see",
    OPAQUE: "it is opaque from corner to corner: a picture with its background, not a cut-out",
}

# From this alpha on a pixel can be seen; below it is the haze that matting models leave.
VISIBLE_ALPHA = 32
# Of the visible pixels at least so many are half opaque, or the object is not what those show.
SLIVER_SHARE = 0.5
# Pixels whose channels differ by no more than this, of 255, are of one colour.
ONE_COLOR = 4


def problem_of(
    rgba: np.ndarray, *, is_picture: bool = False, allow_opaque: bool = False
) -> str | None:
    """Why a cut-out cannot be used: a key of :data:`PROBLEMS`, or None if it can.

    Args:
        rgba: uint8 (H, W, 4), R, G, B and alpha.
        is_picture: it is a whole picture, as it was drawn or saved, and not cropped to its object.
        allow_opaque: a picture that is opaque from corner to corner is meant as it is.

    Example:
        >>> rgba = np.zeros((2, 2, 4), np.uint8)
        >>> problem_of(rgba)
        'transparent'
        >>> rgba[..., 3] = 127
        >>> problem_of(rgba)
        'faint'
        >>> rgba[0, :, 3] = 128
        >>> problem_of(rgba, is_picture=True)
        'blank'
        >>> problem_of(rgba) is None
        True
    """
    low, high, _, _ = cv2.minMaxLoc(cv2.extractChannel(rgba, 3))
    if high == 0:
        return TRANSPARENT
    if high < FOREGROUND_ALPHA:
        return FAINT
    if is_picture and is_one_color(rgba):
        return BLANK
    if is_picture and not allow_opaque and low >= FOREGROUND_ALPHA:
        return OPAQUE
    return None


def is_one_color(image: np.ndarray) -> bool:
    """Whether an image has no contrast in any of its colour channels.

    What lies under transparent pixels counts as well: a flat drawing on another ground has a shape.

    Args:
        image: uint8 (H, W, 3 or 4); a fourth channel is not looked at.
    """
    return int(np.ptp(image[..., :3], axis=(0, 1)).max()) <= ONE_COLOR


def foreground_threshold(alpha: np.ndarray) -> int:
    """The alpha from which on a pixel belongs to this object.

    Half opaque; but where only a sliver of what can be seen reaches that (a glass and its rim, a
    dragonfly's body and its wings), the object is all that can be seen.

    Args:
        alpha: uint8 (H, W).
    """
    opaque = cv2.countNonZero(cv2.inRange(alpha, FOREGROUND_ALPHA, 255))
    if opaque == 0:
        return FOREGROUND_ALPHA
    visible = cv2.countNonZero(cv2.inRange(alpha, VISIBLE_ALPHA, 255))
    return VISIBLE_ALPHA if opaque < SLIVER_SHARE * visible else FOREGROUND_ALPHA


def is_sliver(rgba: np.ndarray) -> bool:
    """Whether less than half of what can be seen of a cut-out (H, W, 4) is half opaque."""
    return foreground_threshold(cv2.extractChannel(rgba, 3)) < FOREGROUND_ALPHA


@dataclass
class UsableCount:
    """How many of the cut-outs that were looked at can be pasted, and why the others cannot.

    Attributes:
        looked_at: how many there were.
        problems: number of cut-outs by key of :data:`PROBLEMS`.
        slivers: those of which only a sliver is opaque; they are usable.
        opaque: those that fill their whole rectangle; they are usable, too.
        one_color: those that are of one colour in all of it; the same.
    """

    looked_at: int = 0
    problems: Counter = field(default_factory=Counter)
    slivers: int = 0
    opaque: int = 0
    one_color: int = 0

    @property
    def unusable(self) -> int:
        """How many cannot be pasted."""
        return self.problems.total()

    def add(self, rgba: np.ndarray) -> str | None:
        """Count one cut-out of a pool; its problem, if it has one."""
        self.looked_at += 1
        problem = problem_of(rgba)
        if problem is not None:
            self.problems[problem] += 1
            return problem
        self.slivers += is_sliver(rgba)
        self.opaque += bool(rgba[..., 3].min() >= FOREGROUND_ALPHA)
        self.one_color += is_one_color(rgba)
        return None

    def merge(self, other: UsableCount) -> None:
        """Add another count to this one."""
        self.looked_at += other.looked_at
        self.problems += other.problems
        self.slivers += other.slivers
        self.opaque += other.opaque
        self.one_color += other.one_color

    def reasons(self) -> str:
        """The problems with their numbers, as a clause."""
        return describe_problems(self.problems)


def describe_problems(problems: Counter) -> str:
    """Names of problems with their numbers and meaning, the most frequent first.

    Example:
        >>> describe_problems(Counter(blank=2))
        '2 blank (all of its pixels have one colour: there is nothing to see)'
    """
    return "; ".join(
        f"{count:,} {name}" + (f" ({PROBLEMS[name]})" if name in PROBLEMS else "")
        for name, count in problems.most_common()
    )
