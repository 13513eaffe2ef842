"""Masks in local windows agree with detectron2's full-canvas ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from gal_d2.copy_paste.masks import (
    Box,
    LocalMask,
    as_bit_masks,
    decode_rle,
    rasterize_polygons,
    tighten,
    to_bit_masks,
    to_boxes,
    transform_segmentations,
    usable_polygons,
    visible_area,
)

CANVAS = Box(0, 0, 50, 40)


@pytest.fixture(autouse=True)
def numpy_with_bool(monkeypatch: pytest.MonkeyPatch) -> None:
    """detectron2 0.6 rasterises with ``np.bool``, which NumPy 1.24 to 1.26 do not have."""
    if not hasattr(np, "bool"):
        monkeypatch.setattr(np, "bool", bool, raising=False)


def on_canvas(mask: LocalMask | None) -> np.ndarray:
    canvas = np.zeros((40, 50), bool)
    if mask is not None:
        canvas[mask.box.slices] = mask.bitmap
    return canvas


def test_box() -> None:
    box = Box(2, 3, 10, 8)
    assert (box.width, box.height, box.is_empty) == (8, 5, False)
    assert box.intersect(Box(5, 0, 20, 4)) == Box(5, 3, 10, 4)
    assert box.intersect(Box(10, 3, 12, 8)).is_empty
    assert box.grow(1) == Box(1, 2, 11, 9)
    assert box.shift(-2, 1) == Box(0, 4, 8, 9)


def test_tighten() -> None:
    bitmap = np.zeros((5, 6), bool)
    assert tighten(0, 0, bitmap) is None
    assert tighten(0, 0, bitmap[:0]) is None
    bitmap[1, 2] = bitmap[3, 4] = True
    mask = tighten(10, 20, bitmap)
    assert mask.box == Box(12, 21, 15, 24)
    assert mask.bitmap.tolist() == [[True, False, False], [False] * 3, [False, False, True]]
    assert mask.area == 2


coordinate = st.floats(-30, 80, allow_nan=False)
polygon = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9)


@settings(deadline=None, max_examples=150)
@given(st.lists(polygon, min_size=1, max_size=3))
def test_polygons_are_drawn_as_detectron2_draws_them(points) -> None:
    polygons = [np.array(group, dtype=np.float64) for group in points]
    expected = polygons_to_bitmask([p.ravel() for p in polygons], 40, 50)
    mask = rasterize_polygons(polygons, CANVAS)
    assert np.array_equal(on_canvas(mask), expected)
    if mask is not None:
        ys, xs = np.nonzero(expected)
        assert mask.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@pytest.mark.parametrize(
    "points",
    [
        [[60, 1], [70, 1], [70, 9]],
        [[-9, -9], [-1, -9], [-1, -1]],
        [[5, 5], [5, 5], [5, 5]],
        [[1, 1], [np.nan, 2], [3, 3]],
        [[1, 1], [np.inf, 2], [3, 3]],
    ],
)
def test_polygons_without_a_pixel(points) -> None:
    assert rasterize_polygons([np.array(points, dtype=float)], CANVAS) is None
    assert rasterize_polygons([], CANVAS) is None


def test_usable_polygons() -> None:
    found = usable_polygons([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], []])
    assert [p.tolist() for p in found] == [[[1, 2], [3, 4], [5, 6]]]
    assert usable_polygons([]) == []


def test_decode_rle_of_both_kinds() -> None:
    bitmap = np.zeros((3, 4), np.uint8, order="F")
    bitmap[1:, 2] = 1
    compressed = mask_utils.encode(bitmap)
    as_text = {"size": [3, 4], "counts": compressed["counts"].decode()}
    uncompressed = {"size": [3, 4], "counts": [7, 2, 3]}
    for rle in (compressed, as_text, uncompressed):
        assert np.array_equal(decode_rle(rle), bitmap)


def test_transform_segmentations() -> None:
    """A square as polygon and as RLE, flipped, enlarged and cropped."""
    bitmap = np.zeros((20, 20), np.uint8, order="F")
    bitmap[2:6, 1:9] = 1
    rle = mask_utils.encode(bitmap)
    square = [[1, 2, 9, 2, 9, 6, 1, 6]]
    outside = [[18, 18, 19, 18, 19, 19, 18, 19]]
    transforms = T.TransformList(
        [T.HFlipTransform(20), T.ResizeTransform(20, 20, 40, 40), T.CropTransform(10, 0, 26, 10)]
    )
    segmentations = [square, rle, outside, [[1, 2, 3]], [], square + outside]
    masks = transform_segmentations(segmentations, transforms, Box(0, 0, 26, 10))
    for index in (0, 1, 5):
        assert masks[index].box == Box(12, 4, 26, 10)
        assert masks[index].bitmap.all()
    assert [masks[index] for index in (2, 3, 4)] == [None] * 3
    assert square == [[1, 2, 9, 2, 9, 6, 1, 6]], "the annotation is not changed"


def test_padding_holds_no_mask() -> None:
    """An outline that reaches over the edge of its image does not reach into the padding."""
    outline = [[5.0, 5.0, 30.0, 5.0, 30.0, 9.0, 5.0, 9.0]]
    (mask,) = transform_segmentations([outline], T.NoOpTransform(), Box(0, 0, 20, 20))
    assert mask.box == Box(5, 5, 20, 9)


def test_to_bit_masks_and_boxes() -> None:
    masks = [tighten(1, 2, np.ones((2, 3), bool)), tighten(0, 0, np.eye(2, dtype=bool))]
    bit_masks = to_bit_masks(masks, 5, 6)
    assert bit_masks.tensor.shape == (2, 5, 6)
    assert bit_masks.tensor.flatten(1).sum(1).tolist() == [6, 2]
    assert to_boxes(masks).tensor.tolist() == [[1, 2, 4, 4], [0, 0, 2, 2]]
    assert bit_masks.get_bounding_boxes().tensor.equal(to_boxes(masks).tensor)
    assert to_bit_masks([], 5, 6).tensor.shape == (0, 5, 6)
    assert to_boxes([]).tensor.shape == (0, 4)


def test_polygons_of_detectron2_are_bit_masks_when_they_are_asked_for():
    square, outside = [2.0, 1, 6, 1, 6, 4, 2, 4], [90.0, 90, 95, 90, 95, 95]
    boxes = torch.tensor([[2.0, 1, 6, 4], [0, 0, 0, 0], [2, 1, 6, 4]])
    instances = Instances((10, 8), gt_boxes=Boxes(boxes))
    masks = PolygonMasks([[np.array(square)], [np.array(outside)], [np.array(square)] * 2])
    instances.gt_masks = masks
    bits = as_bit_masks(instances).tensor
    assert bits.shape == (3, 10, 8) and bits[0].nonzero().min(0).values.tolist() == [1, 2]
    assert bits.flatten(1).sum(1).tolist() == [12, 0, 12]
    instances.gt_masks = as_bit_masks(instances)
    assert as_bit_masks(instances).tensor.equal(bits)
    rows = torch.tensor([True, False, False])
    assert visible_area(instances, rows).nan_to_num(-1).tolist() == [12, -1, -1]
    instances.gt_masks = masks
    assert visible_area(instances, rows).nan_to_num(-1).tolist() == [12, -1, -1]
