"""Reading training images, so that a bad file has a name and a sentence."""

from __future__ import annotations

import logging

import numpy as np
from detectron2.data import detection_utils as utils

from gal_d2.errors import UserError

logger = logging.getLogger(__name__)


class UnreadableImageError(UserError):
    """An image file is missing, broken, or not of the size that its annotation says."""


def read_training_image(record: dict, image_format: str) -> np.ndarray:
    """Read ``record["file_name"]``; EXIF orientation is applied.

    Args:
        record: dataset dict. If it has "height" and "width", the image must have that size.
        image_format: "RGB", "BGR" or another one of detectron2's.

    Returns:
        uint8 (H, W, C).

    Raises:
        UnreadableImageError: missing, broken, or of another size.
    """
    file_name = record["file_name"]
    try:
        image = utils.read_image(file_name, format=image_format)
        utils.check_image_size(dict(record), image)
    except FileNotFoundError as error:
        raise UnreadableImageError(
            f"The image {file_name} does not exist; check the image folder of its data set."
        ) from error
    except utils.SizeMismatchError as error:
        raise UnreadableImageError(
            f"The image {file_name} is {image.shape[1]} x {image.shape[0]}, but its annotation's "
            f"width and height are {record.get('width')} x {record.get('height')}; correct one."
        ) from error
    except Exception as error:  # what a decoder raises at broken data has no bound
        raise UnreadableImageError(
            f"The image {file_name} cannot be read ({type(error).__name__}: {error}); replace the "
            "file or take it out of the annotations."
        ) from error
    return image


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
