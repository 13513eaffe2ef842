"""The pixels of a cut-out: what is foreground, and the same at another size."""

from __future__ import annotations

import math

import cv2
import numpy as np

from gal_d2.pool.usable import foreground_threshold


def crop_to_foreground(rgba: np.ndarray) -> tuple[np.ndarray, int]:
    """Take off the transparent margins.

    Args:
        rgba: uint8 (H, W, 4).

    Returns:
        A view of ``rgba``, tight around the pixels that belong to the object (those that are at
        least half opaque; see :func:`gal_d2.pool.usable.foreground_threshold`), and their number:
        0 if there are none.
    """
    foreground = foreground_mask(cv2.extractChannel(rgba, 3))
    x, y, width, height = cv2.boundingRect(foreground)
    return rgba[y : y + height, x : x + width], cv2.countNonZero(foreground)


def foreground_mask(alpha: np.ndarray, threshold: int | None = None) -> np.ndarray:
    """uint8 (H, W): 255 where a pixel belongs to the object, else 0.

    Args:
        alpha: uint8 (H, W).
        threshold: from which on it does; None: that of the cut-out,
            :func:`gal_d2.pool.usable.foreground_threshold`.
    """
    if threshold is None:
        threshold = foreground_threshold(alpha)
    return cv2.threshold(alpha, threshold - 1, 255, cv2.THRESH_BINARY)[1]


def resize_cutout(rgba: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resize the foreground of a cut-out; the background does not mix into its edges.

    Pixels of the object count as opaque, the others as transparent: the labels are binary masks
    too, and what an image holds under transparent pixels is arbitrary.

    Args:
        rgba: uint8 (H, W, 4), straight (not premultiplied) alpha.
        size: (height, width).

    Returns:
        Colour, uint8 (height, width, 3), 0 where no foreground is near; and alpha, uint8
        (height, width), the share of foreground in each new pixel.
    """
    foreground = foreground_mask(cv2.extractChannel(rgba, 3))
    masked = cv2.bitwise_and(rgba, rgba, mask=foreground)
    cv2.insertChannel(foreground, masked, 3)
    return divide_by_weight(_resize(masked, size))


def resize_opacity(rgba: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The alpha channel of a cut-out as it is, soft, at another size: uint8 (height, width).

    None where it has no pixel between transparent and opaque: then it is what
    :func:`resize_cutout` gives.
    """
    alpha = cv2.extractChannel(rgba, 3)
    if not cv2.countNonZero(cv2.inRange(alpha, 1, 254)):
        return None
    return _resize(alpha, size)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    # Bilinear. Shrinking by 2 and more ends with halvings, which are exact and fast.
    ratio = min(image.shape[0] / height, image.shape[1] / width)
    halvings = max(0, int(math.log2(ratio)))
    image = cv2.resize(image, (width << halvings, height << halvings))
    for step in range(halvings - 1, -1, -1):
        image = cv2.resize(image, (width << step, height << step), interpolation=cv2.INTER_AREA)
    return image


def divide_by_weight(averaged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour of the foreground, uint8 (H, W, 3), and its weight, uint8 (H, W).

    Args:
        averaged: uint8 (H, W, 4), an average of colour (0 in the background) and foreground.
    """
    weight = cv2.extractChannel(averaged, 3)
    color = cv2.cvtColor(averaged, cv2.COLOR_RGBA2RGB)
    return cv2.divide(color, cv2.merge((weight, weight, weight)), scale=255), weight  # 0 / 0 is 0
