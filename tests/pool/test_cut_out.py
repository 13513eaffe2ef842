"""Encoding, decoding, cropping and naming of single cut-outs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gal_d2.pool.cut_out import (
    CorruptCutOutError,
    CutOutSource,
    crop_to_alpha,
    cut_out_id,
    decode_rgba,
    encode_rgba,
)

SOURCE = CutOutSource("diffusers", "sd-1.5", "a photo of a bun", 7)


@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4)),
        elements=st.integers(0, 255),
    ).filter(lambda rgba: rgba[..., 3].any())
)
@settings(max_examples=60, deadline=None)
def test_encoding_keeps_every_pixel(rgba: np.ndarray) -> None:
    decoded = decode_rgba(encode_rgba(rgba), *rgba.shape[:2])
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, rgba)


def test_colour_under_alpha_zero_is_kept_and_channels_keep_their_order() -> None:
    rgba = np.array([[[10, 20, 30, 0], [1, 2, 3, 255], [200, 100, 50, 128]]], np.uint8)
    np.testing.assert_array_equal(decode_rgba(encode_rgba(rgba), 1, 3), rgba)


def test_opaque_image_gets_its_alpha_back() -> None:
    rgba = np.full((6, 4, 4), 255, np.uint8)
    rgba[..., 0] = 9
    np.testing.assert_array_equal(decode_rgba(encode_rgba(rgba), 6, 4), rgba)


def test_view_with_strides_is_encoded_as_it_looks() -> None:
    rgba = np.random.default_rng(0).integers(1, 255, (8, 10, 4), np.uint8)[::2, ::-1]
    np.testing.assert_array_equal(decode_rgba(encode_rgba(rgba), 4, 10), rgba)


@pytest.mark.parametrize(
    ("rgba", "message"),
    [
        (np.ones((4, 4, 3), np.uint8), r"\(H, W, 4\) uint8"),
        (np.ones((4, 4, 4), np.float32), r"\(H, W, 4\) uint8"),
        (np.ones((4, 4), np.uint8), r"\(H, W, 4\) uint8"),
        (np.ones((0, 4, 4), np.uint8), "sides"),
        (np.ones((1, 16384, 4), np.uint8), "sides"),
        (np.zeros((4, 4, 4), np.uint8), "fully transparent"),
    ],
)
def test_what_is_no_cut_out_is_refused(rgba: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_rgba(rgba)


@pytest.mark.parametrize("encoded", [b"", b"no image"])
def test_bytes_that_are_no_image(encoded: bytes) -> None:
    with pytest.raises(CorruptCutOutError, match="does not decode"):
        decode_rgba(encoded, 2, 2)


def test_image_of_another_size() -> None:
    with pytest.raises(CorruptCutOutError, match=r"decodes to \(3, 2, 4\)"):
        decode_rgba(encode_rgba(np.full((3, 2, 4), 7, np.uint8)), 2, 3)


def test_crop_is_the_box_of_what_is_visible() -> None:
    rgba = np.zeros((5, 6, 4), np.uint8)
    rgba[1, 2] = (1, 2, 3, 1)
    rgba[3, 4] = (4, 5, 6, 255)
    np.testing.assert_array_equal(crop_to_alpha(rgba), rgba[1:4, 2:5])


def test_crop_of_nothing() -> None:
    with pytest.raises(ValueError, match="fully transparent"):
        crop_to_alpha(np.zeros((5, 6, 4), np.uint8))


def test_id_is_the_same_in_every_version() -> None:
    """A change here would orphan every stored pool, ledger and truth file."""
    assert cut_out_id(12, SOURCE, b"image") == 6805684967950057956


def test_id_depends_on_all_but_origin() -> None:
    ids = {
        cut_out_id(12, SOURCE, b"image"),
        cut_out_id(
            12, CutOutSource("diffusers", "sd-1.5", "a photo of a bun", 7, "a.png"), b"image"
        ),
        cut_out_id(np.int64(12), replace(SOURCE, seed=np.int64(7)), b"image"),
    }
    assert len(ids) == 1
    others = {
        cut_out_id(13, SOURCE, b"image"),
        cut_out_id(12, SOURCE, b"imagE"),
        cut_out_id(12, replace(SOURCE, generator="other"), b"image"),
        cut_out_id(12, replace(SOURCE, model="sd-2"), b"image"),
        cut_out_id(12, replace(SOURCE, prompt="a bun"), b"image"),
        cut_out_id(12, replace(SOURCE, seed=None), b"image"),
    }
    assert len(others) == 6
    assert not ids & others


@given(st.integers(0, 10**6), st.binary(max_size=20))
@settings(max_examples=50, deadline=None)
def test_id_fits_int64(category_id: int, encoded: bytes) -> None:
    assert 0 <= cut_out_id(category_id, SOURCE, encoded) < 1 << 63
