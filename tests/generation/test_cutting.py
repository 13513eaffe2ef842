"""Masks to cut-outs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gal_d2.generation.cutting import clean_mask, cut_out, on_white


def picture(rows: str) -> np.ndarray:
    """Alpha from text: '#' is 255, '+' 128, '-' 127, '.' 0."""
    value = {"#": 255, "+": 128, "-": 127, ".": 0}
    return np.array([[value[c] for c in row] for row in rows.split()], np.uint8)


def test_largest_component_with_its_holes_filled() -> None:
    alpha = picture("""
        ##.......
        ##..####.
        ....#..#.
        ....#.-#.
        #...####.
    """)
    expected = picture("""
        .........
        ....####.
        ....####.
        ....####.
        ....####.
    """)
    np.testing.assert_array_equal(clean_mask(alpha), expected > 0)
    with_hole = clean_mask(alpha, fill_holes=False)
    assert with_hole.sum() == expected.astype(bool).sum() - 4


def test_threshold_is_inclusive() -> None:
    alpha = picture("+-")
    assert clean_mask(alpha).tolist() == [[True, False]]
    assert clean_mask(alpha, threshold=127).tolist() == [[True, True]]
    assert not clean_mask(alpha, threshold=129).any()


def test_diagonal_neighbours_belong_together_and_enclose() -> None:
    alpha = picture("""
        .#.
        #.#
        .#.
    """)
    assert clean_mask(alpha).tolist() == [
        [False, True, False],
        [True, True, True],
        [False, True, False],
    ]


def test_bay_at_the_border_is_no_hole() -> None:
    alpha = picture("""
        ###
        #.#
        #.#
    """)
    np.testing.assert_array_equal(clean_mask(alpha), alpha > 0)


@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)),
                   elements=st.sampled_from([0, 100, 200])))  # fmt: skip
def test_properties_of_cleaned_masks(alpha: np.ndarray) -> None:
    mask = clean_mask(alpha)
    assert mask.any() == (alpha >= 128).any()
    np.testing.assert_array_equal(clean_mask(mask.astype(np.uint8) * 255), mask)
    rotated = clean_mask(np.rot90(alpha))
    assert rotated.sum() == np.rot90(mask).sum() or not _one_largest(alpha)


def _one_largest(alpha: np.ndarray) -> bool:
    from scipy import ndimage

    labels, count = ndimage.label(alpha >= 128, np.ones((3, 3)))
    sizes = np.sort(np.bincount(labels.ravel(), minlength=count + 1)[1:])
    return count < 2 or sizes[-1] != sizes[-2]


def test_cut_out_is_tight_and_keeps_the_pixels() -> None:
    rgb = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    mask = np.zeros((5, 6), bool)
    mask[1, 2:4] = mask[2, 3] = True
    rgba = cut_out(rgb, mask)
    assert rgba.shape == (2, 2, 4)
    np.testing.assert_array_equal(rgba[..., :3], rgb[1:3, 2:4])
    assert rgba[..., 3].tolist() == [[255, 255], [0, 255]]


def test_a_matte_stays_soft_on_the_object_and_at_its_edge() -> None:
    rgb = np.zeros((7, 12, 3), np.uint8)
    matte = np.zeros((7, 12), np.uint8)
    matte[1:6, 1:6] = 200
    matte[3, 3] = 10  # a hole, filled
    matte[1:6, 6:9] = 90, 60, 30  # the edge, one pixel wider than what is kept
    matte[0, 11] = 100  # something else
    mask = clean_mask(matte)
    alpha = cut_out(rgb, mask, matte)[..., 3]
    assert alpha.shape == (5, 7)
    assert (alpha[:, 5:] == (90, 60)).all()
    assert alpha[2, 2] == 255
    np.testing.assert_array_equal(alpha >= 128, mask[1:6, 1:8])
    assert (cut_out(rgb, mask)[..., 3] == 255).all()


def test_on_a_threshold_of_its_own_a_matte_has_the_same_object() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    matte = np.full((4, 4), 60, np.uint8)
    matte[:, 2] = 150
    for threshold in (50, 140, 200):
        mask = clean_mask(matte, threshold=threshold)
        if mask.any():
            alpha = cut_out(rgb, mask, matte)[..., 3]
            assert (alpha >= 128).sum() == mask.sum()


def test_on_white_is_a_square_with_a_margin() -> None:
    rgba = np.zeros((10, 20, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[0, 0, 3] = 0
    rgba[0, 1] = (100, 100, 100, 51)
    shown = on_white(rgba)
    assert shown.shape == (24, 24, 3)
    assert (shown[:7] == 255).all() and (shown[17:] == 255).all()
    assert (shown[7, 2] == 255).all()
    assert shown[7, 3].tolist() == [224] * 3  # 100 * 0.2 + 255 * 0.8
    assert (shown[8:17, 2:22] == 0).all()
