"""The one way in which images are read: for training, real-to-real pasting, evaluation, scoring
and pictures.

A bad file has a name and a sentence, and whatever a file stores becomes 8 bits a channel:

- More than 8 bits, whole numbers or float: from 0 to the smallest of 1 (float only), 255, 1,023
  (10 bits), 4,095 (12), 16,383 (14) and 65,535 (16) that no value of the image exceeds. An image
  with negative or larger values goes from its least to its greatest value.
- Transparent pixels show white, as viewers have it. An image that is transparent everywhere keeps
  its colours: there the fourth channel means something else.
- Palette, grey, CMYK and the like: as Pillow converts them to RGB.
- EXIF orientation is applied.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
from detectron2.data import detection_utils as utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import ALPHA_MODES

logger = logging.getLogger(__name__)

_DEPTHS = (255, 1023, 4095, 16383, 65535)
_EXIF_ORIENTATION = 274
_TURNED = frozenset({5, 6, 7, 8})  # orientations that exchange width and height


class UnreadableImageError(UserError):
    """An image file is missing, broken, or not of the size that its annotation says."""


class WarnOnce:
    """Logs a warning once per key; each process counts for itself."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._seen: set[str] = set()

    def __call__(self, key: str, message: object) -> None:
        """Log ``message`` unless something was logged for ``key``."""
        if key not in self._seen:
            self._seen.add(key)
            self._log.warning("%s", message)


_warn_once = WarnOnce(logger)


def read_training_image(record: dict, image_format: str) -> np.ndarray:
    """Read ``record["file_name"]``, as the module describes.

    Args:
        record: dataset dict. If it has "height" and "width", the image must have that size.
        image_format: "RGB", "BGR" or another one of detectron2's.

    Returns:
        uint8 (H, W, C).

    Raises:
        UnreadableImageError: missing, broken, or of another size.
    """
    with _opened(record["file_name"]) as image:
        orientation = _orientation(image)
        upright = utils._apply_exif_orientation(image)
        pixels = utils.convert_PIL_to_numpy(to_8_bit(upright, record["file_name"]), image_format)
    _check_size(record, pixels.shape[1], pixels.shape[0], orientation)
    return pixels


def check_image_header(record: dict) -> None:
    """What :func:`read_training_image` would find of a file without decoding it.

    Raises:
        UnreadableImageError: missing, no image, or of another size.
    """
    with _opened(record["file_name"]) as image:
        orientation = _orientation(image)
        width, height = image.size
    if orientation in _TURNED:
        width, height = height, width
    _check_size(record, width, height, orientation)


def to_8_bit(image: Image.Image, name: str = "an image") -> Image.Image:
    """The image with 8 bits a channel and nothing transparent; see the module.

    Args:
        image: of any mode.
        name: for the warnings, which come once a process for each kind of image.
    """
    if image.mode.startswith("I") or image.mode == "F":
        _warn_once(
            "deep",
            f"{name} has more than 8 bits a pixel (mode {image.mode}), as other images may: their "
            "values are scaled to 8 bits (docs/own_data.md describes how).",
        )
        return Image.fromarray(_scaled(np.asarray(image)))
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        low, high = rgba.getchannel("A").getextrema()
        if low < 255 and high > 0:
            _warn_once(
                "transparent",
                f"{name} has transparent pixels, as other images may: they are taken as white.",
            )
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return rgba.convert("RGB")
    return image


@contextlib.contextmanager
def _opened(file_name: str) -> Iterator[Image.Image]:
    """The opened image; what goes wrong with it within the block becomes an error with its name."""
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            yield image
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(
            f"The image {file_name} does not exist; check the image folder of its data set."
        ) from error
    except Exception as error:  # what a decoder raises at broken data has no bound
        raise UnreadableImageError(
            f"The image {file_name} cannot be read ({type(error).__name__}: {error}); replace the "
            "file or take it out of the annotations."
        ) from error


def _scaled(values: np.ndarray) -> np.ndarray:
    """uint8 (H, W) of values of another range; what is no number counts as the least value."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no pixel is a finite number")
    low, high = values[finite].min(), values[finite].max()
    depths = _DEPTHS if np.array_equal(values[finite], np.rint(values[finite])) else (1, *_DEPTHS)
    if low < 0 or high > depths[-1]:
        start, end = low, high
    else:
        start, end = 0.0, next(depth for depth in depths if high <= depth)
    values = np.where(finite, values, low)
    return (
        np.rint((values - start) * (255 / max(end - start, 1e-300))).clip(0, 255).astype(np.uint8)
    )


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken EXIF data: detectron2 does not turn the image either
        return None


def _check_size(record: dict, width: int, height: int, orientation: int | None) -> None:
    expected = record.get("width", width), record.get("height", height)
    if expected == (width, height):
        return
    sentence = (
        f"The image {record['file_name']} is {width} x {height}, but its annotation's width and "
        f"height are {expected[0]} x {expected[1]}"
    )
    if expected == (height, width) and orientation in _TURNED:
        raise UnreadableImageError(
            f"{sentence}: the file's EXIF orientation ({orientation}) turns it by 90 degrees, "
            "which the annotations do not; store the images turned and annotate these, or take the "
            "orientation out of the files."
        )
    if expected == (height, width):
        raise UnreadableImageError(
            f"{sentence}: width and height are exchanged, or an EXIF orientation was lost; correct "
            "the annotations, or turn the image by 90 degrees."
        )
    raise UnreadableImageError(f"{sentence}; correct one.")
