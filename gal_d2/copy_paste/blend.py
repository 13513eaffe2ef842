"""How a placed cut-out is drawn into the image: a hard edge, a feathered one, or seamless."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from gal_d2.copy_paste.masks import Box
from gal_d2.copy_paste.place import Placement
from gal_d2.copy_paste.resize import divide_by_weight, foreground_mask
from gal_d2.pool.usable import FOREGROUND_ALPHA

FEATHER_SIGMA = 1.0
"""Standard deviation of the Gaussian that makes a soft edge, pixels."""


def blend_basic(image: np.ndarray, placement: Placement, region: Box) -> None:
    """Copy the pixels of the mask; a hard edge."""
    mask = placement.mask
    window = image[mask.box.slices]
    color = placement.color[_inside(placement, mask.box)]
    window[...] = cv2.copyTo(color, _as_uint8(mask.bitmap), window)


def _inside(placement: Placement, window: Box) -> tuple[slice, slice]:
    """Where a window of the image is in the arrays of a cut-out."""
    return window.shift(-placement.box.x0, -placement.box.y0).slices


def blend_feather(image: np.ndarray, placement: Placement, region: Box) -> None:
    """Mix by opacity, smoothed with a Gaussian of ``FEATHER_SIGMA`` pixels.

    A soft alpha channel stays soft: what is half transparent lets the scene through. Outside the
    mask the object has the mean colour of its pixels nearby.
    """
    margin = math.ceil(3 * FEATHER_SIGMA)
    side = 2 * margin + 1
    # Only what is near the visible part, with a margin of transparent pixels to fade out in.
    used = placement.mask.box.grow(2 * margin).intersect(placement.box)
    window = used.grow(margin)
    border = (margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    alpha = cv2.copyMakeBorder(placement.alpha[_inside(placement, used)], *border)
    opacity = alpha
    if placement.opacity is not None:
        opacity = cv2.copyMakeBorder(placement.opacity[_inside(placement, used)], *border)
    color = cv2.copyMakeBorder(placement.color[_inside(placement, used)], *border)

    foreground = foreground_mask(alpha, FOREGROUND_ALPHA)
    masked = cv2.merge((color, foreground))
    masked = cv2.bitwise_and(masked, masked, mask=foreground)
    nearby, _ = divide_by_weight(cv2.blur(masked, (side, side)))
    cv2.copyTo(color, foreground, nearby)
    weight = cv2.GaussianBlur(opacity, (side, side), FEATHER_SIGMA).astype(np.float32)
    weight *= np.float32(1 / 255)

    target_window = window.intersect(region)
    crop = target_window.shift(-window.x0, -window.y0).slices
    target = image[target_window.slices]
    target[...] = cv2.blendLinear(nearby[crop], target, weight[crop], 1 - weight[crop])


def blend_poisson(image: np.ndarray, placement: Placement, region: Box) -> None:
    """Keep the object's gradients and take the colour at its edge from the scene (Perez 2003).

    The scene must surround the object: at a border of the region, and for objects of less than
    three pixels, the feathered blend takes over.
    """
    mask = placement.mask
    margin = 2
    window = mask.box.grow(margin)
    if window.intersect(region) != window or min(mask.box.width, mask.box.height) < 3:
        blend_feather(image, placement, region)
        return
    border = (margin, margin, margin, margin)
    color = cv2.copyMakeBorder(
        placement.color[_inside(placement, mask.box)], *border, cv2.BORDER_REPLICATE
    )
    bitmap = cv2.copyMakeBorder(_as_uint8(mask.bitmap) * 255, *border, cv2.BORDER_CONSTANT)
    center = (margin + mask.box.width // 2, margin + mask.box.height // 2)
    scene = np.ascontiguousarray(image[window.slices])
    try:
        # It writes into the mask that it is given (opencv/opencv#12053).
        cloned = cv2.seamlessClone(color, scene, bitmap.copy(), center, cv2.NORMAL_CLONE)
    except cv2.error:  # masks whose eroded inside is empty
        blend_feather(image, placement, region)
        return
    image[window.slices] = cv2.copyTo(cloned, bitmap, scene)


Blend = Callable[[np.ndarray, Placement, Box], None]
BLEND_FUNCTIONS: dict[str, Blend] = {
    "basic": blend_basic,
    "feather": blend_feather,
    "poisson": blend_poisson,
}


def _as_uint8(bitmap: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bitmap).view(np.uint8)
