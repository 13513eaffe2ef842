"""Instance masks kept in local windows, and annotations rasterised straight into them.

A full-canvas mask per object is what makes copy-paste slow: an object covers a few per cent of its
image. Here a mask is its tight window and the pixels in it; the (N, H, W) array is written once,
at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from pycocotools import mask as mask_utils
from torch import Tensor

from gal_d2.pool.usable import FOREGROUND_ALPHA as FOREGROUND_ALPHA


class Box(NamedTuple):
    """A window in pixels, XYXY; right and bottom are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def is_empty(self) -> bool:
        return self.x1 <= self.x0 or self.y1 <= self.y0

    @property
    def slices(self) -> tuple[slice, slice]:
        """``array[box.slices]`` is the window's view of an (H, W, ...) array."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def intersect(self, other: Box) -> Box:
        """The common window; empty if there is none."""
        return Box(
            max(self.x0, other.x0),
            max(self.y0, other.y0),
            min(self.x1, other.x1),
            min(self.y1, other.y1),
        )

    def grow(self, margin: int) -> Box:
        """The window with ``margin`` more pixels on each side."""
        return Box(self.x0 - margin, self.y0 - margin, self.x1 + margin, self.y1 + margin)

    def shift(self, dx: int, dy: int) -> Box:
        """The window moved by (dx, dy)."""
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)


@dataclass(frozen=True, eq=False)
class LocalMask:
    """A non-empty mask: ``bitmap`` (bool, (h, w)) is what it is inside its tight box.

    Make one with :func:`tighten`, which sees to it that the box is tight.
    """

    box: Box
    bitmap: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.bitmap))


def tighten(x0: int, y0: int, bitmap: np.ndarray) -> LocalMask | None:
    """The mask whose window's top left pixel is (x0, y0), cropped to its pixels.

    Args:
        x0, y0: where ``bitmap[0, 0]`` is in the image.
        bitmap: bool, (h, w).

    Returns:
        The mask, a view of ``bitmap``; None if no pixel is set.

    Example:
        >>> tighten(10, 20, np.array([[0, 0, 0], [0, 1, 1]], dtype=bool)).box
        Box(x0=11, y0=21, x1=13, y1=22)
    """
    if bitmap.size == 0:
        return None
    bitmap = np.ascontiguousarray(bitmap)
    x, y, width, height = cv2.boundingRect(bitmap.view(np.uint8))
    if width == 0:
        return None
    box = Box(x0 + x, y0 + y, x0 + x + width, y0 + y + height)
    return LocalMask(box, bitmap[y : y + height, x : x + width])


def rasterize_polygons(polygons: Sequence[np.ndarray], canvas: Box) -> LocalMask | None:
    """The pixels of one instance's polygons, as pycocotools draws them on the whole canvas.

    Args:
        polygons: each (P, 2) float, XY in pixels, P >= 3; points may lie outside the canvas.
        canvas: the part of the image in which there can be a mask.

    Returns:
        The mask; None if no pixel of the canvas is covered.
    """
    if not polygons:
        return None
    points = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
    if not np.isfinite(points).all():
        return None
    x0, y0 = np.floor(points.min(axis=0)).astype(int)
    x1, y1 = np.ceil(points.max(axis=0)).astype(int) + 1
    window = Box(int(x0), int(y0), int(x1), int(y1)).intersect(canvas)
    if window.is_empty:
        return None
    origin = (window.x0, window.y0)
    flat = [np.ravel(polygon - origin) for polygon in polygons]
    rles = mask_utils.frPyObjects(flat, window.height, window.width)
    bitmap = mask_utils.decode(mask_utils.merge(rles)).view(bool)
    return tighten(window.x0, window.y0, bitmap)


def decode_rle(rle: dict) -> np.ndarray:
    """An RLE, compressed or not, as a uint8 mask (H, W) of 0 and 1."""
    if isinstance(rle["counts"], list):
        rle = mask_utils.frPyObjects(rle, *rle["size"])
    return mask_utils.decode(rle)


def usable_polygons(segmentation: Sequence) -> list[np.ndarray]:
    """The polygons of at least 3 points, each as (P, 2) float64 of its own.

    A polygon is a flat sequence of x, y, x, y ..., as in COCO and LVIS.
    """
    return [
        np.array(polygon, dtype=np.float64).reshape(-1, 2)
        for polygon in segmentation
        if len(polygon) >= 6 and len(polygon) % 2 == 0
    ]


def transform_segmentations(
    segmentations: Sequence, transforms: T.Transform, canvas: Box
) -> list[LocalMask | None]:
    """Masks of augmented instances.

    All polygon points of an image go through the transforms in one call. They are not clipped as
    ``CropTransform.apply_polygons`` does (which needs shapely): the raster clips them.

    Args:
        segmentations: per instance a list of polygons (flat XY) or an RLE, in the coordinates of
            the image as read.
        transforms: what the augmentations did to the image.
        canvas: the part of the augmented image that shows the original image, not padding.

    Returns:
        Per instance its mask; None where nothing of it is left, or nothing usable was there.
    """
    polygons: list[list[np.ndarray]] = [
        [] if isinstance(segmentation, dict) else usable_polygons(segmentation)
        for segmentation in segmentations
    ]
    flat = [polygon for group in polygons for polygon in group]
    if flat:
        points = transforms.apply_coords(np.concatenate(flat))
        parts = iter(np.split(points, np.cumsum([len(polygon) for polygon in flat[:-1]])))
        polygons = [[next(parts) for _ in group] for group in polygons]
    return [
        _transform_rle(segmentation, transforms, canvas)
        if isinstance(segmentation, dict)
        else rasterize_polygons(group, canvas)
        for segmentation, group in zip(segmentations, polygons, strict=True)
    ]


def _transform_rle(rle: dict, transforms: T.Transform, canvas: Box) -> LocalMask | None:
    mask = transforms.apply_segmentation(decode_rle(rle))
    return tighten(canvas.x0, canvas.y0, mask[canvas.slices] != 0)


def to_bit_masks(masks: Sequence[LocalMask], height: int, width: int) -> BitMasks:
    """The (N, height, width) array of masks that detectron2 trains on."""
    bitmaps = np.zeros((len(masks), height, width), dtype=bool)
    for bitmap, mask in zip(bitmaps, masks, strict=True):
        bitmap[mask.box.slices] = mask.bitmap
    return BitMasks(bitmaps)


def to_boxes(masks: Sequence[LocalMask]) -> Boxes:
    """The tight XYXY boxes of masks, as ``BitMasks.get_bounding_boxes`` has them."""
    return Boxes(np.array([mask.box for mask in masks], dtype=np.float32).reshape(-1, 4))


def as_bit_masks(instances: Instances) -> BitMasks:
    """The masks of instances on the CPU, of polygons too: ``INPUT.MASK_FORMAT`` has both."""
    masks = instances.gt_masks
    if not isinstance(masks, PolygonMasks):
        return masks.to("cpu")
    height, width = instances.image_size
    bitmaps = np.zeros((len(masks), height, width), dtype=bool)
    for bitmap, polygons in zip(bitmaps, masks.polygons, strict=True):
        points = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
        mask = rasterize_polygons(points, Box(0, 0, width, height))
        if mask is not None:
            bitmap[mask.box.slices] = mask.bitmap
    return BitMasks(bitmaps)


def visible_area(instances: Instances, rows: Tensor) -> Tensor:
    """Pixels of some of N instances; of their boxes where they have no masks.

    Args:
        instances: with ``gt_boxes``, and ``gt_masks`` as bit masks or polygons.
        rows: (N,) bool on the CPU, which.

    Returns:
        (N,) float32 on the CPU; NaN for the others.
    """
    area = torch.full((len(instances),), torch.nan)
    boxes = instances.gt_boxes.tensor.detach()
    if not instances.has("gt_masks"):
        area[rows] = instances.gt_boxes.area().detach().float().cpu()[rows]
    elif isinstance(instances.gt_masks, PolygonMasks):
        area[rows] = instances.gt_masks[rows].area().float()
    elif boxes.is_cpu:
        masks = instances.gt_masks.tensor.numpy()
        height, width = masks.shape[1:]
        canvas = Box(0, 0, width, height)
        for row in rows.nonzero()[:, 0].tolist():
            x0, y0, x1, y1 = boxes[row].tolist()
            window = canvas
            if np.isfinite([x0, y0, x1, y1]).all():  # nothing of it is outside its box
                window = Box(int(x0), int(y0), math.ceil(x1), math.ceil(y1)).intersect(canvas)
            area[row] = 0 if window.is_empty else np.count_nonzero(masks[row][window.slices])
    else:
        masks = instances.gt_masks.tensor
        area[rows] = masks[rows.to(masks.device)].flatten(1).sum(1).float().cpu()
    return area
