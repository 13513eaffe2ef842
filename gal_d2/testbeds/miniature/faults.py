"""What can be the matter with the miniature's candidates: which kinds, how many, how they look.

The default pool has wrong objects, noise and misplaced masks, of which
:mod:`gal_d2.testbeds.miniature.objects` makes the last two; the other faults are for pools that no
default was chosen on. All functions are pure but for the generator that they draw from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import crop_to_alpha

# By kind, as the truth file names it, the option that says its share.
FAULTS = {
    "wrong_object": "wrong",
    "noise": "noise",
    "misplaced_mask": "misplaced",
    "blur": "blur",
    "colour": "colour",
    "cut_off": "cut_off",
    "two_objects": "two_objects",
}
KINDS = ("good", *FAULTS)

_REMOVED = (0.35, 0.6)  # of the extent, when a part is cut off
_OVERLAP = (0.0, 0.25)  # of the smaller of two objects, along the side where they meet
_AXIS_SHIFT = 0.3  # of the smaller of them, at most, across it
_TURNS = 1.5  # of the colour wheel, from dark to light


# ------------------------------------------------------------------------------------ how many


def fault_shares(
    shares: Mapping[str, float],
    ambiguous: Sequence[bool],
    ambiguous_wrong: float,
    bad: float | None = None,
) -> np.ndarray:
    """Share of each fault in each category's candidates: (categories, faults) float64.

    Args:
        shares: by option of ``FAULTS``, in categories that are not ambiguous.
        ambiguous: by category.
        ambiguous_wrong: share of wrong objects in ambiguous categories, where it is above
            ``shares["wrong"]``; the other faults keep their proportion among the others.
        bad: share of bad candidates over all categories: the bad ones are made fewer in
            proportion, or the good ones, until it is reached. None: as the shares have it.

    Raises:
        UserError: there shall be bad candidates, and every share is 0.

    Example:
        >>> shares = dict.fromkeys(FAULTS.values(), 0.0) | {"wrong": 0.5}
        >>> fault_shares(shares, [False, True], 0.7)[:, 0].tolist()
        [0.5, 0.7]
        >>> fault_shares(shares, [False, True], 0.7, bad=0.3)[:, 0].round(2).tolist()
        [0.25, 0.35]
        >>> fault_shares(shares, [False, True], 0.7, bad=0.8)[:, 0].round(2).tolist()
        [0.75, 0.85]
    """
    table = []
    for is_ambiguous in ambiguous:
        wrong, others = shares["wrong"], 1.0
        if is_ambiguous:
            wrong = max(wrong, ambiguous_wrong)
            others = (1 - wrong) / (1 - shares["wrong"]) if shares["wrong"] < 1 else 0.0
        rest = [others * shares[option] for option in FAULTS.values() if option != "wrong"]
        table.append([wrong, *rest])
    found = np.array(table)
    if bad is None:
        return found
    total = found.sum(axis=1)
    mean = total.mean()
    if mean == 0:
        if bad == 0:
            return found
        raise UserError(
            f"bad is {bad:g}, but the share of every fault is 0: say what is the matter with the "
            "bad ones, as in --wrong 0.3."
        )
    if bad <= mean:
        return found * (bad / mean)
    wanted = 1 - (1 - total) * ((1 - bad) / (1 - mean))
    return found * (wanted / np.maximum(total, 1e-12))[:, None]


def kind_counts(shares: np.ndarray, total: int) -> list[int]:
    """How many candidates of each of ``KINDS``; rounded, the rest is good.

    Args:
        shares: (faults,), of one category.
        total: number of its candidates.
    """
    # Rounded cumulatively, so that the counts never exceed the total.
    bounds = np.round(np.cumsum(shares) * total).astype(int)
    bad = np.diff(bounds, prepend=0)
    return [total - int(bad.sum()), *bad.tolist()]


# -------------------------------------------------------------------------------- how they look


def blur(rgba: np.ndarray, sigma: float) -> np.ndarray:
    """Blur the colour of a cut-out (h, w, 4) uint8 by ``sigma`` px; its outline stays sharp."""
    weight = rgba[..., 3:].astype(np.float32) / 255
    colour = cv2.GaussianBlur(rgba[..., :3] * weight, (0, 0), sigma)
    weight = cv2.GaussianBlur(weight[..., 0], (0, 0), sigma)[..., None]
    blurred = rgba.copy()
    blurred[..., :3] = np.clip(colour / np.maximum(weight, 1e-3), 0, 255).round()
    return blurred


def false_colours(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let the hue of a cut-out (h, w, 4) uint8 run through the colour wheel with its brightness.

    Objects are tinted at random, so another hue for the whole would be no fault.
    """
    light = rgba[..., :3].max(axis=2).astype(np.float32) / 255
    hue = (rng.uniform(0, 360) + _TURNS * 360 * light) % 360
    saturation, value = np.full_like(light, 0.85), 0.3 + 0.7 * light
    hsv = np.dstack([hue, saturation, value])
    changed = rgba.copy()
    changed[..., :3] = (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).round()
    return changed


def cut_off(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a third to a half off a cut-out (h, w, 4) uint8, at one side, along a straight line."""
    turns = int(rng.integers(4))
    turned = np.rot90(rgba, turns)
    left = max(1, round((1 - rng.uniform(*_REMOVED)) * len(turned)))
    return np.ascontiguousarray(crop_to_alpha(np.rot90(turned[:left], -turns)))


def put_together(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two cut-outs as one, the first a little over the second, beside or below it.

    Args:
        first, second: (h, w, 4) uint8.
        rng: gives the side where they meet, and how they are shifted.

    Returns:
        (H, W, 4) uint8: what lies beneath both masks.
    """
    axis = int(rng.integers(2))  # they meet along it
    first_after = bool(rng.random() < 0.5)
    sizes = np.array([first.shape[:2], second.shape[:2]])
    smaller = sizes.min(axis=0)
    before = sizes[1 if first_after else 0][axis]
    offset = np.zeros(2, int)  # from the one in front of the axis to the one behind
    offset[axis] = before - round(rng.uniform(*_OVERLAP) * smaller[axis])
    offset[1 - axis] = round(rng.uniform(-_AXIS_SHIFT, _AXIS_SHIFT) * smaller[1 - axis])
    corners = np.zeros((2, 2), int)
    corners[0 if first_after else 1] = offset
    corners -= corners.min(axis=0)
    height, width = (corners + sizes).max(axis=0)
    canvas = np.zeros((height, width, 4), np.float32)
    for rgba, (top, left) in ((second, corners[1]), (first, corners[0])):
        part = canvas[top : top + rgba.shape[0], left : left + rgba.shape[1]]
        over = rgba[..., 3:].astype(np.float32) / 255
        under = part[..., 3:] * (1 - over)
        alpha = over + under
        part[..., :3] = (over * rgba[..., :3] + under * part[..., :3]) / np.maximum(alpha, 1e-6)
        part[..., 3:] = alpha
    canvas[..., 3] *= 255
    return crop_to_alpha(canvas.round().astype(np.uint8))
