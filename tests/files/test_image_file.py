"""The one image reader: what files store becomes 8 bits, and what is wrong is a sentence."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gal_d2.files import image_file
from gal_d2.files.image_file import (
    UnreadableImageError,
    WarnOnce,
    check_image_header,
    read_training_image,
)

HEIGHT, WIDTH = 20, 30
RNG = np.random.default_rng(0)
GREY = RNG.permutation(np.arange(HEIGHT * WIDTH) % 256).astype(np.uint8).reshape(HEIGHT, WIDTH)
COLOURS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "_warn_once", WarnOnce(image_file.logger))


def read(path: Path, image: Image.Image, image_format: str = "RGB", **options: object):
    image.save(path, **options)
    record = {"file_name": str(path), "height": HEIGHT, "width": WIDTH}
    check_image_header(record)
    found = read_training_image(record, image_format)
    assert found.dtype == np.uint8 and found.shape == (HEIGHT, WIDTH, 3)
    return found


def rounded(values: np.ndarray, top: float) -> np.ndarray:
    return np.rint(values.astype(np.float64) * 255 / top)


class TestDepth:
    @pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
    @pytest.mark.parametrize("extension", ["png", "tif"])
    def test_sixteen_bits_by_the_depth_in_use(self, tmp_path, top, extension) -> None:
        values = (GREY.astype(np.uint32) * top // 255).astype(np.uint16)
        found = read(tmp_path / f"a.{extension}", Image.fromarray(values))
        np.testing.assert_array_equal(found[..., 1], rounded(values, top))

    def test_a_dark_image_stays_dark(self, tmp_path) -> None:
        values = np.full((HEIGHT, WIDTH), 5000, np.uint16)
        values[0, 0] = 60_000
        found = read(tmp_path / "a.png", Image.fromarray(values))
        assert found[5, 5, 0] == round(5000 * 255 / 65535)

    def test_big_endian(self, tmp_path) -> None:
        values = (GREY.astype(">u2") * 257).tobytes()
        image = Image.frombytes("I;16B", (WIDTH, HEIGHT), values)
        np.testing.assert_array_equal(read(tmp_path / "a.tif", image)[..., 0], GREY)

    def test_32_bits_from_the_least_to_the_greatest(self, tmp_path) -> None:
        values = GREY.astype(np.int32) * 1_000_000 - 7
        np.testing.assert_array_equal(
            read(tmp_path / "a.tif", Image.fromarray(values))[..., 2], GREY
        )

    @pytest.mark.parametrize("factor", [1 / 255, 1, 257])
    def test_float(self, tmp_path, factor) -> None:
        values = GREY.astype(np.float32) * factor
        np.testing.assert_array_equal(
            read(tmp_path / "a.tif", Image.fromarray(values))[..., 0], GREY
        )

    def test_float_with_negative_values_and_nan(self, tmp_path) -> None:
        values = GREY.astype(np.float32) / 255 - 0.5
        values[3, 4] = np.nan
        found = read(tmp_path / "a.tif", Image.fromarray(values))[..., 0].copy()
        assert found[3, 4] == 0
        found[3, 4] = GREY[3, 4]
        np.testing.assert_array_equal(found, GREY)

    def test_it_is_said_once(self, tmp_path, caplog) -> None:
        for name in ("a.png", "b.png"):
            read(tmp_path / name, Image.fromarray(GREY.astype(np.uint16) * 257))
        (message,) = [record.getMessage() for record in caplog.records]
        assert "a.png has more than 8 bits" in message and "docs/own_data.md" in message


class TestModes:
    def test_formats(self, tmp_path) -> None:
        image = Image.fromarray(COLOURS)
        np.testing.assert_array_equal(read(tmp_path / "a.png", image), COLOURS)
        np.testing.assert_array_equal(read(tmp_path / "a.png", image, "BGR"), COLOURS[..., ::-1])

    def test_grey_and_black_and_white(self, tmp_path) -> None:
        found = read(tmp_path / "a.png", Image.fromarray(GREY))
        np.testing.assert_array_equal(found, np.dstack([GREY] * 3))
        found = read(tmp_path / "b.png", Image.fromarray(GREY > 99))
        np.testing.assert_array_equal(found[..., 0], (GREY > 99) * 255)

    def test_palette(self, tmp_path) -> None:
        few = COLOURS // 128 * 255
        found = read(tmp_path / "a.png", Image.fromarray(few).quantize(8))
        np.testing.assert_array_equal(found, few)

    def test_transparency_shows_white(self, tmp_path, caplog) -> None:
        alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
        alpha[:, 10:] = 255
        expected = np.where(alpha[..., None] > 0, COLOURS, 255)
        rgba = Image.fromarray(np.dstack((COLOURS, alpha)))
        np.testing.assert_array_equal(read(tmp_path / "a.png", rgba), expected)
        assert "a.png has transparent pixels" in caplog.text
        grey = Image.fromarray(np.dstack((GREY, alpha)), "LA")
        expected = np.where(alpha > 0, GREY, 255)
        np.testing.assert_array_equal(read(tmp_path / "b.png", grey)[..., 0], expected)

    def test_transparent_colour_of_a_palette(self, tmp_path) -> None:
        image = Image.fromarray(GREY % 2, "P")
        image.putpalette([9, 9, 9, 200, 0, 0])
        found = read(tmp_path / "a.png", image, transparency=0)
        expected = np.where(GREY[..., None] % 2, [200, 0, 0], 255)
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("alpha", [0, 255])
    def test_a_useless_alpha_channel_is_dropped(self, tmp_path, alpha, caplog) -> None:
        rgba = np.dstack((COLOURS, np.full((HEIGHT, WIDTH), alpha, np.uint8)))
        np.testing.assert_array_equal(read(tmp_path / "a.png", Image.fromarray(rgba)), COLOURS)
        assert not caplog.records

    def test_cmyk(self, tmp_path) -> None:
        image = Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 10)).convert("CMYK")
        found = read(tmp_path / "a.jpg", image, quality=100)
        assert np.abs(found.astype(int) - [200, 30, 10]).max() <= 3


def turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOURS).save(path, exif=exif)
    return path


class TestSize:
    def both(self, record: dict) -> str:
        """The sentence of reading, which that of looking at the header is as well."""
        with pytest.raises(UnreadableImageError) as whole:
            read_training_image(record, "RGB")
        with pytest.raises(UnreadableImageError) as header:
            check_image_header(record)
        assert str(whole.value) == str(header.value)
        return str(whole.value)

    def test_orientation_is_applied(self, tmp_path) -> None:
        path = turned(tmp_path / "a.png", 6)
        record = {"file_name": str(path), "height": WIDTH, "width": HEIGHT}
        check_image_header(record)
        np.testing.assert_array_equal(read_training_image(record, "RGB"), np.rot90(COLOURS, -1))

    def test_size_before_turning_names_exif(self, tmp_path) -> None:
        path = turned(tmp_path / "a.png", 8)
        sentence = self.both({"file_name": str(path), "height": HEIGHT, "width": WIDTH})
        assert "EXIF orientation (8) turns it by 90 degrees" in sentence

    def test_exchanged_width_and_height(self, tmp_path) -> None:
        path = turned(tmp_path / "a.png", 1)
        sentence = self.both({"file_name": str(path), "height": WIDTH, "width": HEIGHT})
        assert "is 30 x 20" in sentence and "are 20 x 30: width and height are exch" in sentence

    def test_another_size(self, tmp_path) -> None:
        path = turned(tmp_path / "a.png", 1)
        sentence = self.both({"file_name": str(path), "height": 20, "width": 31})
        assert sentence.endswith("are 31 x 20; correct one.")

    def test_missing_and_broken(self, tmp_path) -> None:
        path = tmp_path / "a.png"
        assert "a.png does not exist" in self.both({"file_name": str(path)})
        path.write_bytes(b"nothing of the kind")
        assert "a.png cannot be read" in self.both({"file_name": str(path)})

    def test_size_is_checked_only_where_it_is_given(self, tmp_path) -> None:
        path = turned(tmp_path / "a.png", 1)
        assert read_training_image({"file_name": str(path)}, "RGB").shape == (20, 30, 3)


def test_no_number_at_all_is_a_sentence(tmp_path, caplog) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(path)
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(UnreadableImageError, match="no pixel is a finite number"),
    ):
        read_training_image({"file_name": str(path)}, "RGB")
