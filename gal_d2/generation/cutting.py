"""From a soft mask to a cut-out: threshold, largest component, hole filling, tight crop."""

from __future__ import annotations

import cv2
import numpy as np

from gal_d2.pool.cut_out import crop_to_alpha
from gal_d2.pool.usable import FOREGROUND_ALPHA

_EDGE = 2  # width of an object's soft edge, in pixels


def clean_mask(
    alpha: np.ndarray, *, threshold: int = FOREGROUND_ALPHA, fill_holes: bool = True
) -> np.ndarray:
    """The one object in a soft mask.

    Args:
        alpha: (H, W) uint8.
        threshold: a pixel belongs to the object from this alpha on.
        fill_holes: pixels that the object encloses (4-connected) belong to it.

    Returns:
        (H, W) bool: the largest 8-connected component, of equals the one that begins first;
        all False where nothing reaches the threshold.
    """
    mask = (alpha >= threshold).astype(np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count == 1:
        return np.zeros(alpha.shape, bool)
    largest = labels == 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return _filled(largest) if fill_holes else largest


def _filled(mask: np.ndarray) -> np.ndarray:
    # Background that a frame around the image reaches lies outside, the rest is holes.
    outside = np.pad((~mask).astype(np.uint8), 1, constant_values=1)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    return labels[1:-1, 1:-1] != labels[0, 0]


def cut_out(rgb: np.ndarray, mask: np.ndarray, matte: np.ndarray | None = None) -> np.ndarray:
    """The object as (h, w, 4) uint8 RGBA, cropped to what is visible of it.

    Args:
        rgb: (H, W, 3) uint8.
        mask: (H, W) bool, not empty: the object.
        matte: (H, W) uint8, opacity: the alpha channel then keeps it on the object and on its edge,
            for blends that are soft. The object stays what has an alpha of ``FOREGROUND_ALPHA`` or
            more. None: alpha is 255 on the object, 0 elsewhere.
    """
    alpha = mask.astype(np.uint8) * np.uint8(255)
    if matte is not None:
        # A hole that was filled is object, whatever the matte says.
        inside = np.where(matte >= FOREGROUND_ALPHA, matte, 255)
        near = cv2.dilate(alpha, np.ones((3, 3), np.uint8), iterations=_EDGE) > 0
        edge = np.where(near, np.minimum(matte, FOREGROUND_ALPHA - 1), 0)
        alpha = np.where(mask, inside, edge).astype(np.uint8)
    return np.ascontiguousarray(crop_to_alpha(np.dstack((rgb, alpha))))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """A cut-out (H, W, 4) in the middle of a white square, as (S, S, 3) uint8.

    That is what CLIP and vision-language models are shown: square, so that their preprocessing
    crops nothing away, and with a margin of a tenth.
    """
    height, width = rgba.shape[:2]
    side = max(height, width)
    side += 2 * max(1, round(0.1 * side))
    alpha = rgba[..., 3:].astype(np.float32) / 255
    blended = rgba[..., :3] * alpha + 255 * (1 - alpha)
    canvas = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = np.round(blended).astype(np.uint8)
    return canvas
