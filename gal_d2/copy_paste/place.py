"""Where a cut-out comes to lie: drawn uniformly, cut off at the border of the scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from gal_d2.copy_paste.augmentation import Frame
from gal_d2.copy_paste.masks import Box, LocalMask, tighten
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.scale import draw_sized
from gal_d2.pool.usable import FOREGROUND_ALPHA


@dataclass(frozen=True, eq=False)
class Placement:
    """A cut-out at its final size and place.

    Attributes:
        box: window of the whole cut-out; parts of it may lie outside the image.
        color: uint8 (h, w, 3), of the box's size, in the image's channel order.
        alpha: uint8 (h, w), the share of foreground in each pixel.
        mask: the pixels with alpha of at least one half that are in the image.
        opacity: uint8 (h, w), how opaque each pixel is, for blends that are soft; None: ``alpha``.
    """

    box: Box
    color: np.ndarray
    alpha: np.ndarray
    mask: LocalMask
    opacity: np.ndarray | None = None


def draw_position(
    size: tuple[int, int], region: Box, rng: np.random.Generator, *, inside: bool = False
) -> tuple[int, int]:
    """Top left pixel (x0, y0) of a box of ``size`` (height, width), its centre uniform in region.

    The box may reach out of the region by up to half of its size; with ``inside`` it does not (a
    box as large as the region or smaller), and its place is uniform among those.
    """
    if inside:
        room_x, room_y = region.width - size[1], region.height - size[0]
        return (
            region.x0 + int(rng.integers(max(room_x, 0), endpoint=True)),
            region.y0 + int(rng.integers(max(room_y, 0), endpoint=True)),
        )
    x = rng.uniform(region.x0, region.x1)
    y = rng.uniform(region.y0, region.y1)
    return math.floor(x - size[1] / 2), math.floor(y - size[0] / 2)


def draw_free_position(
    size: tuple[int, int],
    region: Box,
    taken: Sequence[Box],
    rng: np.random.Generator,
    *,
    gap: int = 0,
) -> tuple[int, int] | None:
    """Top left pixel (x0, y0) of a box that lies in the region and beside all boxes ``taken``.

    Args:
        size: (height, width).
        region: of the image.
        taken: not empty ones.
        rng: draws one number.
        gap: pixels that are left free between two boxes.

    Returns:
        Uniform among all such places; None if there is none.
    """
    height, width = size
    if height > region.height or width > region.width:
        return None
    free = np.ones((region.height - height + 1, region.width - width + 1), np.uint8)
    for box in taken:
        x0, y0, x1, y1 = box.grow(gap).shift(-region.x0, -region.y0)
        free[max(y0 - height + 1, 0) : max(y1, 0), max(x0 - width + 1, 0) : max(x1, 0)] = 0
    in_row = cv2.reduce(free, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0]
    ends = in_row.cumsum()  # of the rows, in the list of free places
    if ends[-1] == 0:
        return None
    chosen = rng.integers(ends[-1])
    y = int(np.searchsorted(ends, chosen, side="right"))
    x = int(np.flatnonzero(free[y])[chosen - ends[y]])  # a negative index: from the row's end
    return region.x0 + x, region.y0 + y


def place(
    color: np.ndarray,
    alpha: np.ndarray,
    x0: int,
    y0: int,
    region: Box,
    opacity: np.ndarray | None = None,
) -> Placement | None:
    """Put a cut-out of final size into the image; nothing is drawn yet.

    Args:
        color: uint8 (h, w, 3), in the image's channel order.
        alpha: uint8 (h, w).
        x0, y0: where its top left pixel comes to lie; may be outside the region.
        region: the part of the image to paste into; what is outside is cut off.
        opacity: uint8 (h, w), for soft blends; None: ``alpha``.

    Returns:
        The placement; None if none of its half-opaque pixels is in the region.
    """
    box = Box(x0, y0, x0 + alpha.shape[1], y0 + alpha.shape[0])
    inside = box.intersect(region)
    if inside.is_empty:
        return None
    window = alpha[inside.shift(-x0, -y0).slices]
    mask = tighten(inside.x0, inside.y0, window >= FOREGROUND_ALPHA)
    return None if mask is None else Placement(box, color, alpha, mask, opacity)


def prepare_paste(
    rgba: np.ndarray,
    scale: tuple[float, float],
    frame: Frame,
    options: PasteOptions,
    rng: np.random.Generator,
    *,
    bgr: bool = False,
) -> Placement | None:
    """Draw size, flip and position of a cut-out and bring it there.

    Five numbers are drawn for a usable cut-out. See :func:`draw_size` and :func:`draw_position`.

    Args:
        rgba: uint8 (H, W, 4), R, G, B and alpha.
        scale: mean and standard deviation of sqrt(relative area) of the class.
        frame: where the scene is in the image.
        options: what the draws depend on.
        rng: source of randomness.
        bgr: the image's channels are B, G, R.

    Returns:
        The placement; None if the cut-out is empty or nothing of it is in the image.
    """
    sized = draw_sized(rgba, scale, frame, options, rng, bgr=bgr)
    if sized is None:
        return None
    color, alpha, opacity = sized
    x0, y0 = draw_position(alpha.shape, frame.region, rng)
    return place(color, alpha, x0, y0, frame.region, opacity)
