"""The augmentation of the scene, before anything is pasted into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from gal_d2.copy_paste.masks import Box
from gal_d2.errors import UserError

AUGMENTATIONS = ("lsj", "resize", "none")


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The base augmentations that ``GAL.DATA.AUGMENTATION`` names.

    - "lsj": large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste"), in ViTDet's order: flip,
      scale, then crop or pad to a square. The flip comes first so that padding is always at the
      right and the bottom, as it is at test time.
    - "resize": detectron2's ``INPUT.MIN_SIZE_TRAIN`` rules, with ``INPUT.CROP``.
    - "none": the image as it is.

    Raises:
        UserError: a key has a value that makes no sense.
    """
    name = cfg.GAL.DATA.AUGMENTATION
    if name == "lsj":
        return _large_scale_jitter(cfg)
    if name == "resize":
        return build_resize(cfg)
    if name == "none":
        return []
    raise UserError(
        f"GAL.DATA.AUGMENTATION is '{name}'; it must be one of {', '.join(AUGMENTATIONS)}."
    )


def build_resize(cfg: CfgNode) -> list[T.Augmentation]:
    """What detectron2's own mapper does to a training image: ``INPUT`` says."""
    augmentations = utils.build_augmentation(cfg, True)
    if cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return augmentations


def build_probe_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The size that training images have, without chance: no object is cropped away.

    - "lsj": scaled to fit the square of ``GAL.DATA.LSJ.IMAGE_SIZE``, then padded to it.
    - "resize": as at test time, ``INPUT.MIN_SIZE_TEST``.
    - "none": the image as it is.
    """
    name = cfg.GAL.DATA.AUGMENTATION
    if name == "lsj":
        size = cfg.GAL.DATA.LSJ.IMAGE_SIZE
        return [T.ResizeScale(1.0, 1.0, size, size), T.FixedSizeCrop((size, size))]
    return utils.build_augmentation(cfg, False) if name == "resize" else []


def _large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    size = cfg.GAL.DATA.LSJ.IMAGE_SIZE
    low, high = cfg.GAL.DATA.LSJ.MIN_SCALE, cfg.GAL.DATA.LSJ.MAX_SCALE
    if size < 1:
        raise UserError(f"GAL.DATA.LSJ.IMAGE_SIZE is {size}; it must be at least 1 pixel.")
    if not 0 < low <= high:
        raise UserError(
            f"GAL.DATA.LSJ.MIN_SCALE is {low} and MAX_SCALE {high}; "
            "they must be positive, and the first not above the second."
        )
    augmentations: list[T.Augmentation] = []
    direction = cfg.INPUT.RANDOM_FLIP
    if direction != "none":
        augmentations.append(
            T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")
        )
    augmentations.append(T.ResizeScale(low, high, size, size))
    augmentations.append(T.FixedSizeCrop((size, size)))
    return augmentations


@dataclass(frozen=True)
class Frame:
    """Where the original image is in an augmented one.

    Attributes:
        region: the part of the augmented image that shows the original: it leaves out padding.
        full_area: area in pixels that the *whole* original image has at the augmented scale, the
            part that was cropped away included. Statistics of relative area refer to it, so that
            a paste is as large as a real object of its class is under the same augmentation.

    Example: a 640 x 480 image under large-scale jitter to 640 x 640. At scale 0.5 it is 320 x 240
    in the top left corner: that is its region, and ``full_area`` is 320 * 240. At scale 2 it is
    1280 x 960, of which 640 x 640 are cropped: the region is everything, ``full_area`` 1280 * 960.
    """

    region: Box
    full_area: float


def locate(transforms: T.Transform, original: tuple[int, int], augmented: tuple[int, int]) -> Frame:
    """Follow the corners of the original image through the transforms.

    Args:
        transforms: what the augmentations did to the image.
        original: (height, width) before.
        augmented: (height, width) after.
    """
    height, width = original
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
    x, y = transforms.apply_coords(corners).T
    # Shoelace, relative to the first corner.
    x0, y0 = x - x[0], y - y[0]
    area = 0.5 * abs(float(np.dot(x0, np.roll(y0, -1)) - np.dot(y0, np.roll(x0, -1))))
    quad = Box(
        round(float(x.min())), round(float(y.min())), round(float(x.max())), round(float(y.max()))
    )
    return Frame(quad.intersect(Box(0, 0, augmented[1], augmented[0])), area)
