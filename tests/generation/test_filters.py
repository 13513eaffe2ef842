"""Filters on geometry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gal_d2.generation.cutting import cut_out
from gal_d2.generation.filters import AreaFilter, Candidate, TruncationFilter, border_share
from gal_d2.generation.generator import GeneratedImage
from gal_d2.pool.cut_out import CutOutSource


def candidate(mask: np.ndarray, request, *, finished: bool = False) -> Candidate:
    rgb = np.zeros((*mask.shape, 3), np.uint8)
    alpha = mask.astype(np.uint8) * 255 if finished else None
    image = GeneratedImage(request, rgb, CutOutSource("test"), alpha, finished)
    return Candidate(image, mask, cut_out(rgb, mask))


def block(size: int, *where: slice) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[where] = True
    return mask


def test_area_bounds_are_inclusive(request_for) -> None:
    request = request_for(1, 0)
    masks = [block(20, slice(0, 1), slice(0, n)) for n in (19, 20)]
    masks += [block(20, slice(0, n)) for n in (19, 20)]
    verdicts = AreaFilter(0.05, 0.95).check([candidate(mask, request) for mask in masks])
    assert verdicts == [(19 / 400, False), (0.05, True), (0.95, True), (1.0, False)]


def test_finished_cut_outs_pass_geometric_filters(request_for) -> None:
    whole = candidate(np.ones((4, 4), bool), request_for(1, 0), finished=True)
    for check in (AreaFilter(), TruncationFilter()):
        ((score, passed),) = check.check([whole])
        assert passed and math.isnan(score)


@pytest.mark.parametrize(
    ("where", "share"),
    [
        ((slice(2, 6), slice(2, 6)), 0.0),
        ((slice(0, 4), slice(2, 6)), 4 / 16),
        ((slice(0, 4), slice(0, 4)), 8 / 16),
        ((slice(0, 8), slice(0, 8)), 1.0),
        ((slice(7, 8), slice(3, 4)), 1 / 4),
        ((slice(0, 8), slice(3, 5)), 4 / 20),
    ],
)
def test_share_of_the_outline_on_the_border(where: tuple[slice, slice], share: float) -> None:
    assert border_share(block(8, *where)) == pytest.approx(share)


def test_truncated_objects_are_dropped(request_for) -> None:
    touching = block(100, slice(0, 50), slice(48, 50))  # 2 of 104 edges
    cut = block(100, slice(0, 50), slice(20, 70))
    verdicts = TruncationFilter(0.05).check(
        [candidate(mask, request_for(1, 0)) for mask in (touching, cut)]
    )
    assert verdicts == [(pytest.approx(2 / 104), True), (0.25, False)]


@given(npst.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_border_share_of_any_mask(mask: np.ndarray) -> None:
    share = border_share(mask)
    assert 0 <= share <= 1
    assert share == border_share(mask.T) == border_share(mask[::-1])
    assert border_share(np.pad(mask, 1)) == 0
    # Brute force over the four edges of each pixel.
    height, width = mask.shape
    outline = border = 0
    for y, x in np.argwhere(mask):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            outside = not (0 <= v < height and 0 <= u < width)
            border += outside
            outline += outside or not mask[v, u]
    assert share == pytest.approx(border / outline if outline else 0.0)
