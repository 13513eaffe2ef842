"""Segmentations by hand: forms, RLE text against pycocotools, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as mask_utils

from gal_d2.datasets import segmentation
from gal_d2.datasets.segmentation import (
    SegmentationError,
    as_polygons,
    check_rle,
    draw_polygons,
    extent,
)

TRIANGLE = [1, 2, 9, 2, 9, 7]
POINTS = [[1, 2], [9, 2], [9, 7]]


class TestForms:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ([], []),
            ([TRIANGLE], [TRIANGLE]),
            (TRIANGLE, [TRIANGLE]),
            (POINTS, [TRIANGLE]),
            ([POINTS, POINTS], [TRIANGLE, TRIANGLE]),
            ([TRIANGLE, POINTS], [TRIANGLE, TRIANGLE]),
            ([[], TRIANGLE], [TRIANGLE]),
            ([[1, 2, 3]], [[1, 2, 3]]),  # its length is looked at later
        ],
    )
    def test_known(self, value: list, expected: list) -> None:
        assert as_polygons(value) == expected

    @pytest.mark.parametrize(
        "value", [["1"], [TRIANGLE, 3], [[[[1, 2], [3, 4]]]], [[1, 2, None]], [[True, 1, 2]], [{}]]
    )
    def test_unknown(self, value: list) -> None:
        with pytest.raises(SegmentationError):
            as_polygons(value)


class TestRLE:
    @settings(max_examples=200, deadline=None)
    @given(hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))))
    def test_text_is_read_as_pycocotools_does(self, mask: np.ndarray) -> None:
        rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
        rle["counts"] = rle["counts"].decode()
        found, pixels = check_rle(rle, *mask.shape)
        assert found is rle and pixels == mask.sum()

    def test_list_of_runs_becomes_text(self) -> None:
        found, pixels = check_rle({"size": [2, 3], "counts": [1, 2, 0, 1, 2]}, 2, 3)
        assert pixels == 3 and isinstance(found["counts"], str)
        expected = np.array([[0, 1, 0], [1, 1, 0]])
        np.testing.assert_array_equal(mask_utils.decode(found), expected)

    def test_long_runs(self) -> None:
        height, width = 30_000, 40_000
        rle = {"size": [height, width], "counts": [7, 10**9, height * width - 7 - 10**9]}
        found, pixels = check_rle(rle, height, width)
        assert pixels == 10**9
        assert check_rle(found, height, width) == (found, pixels)

    @pytest.mark.parametrize(
        ("rle", "message"),
        [
            ({"counts": [6]}, "neither"),
            ({"size": [3, 2], "counts": [6]}, r"size is \[3, 2\].*\[height, width\]\)"),
            ({"size": [2.0, 3], "counts": [6]}, "the RLE's size"),
            ({"size": "23", "counts": [6]}, "the RLE's size"),
            ({"size": [2, 3], "counts": [5]}, "sum to 5, not 6"),
            ({"size": [2, 3], "counts": []}, "sum to 0, not 6"),
            ({"size": [2, 3], "counts": [-1, 7]}, "or one is negative"),
            ({"size": [2, 3], "counts": [10**30]}, "sum to more than 18 digits"),
            ({"size": [2, 3], "counts": [6.0]}, "neither text nor a list of whole numbers"),
            ({"size": [2, 3], "counts": [True, 5]}, "neither text nor a list of whole numbers"),
            ({"size": [2, 3], "counts": None}, "neither text nor"),
            ({"size": [2, 3], "counts": ""}, "sum to 0"),
            ({"size": [2, 3], "counts": "P"}, "end within a number"),
            ({"size": [2, 3], "counts": "é"}, "other than ASCII"),
            ({"size": [2, 3], "counts": " 1"}, "characters that no RLE has"),
            ({"size": [2, 3], "counts": "ooooooooooo0"}, "more than 35 bits"),
        ],
    )
    def test_refused(self, rle: dict, message: str) -> None:
        with pytest.raises(SegmentationError, match=message):
            check_rle(rle, 2, 3)


class TestDrawing:
    def test_extent(self) -> None:
        rle = draw_polygons([[2, 1, 6, 1, 6, 4, 2, 4]], 10, 12)
        assert extent(rle) == (12.0, [2.0, 1.0, 4.0, 3.0])

    def test_nothing_inside(self) -> None:
        assert extent(draw_polygons([[20, 20, 30, 20, 30, 30]], 10, 12))[0] == 0

    def test_an_endless_outline_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(segmentation, "MAX_OUTLINE", 100)
        zigzag = [c for k in range(20) for c in (k, 10 * (k % 2))]
        with pytest.raises(SegmentationError, match="the outline is 2.. px long"):
            draw_polygons([zigzag], 10, 20)
