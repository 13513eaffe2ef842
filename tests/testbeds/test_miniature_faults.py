from __future__ import annotations

import cv2
import numpy as np
import pytest

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import crop_to_alpha
from gal_d2.testbeds.miniature.faults import (
    FAULTS,
    KINDS,
    blur,
    cut_off,
    false_colours,
    fault_shares,
    kind_counts,
    put_together,
)

NONE = dict.fromkeys(FAULTS.values(), 0.0)


@pytest.fixture
def rgba() -> np.ndarray:
    """A disc of 40 px, dark at the left, light at the right, in red."""
    cut_out = np.zeros((40, 40, 4), np.uint8)
    cut_out[..., 0] = np.linspace(60, 255, 40).round()
    cv2.circle(alpha := np.zeros((40, 40), np.uint8), (20, 20), 19, 255, -1)
    cut_out[..., 3] = alpha
    return cut_out[1:, 1:]


def test_shares_by_fault_and_category():
    shares = NONE | {"wrong": 0.2, "noise": 0.4, "two_objects": 0.1}
    found = fault_shares(shares, [False, True], 0.6)
    assert found[0].tolist() == [0.2, 0.4, 0, 0, 0, 0, 0.1]
    # Half of the room that wrong objects left in the other category.
    assert found[1] == pytest.approx([0.6, 0.2, 0, 0, 0, 0, 0.05])
    assert fault_shares(NONE | {"wrong": 1.0}, [True], 0.5)[0].tolist() == [1.0] + [0.0] * 6


@pytest.mark.parametrize("bad", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_bad_ones_in_all(bad):
    shares = NONE | {"wrong": 0.2, "noise": 0.2}
    found = fault_shares(shares, [False, True, False], 0.6, bad)
    assert found.sum(axis=1).mean() == pytest.approx(bad)
    assert ((found >= 0) & (found <= 1)).all()
    if 0 < bad < 1:
        assert found[1, 0] / found[1, 1] == pytest.approx(0.6 / 0.1)  # the proportions stay


def test_bad_ones_of_no_kind():
    assert not fault_shares(NONE, [False], 0.0, 0.0).any()
    with pytest.raises(UserError, match="bad is 0.5, but the share of every fault is 0"):
        fault_shares(NONE, [False], 0.0, 0.5)


def test_counts_add_up():
    counts = kind_counts(np.full(7, 0.13), 10)
    assert len(counts) == len(KINDS)
    assert sum(counts) == 10
    assert counts[0] == 1


def test_blur_takes_detail_away_and_leaves_the_outline(rgba):
    rgba[::2, :, :3] //= 4  # stripes
    blurred = blur(rgba, 4.0)
    assert np.array_equal(blurred[..., 3], rgba[..., 3])
    inside = (slice(10, 30), slice(10, 30), 0)
    assert np.std(blurred[inside]) < 0.5 * np.std(rgba[inside])
    flat = np.dstack([np.full((20, 20), v, np.uint8) for v in (200, 10, 60, 255)])
    assert np.array_equal(blur(flat, 4.0), flat)
    # What is transparent has no say in the colour.
    flat[:, :10, 3], flat[:, :10, :3] = 0, 0
    assert np.abs(blur(flat, 2.0)[:, 10:].astype(int) - flat[:, 10:]).max() <= 1


def test_false_colours_follow_the_brightness(rgba):
    changed = false_colours(rgba, np.random.default_rng(0))
    assert np.array_equal(changed[..., 3], rgba[..., 3])
    hue = cv2.cvtColor(np.ascontiguousarray(changed[20:21, :, :3]), cv2.COLOR_RGB2HSV)[0, :, 0]
    assert len(np.unique(hue // 30)) == 6  # the whole wheel in one object of one hue
    other = false_colours(rgba, np.random.default_rng(1))
    assert not np.array_equal(changed, other)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_cut_off_is_a_straight_part_at_one_side(rgba, seed):
    part = cut_off(rgba, np.random.default_rng(seed))
    full = len(rgba)
    # At most half of the disc is left, or a little more: the cut goes along its longer side.
    left = min(part.shape[:2])
    assert 0.38 * full <= left <= 0.66 * full
    parts = (rgba[:left], rgba[-left:], rgba[:, :left], rgba[:, -left:])
    assert any(np.array_equal(part, crop_to_alpha(expected)) for expected in parts)


@pytest.mark.parametrize("seed", range(8))
def test_two_objects_are_put_together(rgba, seed):
    second = rgba[:, ::-1].copy()
    second[..., 2] = 255
    both = put_together(rgba, second, np.random.default_rng(seed))
    full = len(rgba)
    assert 1.7 * full <= max(both.shape[:2]) <= 2 * full
    assert full <= min(both.shape[:2]) <= 1.35 * full
    area = (rgba[..., 3] >= 128).sum()
    assert 1.75 * area <= (both[..., 3] >= 128).sum() <= 2 * area
    solid = both[..., 3] == 255
    assert set(np.unique(both[solid][:, 2])) == {0, 255}  # pixels of the one and of the other
    # The first lies on top: all of it is there.
    assert (both[solid][:, 2] == 0).sum() == area


def test_objects_of_unlike_size_fit_on_one_canvas():
    tall = np.full((30, 4, 4), 255, np.uint8)
    wide = np.full((6, 50, 4), 255, np.uint8)
    for seed in range(20):
        both = put_together(tall, wide, np.random.default_rng(seed))
        assert (both[..., 3] == 255).sum() <= tall[..., 3].size + wide[..., 3].size
        assert both.shape[0] >= 30 and both.shape[1] >= 50
