from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from gal_d2.testbeds.miniature.objects import (
    add_noise,
    draw_object,
    mask_to_polygons,
    misplace_mask,
    paste,
    place_mask,
)


def rasterized(polygons: list[list[float]], shape: tuple[int, int]) -> np.ndarray:
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *shape))).astype(
        bool
    )


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def disc(size: int = 28, radius: float = 9.0) -> np.ndarray:
    ys, xs = np.mgrid[:size, :size] - (size - 1) / 2
    return np.where(ys**2 + xs**2 <= radius**2, 120, 0).astype(np.uint8)


# ----------------------------------------------------------------------------------- drawing


@settings(deadline=None, max_examples=30)
@given(side=st.floats(28, 60), seed=st.integers(0, 2**32 - 1))
def test_a_square_keeps_its_size_through_enlargement(side, seed):
    grey = np.zeros((28, 28), np.uint8)
    grey[4:24, 4:24] = 200
    rgba = draw_object(grey, side, np.random.default_rng(seed), max_rotation=0, aspect_jitter=0)
    mask = rgba[..., 3] >= 128
    assert mask.any(axis=1).sum() == pytest.approx(side, abs=1.5)
    assert mask.any(axis=0).sum() == pytest.approx(side, abs=1.5)
    assert mask.sum() == pytest.approx(side**2, rel=0.08)
    # An even square has an even colour, beyond its edge as well: no dark rim, which would
    # be off by 100 and more. Cubic interpolation overshoots a little.
    colour = rgba[rgba[..., 3] > 0][:, :3].astype(int)
    assert np.ptp(colour, axis=0).max() <= 20


def test_the_mask_has_neither_holes_nor_specks():
    grey = disc()
    grey[12:16, 12:16] = 0
    grey[0:2, 0:2] = 255
    mask = draw_object(grey, 50, np.random.default_rng(0))[..., 3] >= 128
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 1
    # The disc's diameter of 19 px of the 23 to the speck's corner, enlarged to 50.
    assert mask.sum() == pytest.approx(np.pi / 4 * (19 / 23 * 50) ** 2, rel=0.12)


def test_shading_follows_the_grey_values():
    grey = disc()
    grey[:, 14:] //= 4
    rgba = draw_object(grey, 50, np.random.default_rng(1), max_rotation=0)
    sums = rgba[..., :3].sum(axis=2, dtype=int)
    middle, half = rgba.shape[0] // 2, rgba.shape[1] // 2
    ends = sorted([sums[middle, half - 12], sums[middle, half + 12]])
    assert ends[0] == pytest.approx(ends[1] * (0.25 + 0.75 / 4), rel=0.1)


def test_equal_generators_draw_equally():
    first, second = (draw_object(disc(), 40.0, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw_object(disc(), 40.0, np.random.default_rng(8)))


def test_an_empty_picture_is_refused():
    with pytest.raises(ValueError, match="no object"):
        draw_object(np.zeros((28, 28), np.uint8), 40, np.random.default_rng(0))


# ----------------------------------------------------------------------------------- spoiling


def test_noise_has_its_strength_and_spares_the_mask():
    rgba = np.full((64, 64, 4), 128, np.uint8)
    noisy = add_noise(rgba, 20, np.random.default_rng(0))
    assert np.array_equal(noisy[..., 3], rgba[..., 3])
    assert noisy[..., :3].std() == pytest.approx(20, rel=0.05)
    assert noisy[..., :3].mean() == pytest.approx(128, abs=1)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_misplaced_mask_covers_object_and_background(seed):
    rgba = np.zeros((50, 30, 4), np.uint8)
    rgba[1:-1, 1:-1] = (255, 0, 0, 255)
    background = np.zeros((108, 108, 3), np.uint8)
    background[..., 2] = 255
    cut_out = misplace_mask(rgba, background, np.random.default_rng(seed))
    mask = cut_out[..., 3] >= 128
    on_object = (cut_out[..., 0] > 128) & mask
    assert 0.1 < on_object.sum() / mask.sum() < 0.95
    overlap = on_object.sum() / (mask.sum() + 48 * 28 - on_object.sum())
    assert 0.08 <= overlap <= 0.47


# ----------------------------------------------------------------------------------- placing


def test_paste_blends_and_is_cut_off_at_the_border():
    picture = np.full((4, 4, 3), 100, np.uint8)
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 100, 255)
    rgba[1, 1] = (200, 0, 100, 51)
    paste(picture, rgba, 3, 3)
    assert picture[3, 3].tolist() == [200, 0, 100]
    assert (picture.reshape(-1, 3)[:-1] == 100).all()
    paste(picture, rgba, -1, 0)
    assert picture[0, 1].tolist() == [120, 80, 100]
    assert picture[0, 0].tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("top", "left", "expected"),
    [(0, 0, 4), (-1, 0, 2), (2, 3, 2), (2, 2, 4), (4, 0, 0), (0, -2, 0), (-9, 9, 0)],
)
def test_place_mask(top, left, expected):
    alpha = np.full((2, 2), 128, np.uint8)
    mask = place_mask(alpha, (4, 4), top, left)
    assert mask.dtype == bool
    assert mask.shape == (4, 4)
    assert mask.sum() == expected
    assert not place_mask(alpha - 1, (4, 4), top, left).any()


# ----------------------------------------------------------------------------------- polygons


def test_polygon_of_a_rectangle_lies_on_pixel_edges():
    mask = np.zeros((40, 50), bool)
    mask[10:30, 5:45] = True
    (polygon,) = mask_to_polygons(mask)
    points = np.array(polygon).reshape(-1, 2)
    assert len(points) == 4
    assert np.abs(points.min(axis=0) - (5, 10)).max() <= 0.15
    assert np.abs(points.max(axis=0) - (45, 30)).max() <= 0.15
    assert np.array_equal(rasterized([polygon], mask.shape), mask)


@settings(deadline=None, max_examples=50)
@given(
    side=st.floats(28, 60),
    seed=st.integers(0, 2**32 - 1),
    cut=st.tuples(st.integers(0, 20), st.integers(1, 12)),
)
def test_polygons_cover_the_visible_pixels(side, seed, cut):
    mask = draw_object(disc(), side, np.random.default_rng(seed))[..., 3] >= 128
    mask[:, cut[0] : cut[0] + cut[1]] = False  # as if something lay on it
    polygons = mask_to_polygons(mask)
    assert all(len(polygon) >= 6 for polygon in polygons)
    assert iou(rasterized(polygons, mask.shape), mask) > 0.95


def test_two_parts_give_two_polygons_and_specks_none():
    mask = np.zeros((40, 40), bool)
    mask[5:15, 5:15] = mask[20:30, 20:30] = True
    mask[35:37, 35:37] = True
    assert len(mask_to_polygons(mask)) == 2
    assert mask_to_polygons(np.zeros((5, 5), bool)) == []
