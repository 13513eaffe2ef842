"""What counts as a cut-out that can be pasted, at its boundaries."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gal_d2.copy_paste.resize import crop_to_foreground
from gal_d2.pool.usable import (
    PROBLEMS,
    UsableCount,
    describe_problems,
    foreground_threshold,
    is_one_color,
    is_sliver,
    problem_of,
)


def picture(alpha: int, margin: int = 1) -> np.ndarray:
    """(8, 8, 4): red of an alpha, within a transparent margin that is black."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[margin : 8 - margin, margin : 8 - margin] = (200, 10, 10, alpha)
    return rgba


@pytest.mark.parametrize(
    ("alpha", "problem"),
    [(0, "transparent"), (1, "faint"), (127, "faint"), (128, None), (255, None)],
)
def test_the_threshold_is_that_of_the_paste(alpha: int, problem: str | None) -> None:
    assert problem_of(picture(alpha)) == problem
    assert problem_of(picture(alpha), is_picture=True) == problem


def test_one_opaque_pixel_is_enough() -> None:
    rgba = picture(60)
    rgba[4, 4, 3] = 128
    assert problem_of(rgba, is_picture=True) is None


def test_pictures_with_their_background_are_none_unless_asked_for() -> None:
    rgba = picture(255)
    rgba[..., 3] = 200
    assert problem_of(rgba, is_picture=True) == "opaque"
    assert problem_of(rgba, is_picture=True, allow_opaque=True) is None
    assert problem_of(rgba) is None  # a crop: its object fills its box
    rgba[0, 0, 3] = 127
    assert problem_of(rgba, is_picture=True) is None


@pytest.mark.parametrize("value", [0, 90, 255])
def test_pictures_of_one_colour_are_blank(value: int) -> None:
    rgba = np.full((8, 8, 4), value, np.uint8)
    rgba[..., 3] = picture(255)[..., 3]
    rgba[3, 3, 0] ^= 1
    assert problem_of(rgba, is_picture=True) == "blank"
    assert problem_of(rgba, is_picture=True, allow_opaque=True) == "blank"
    rgba[3, 3, 1] = (value + 60) % 256
    assert problem_of(rgba, is_picture=True) is None


def test_one_colour_is_asked_of_each_channel() -> None:
    image = np.full((5, 5, 3), 7, np.uint8)
    assert is_one_color(image)
    image[4, 4, 2] = 7 + 5
    assert not is_one_color(image)


@pytest.mark.parametrize(("opaque", "sliver"), [(1, True), (31, True), (32, False), (64, False)])
def test_a_sliver_is_less_than_half_of_what_is_visible(opaque: int, sliver: bool) -> None:
    alpha = np.full(64, 100, np.uint8)
    alpha[:opaque] = 255
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 3] = alpha.reshape(8, 8)
    assert is_sliver(rgba) == sliver
    assert foreground_threshold(rgba[..., 3]) == (32 if sliver else 128)


def test_haze_makes_no_sliver() -> None:
    """Matting models leave a veil over all of the picture."""
    rgba = np.full((8, 8, 4), 31, np.uint8)
    rgba[2:4, 2:4, 3] = 255
    assert not is_sliver(rgba)


def test_nothing_opaque_is_no_sliver() -> None:
    assert not is_sliver(picture(100))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_what_is_usable_is_what_the_paste_finds(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    rgba[..., 3] = np.where(rng.random((height, width)) < 0.5, rgba[..., 3] // 3, rgba[..., 3])
    assert (problem_of(rgba) is None) == (crop_to_foreground(rgba)[1] > 0)


def test_counts_add_up() -> None:
    count, other = UsableCount(), UsableCount()
    for alpha in (255, 100, 0, 100):
        count.add(picture(alpha))
    other.add(picture(255, margin=0))
    count.merge(other)
    assert (count.looked_at, count.unusable) == (5, 3)
    assert count.problems == {"faint": 2, "transparent": 1}
    assert (count.slivers, count.opaque, count.one_color) == (0, 1, 1)
    assert count.reasons() == (
        f"2 faint ({PROBLEMS['faint']}); 1 transparent ({PROBLEMS['transparent']})"
    )


def test_a_problem_without_a_sentence_is_named() -> None:
    assert describe_problems(Counter(unreadable=3)) == "3 unreadable"
