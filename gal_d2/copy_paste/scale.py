"""How large a cut-out is pasted: drawn from the sizes of its class, and resized."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from gal_d2.copy_paste.augmentation import Frame
from gal_d2.copy_paste.options import SOFT_BLENDS, PasteOptions
from gal_d2.copy_paste.resize import crop_to_foreground, resize_cutout, resize_opacity
from gal_d2.datasets.statistics import CategoryStatistics
from gal_d2.errors import UserError


def class_scales(statistics: Sequence[CategoryStatistics]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of sqrt(relative area) by class, over all training sets.

    A class without an instance has the mean and the deviation of all instances together.

    Raises:
        UserError: there is no instance at all.
    """
    counts = np.stack([part.instance_count for part in statistics]).astype(np.float64)
    if counts.sum() == 0:
        raise UserError("DATASETS.TRAIN has no annotated objects: pastes cannot be sized.")
    means = np.nan_to_num(np.stack([part.scale_mean for part in statistics]))
    squares = np.nan_to_num(np.stack([part.scale_std for part in statistics])) ** 2 + means**2
    total = counts.sum(axis=0)
    weights = counts / np.maximum(total, 1)
    overall = total / total.sum()
    mean, square = (weights * means).sum(axis=0), (weights * squares).sum(axis=0)
    is_missing = total == 0
    mean[is_missing], square[is_missing] = overall @ mean, overall @ square
    return mean, np.sqrt(np.maximum(square - mean**2, 0))


def draw_size(
    shape: tuple[int, int],
    foreground: int,
    scale: tuple[float, float],
    frame: Frame,
    options: PasteOptions,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """The size at which a cut-out is pasted.

    sqrt(foreground pixels) is drawn as Normal(mean, std) * sqrt(frame.full_area), clipped to
    [min_size, max_relative_size * sqrt(area of the region)]. Then the aspect ratio is jittered at
    constant area, and a box that is longer than the region (a thin object) is shrunk to fit.

    Args:
        shape: (height, width) of the cut-out, cropped to its foreground.
        foreground: how many of its pixels are at least half opaque; above 0.
        scale: mean and standard deviation of sqrt(relative area) of the class.
        frame: where the scene is in the image.
        options: size limits and aspect jitter.
        rng: source of randomness; two numbers are drawn.

    Returns:
        (height, width) in pixels, each at least 1.

    Example:
        >>> from gal_d2.copy_paste.masks import Box
        >>> frame = Frame(region=Box(0, 0, 400, 300), full_area=400 * 300)
        >>> exact = PasteOptions(aspect_jitter=0.0)
        >>> draw_size((50, 50), 2500, (0.2, 0.0), frame, exact, np.random.default_rng(0))
        (69, 69)
    """
    region = frame.region
    upper = options.max_relative_size * math.sqrt(region.width * region.height)
    lower = min(options.min_size, upper)
    target = rng.normal(*scale) * math.sqrt(frame.full_area)
    target = min(max(target, lower), upper)
    aspect = rng.uniform(1 - options.aspect_jitter, 1 + options.aspect_jitter)

    factor = target / math.sqrt(foreground)
    height = shape[0] * factor / math.sqrt(aspect)
    width = shape[1] * factor * math.sqrt(aspect)
    shrink = min(1.0, region.height / height, region.width / width)
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def draw_sized(
    rgba: np.ndarray,
    scale: tuple[float, float],
    frame: Frame,
    options: PasteOptions,
    rng: np.random.Generator,
    *,
    bgr: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Draw size and flip of a cut-out and bring it there; arguments as for :func:`prepare_paste`.

    Three numbers are drawn for a usable cut-out.

    Returns:
        Colour, uint8 (h, w, 3), alpha, uint8 (h, w), and opacity as for :func:`place`; None if the
        cut-out is empty.
    """
    cropped, foreground = crop_to_foreground(rgba)
    if foreground == 0:
        return None
    size = draw_size(cropped.shape[:2], foreground, scale, frame, options, rng)
    is_flipped = rng.random() < options.flip_prob
    color, alpha = resize_cutout(cropped, size)
    opacity = resize_opacity(cropped, size) if options.blend in SOFT_BLENDS else None
    if is_flipped:
        color, alpha = cv2.flip(color, 1), cv2.flip(alpha, 1)
        opacity = None if opacity is None else cv2.flip(opacity, 1)
    if bgr:
        color = cv2.cvtColor(color, cv2.COLOR_RGB2BGR)
    return color, alpha, opacity
