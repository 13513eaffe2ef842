"""How large a cut-out is stored: no larger than its class can be pasted.

To decode cut-outs is most of what pastes cost, and a pixel that is averaged away at every paste
need not be decoded.
"""

from __future__ import annotations

import logging
import math

import cv2
import numpy as np
from detectron2.config import CfgNode

from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.scale import class_scales
from gal_d2.datasets.annotation_file import read_annotation_file
from gal_d2.datasets.registration import load_metadata
from gal_d2.datasets.statistics import CategoryStatistics, category_statistics, compute_statistics
from gal_d2.errors import UserError
from gal_d2.pool.usable import foreground_threshold, problem_of

logger = logging.getLogger(__name__)

_DEVIATIONS = 3.0  # above the mean of a class's sizes: one paste in a thousand is larger


def largest_pastes(cfg: CfgNode) -> dict[int, float]:
    """By category id, sqrt of the foreground pixels that a paste of it needs at most.

    The mean and three standard deviations of the sizes of its real objects, in the largest image
    that training makes; clipped as a paste is, and with room for the jitter of its aspect.

    Args:
        cfg: the whole config: the training set, its augmentation and ``GAL.COPY_PASTE``.

    Returns:
        Empty where it is not known: training images have no largest size, or no annotated objects,
        or the annotations cannot be read, which generation can do without.

    Raises:
        UserError: an option of ``GAL.COPY_PASTE`` is out of range.
    """
    options = PasteOptions.from_config(cfg)
    sides = _largest_image(cfg)
    if sides is None:
        return {}
    try:
        category_ids, statistics = _statistics(cfg)
    except UserError as error:
        logger.warning(
            "Cut-outs are stored as they are cut, not as small as they are pasted: %s", error
        )
        return {}
    if not any(part.instance_count.any() for part in statistics):
        return {}
    pixels = needed(*class_scales(statistics), *sides, options)
    logger.info(
        "Cut-outs are stored no larger than they are pasted at images of %.0f px: at sqrt(pixels) "
        "of %.0f to %.0f by category. Generate with the largest images that you will train with.",
        sides[1],
        pixels.min(),
        pixels.max(),
    )
    return dict(zip(category_ids, pixels.tolist(), strict=True))


def needed(
    mean: np.ndarray, std: np.ndarray, whole: float, region: float, options: PasteOptions
) -> np.ndarray:
    """By class, (C,) float64: sqrt of the foreground pixels that its pastes need at most.

    Args:
        mean, std: (C,) of sqrt(relative area) of its real objects.
        whole, region: of the largest training image, sqrt(area) in pixels of all of it, and of what
            is left of that when it is cropped.
        options: of pasting.
    """
    stretch = max(1 / math.sqrt(1 - options.aspect_jitter), math.sqrt(1 + options.aspect_jitter))
    pixels = (mean + _DEVIATIONS * std) * whole
    # One step after the other: an image may be smaller than the smallest paste.
    pixels = pixels.clip(options.min_size).clip(max=options.max_relative_size * region)
    return stretch * pixels


def _largest_image(cfg: CfgNode) -> tuple[float, float] | None:
    """``whole`` and ``region`` of :func:`needed`; None: an image may have any size."""
    if cfg.GAL.DATA.AUGMENTATION == "lsj":
        side = cfg.GAL.DATA.LSJ.IMAGE_SIZE
        return (max(1.0, cfg.GAL.DATA.LSJ.MAX_SCALE) * side, side) if side >= 1 else None
    if cfg.GAL.DATA.AUGMENTATION == "resize":
        shorter = max(cfg.INPUT.MIN_SIZE_TRAIN, default=0)
        if shorter > 0 and not cfg.INPUT.CROP.ENABLED:
            side = math.sqrt(shorter * cfg.INPUT.MAX_SIZE_TRAIN)
            return side, side
    return None


def _statistics(cfg: CfgNode) -> tuple[list[int], list[CategoryStatistics]]:
    """Of each training set, and the category ids of their classes."""
    if cfg.GAL.DATA.TRAIN:  # registered where a training begins
        content = read_annotation_file(cfg.GAL.DATA.TRAIN[0], annotated_only=True)
        return [category.id for category in content.categories], [compute_statistics(content)]
    names = cfg.DATASETS.TRAIN
    class_of = load_metadata(names[0]).thing_dataset_id_to_contiguous_id if names else {}
    return sorted(class_of), [category_statistics(name) for name in names]


def reduced(rgba: np.ndarray, largest: float) -> np.ndarray:
    """A cut-out with no more foreground than is needed; it is never enlarged.

    Pixels are averages over areas, those of the object weighted by their opacity, so that the
    background does not mix into its edge. A mask without soft pixels has none afterwards either.

    Args:
        rgba: (H, W, 4) uint8.
        largest: sqrt of the foreground pixels that are needed.

    Returns:
        ``rgba`` itself where it has no more than that, or where nothing would be left of it.
    """
    alpha = cv2.extractChannel(rgba, 3)
    foreground = cv2.countNonZero(cv2.inRange(alpha, foreground_threshold(alpha), 255))
    if foreground <= largest**2:
        return rgba
    factor = largest / math.sqrt(foreground)
    height, width = (math.ceil(side * factor) for side in alpha.shape)

    def averaged(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    weight = alpha.astype(np.float32) / 255
    color = rgba[..., :3].astype(np.float32)
    of_object, opacity = averaged(color * weight[..., None]), averaged(weight)
    # What lies under transparent pixels is kept as well: Poisson blending looks at it.
    is_seen = opacity[..., None] > 0
    color = np.where(is_seen, of_object / np.where(is_seen, opacity[..., None], 1), averaged(color))
    if not cv2.countNonZero(cv2.inRange(alpha, 1, 254)):
        opacity = opacity >= 0.5
    result = np.round(np.dstack((color, 255 * opacity))).astype(np.uint8)
    return rgba if problem_of(result) else result
