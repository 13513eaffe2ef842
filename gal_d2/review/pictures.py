"""Cut-outs and real objects as PNG files, for the page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gal_d2.copy_paste.real_instances import RealInstances
from gal_d2.errors import UserError
from gal_d2.files.image_file import UnreadableImageError

_LEAST_SIDE = 256  # small cut-outs are enlarged to it, without smoothing them away
_MOST_SIDE = 1024


def to_png(rgba: np.ndarray) -> bytes:
    """An (H, W, 4) uint8 picture as PNG, its longer side between 256 and 1,024 px."""
    image = Image.fromarray(np.ascontiguousarray(rgba))
    side = max(image.size)
    wanted = min(max(side, _LEAST_SIDE), _MOST_SIDE)
    if wanted != side:
        size = tuple(max(1, round(length * wanted / side)) for length in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class RealExamples:
    """A few real objects of each category, cut out of the training images.

    Args:
        dataset_dicts: the training set in detectron2's format.
        class_of_category: category id (as in the JSON) -> class index.
        number: most of a category; the same ones each time.
    """

    def __init__(
        self, dataset_dicts: Sequence[dict], class_of_category: dict[int, int], number: int = 6
    ) -> None:
        self._class_of = class_of_category
        self._number = number
        try:
            self._objects: RealInstances | None = RealInstances(dataset_dicts)
        except UserError:  # no masks: the review goes on without examples
            self._objects = None

    def count(self, category_id: int) -> int:
        """How many there are to show of a category."""
        return len(self._indices(category_id))

    def png(self, category_id: int, number: int) -> bytes:
        """One of them, as PNG.

        Raises:
            IndexError: there is none of this number.
            UnreadableImageError: its image is missing or broken.
        """
        indices = self._indices(category_id)
        if not 0 <= number < len(indices):
            raise IndexError(f"category {category_id} has {len(indices)} examples, no {number}")
        found = self._objects.cut_out(int(indices[number]))
        if found is None:
            raise UnreadableImageError("its segmentation covers no pixel")
        return to_png(found.rgba)

    def _indices(self, category_id: int) -> np.ndarray:
        if self._objects is None or category_id not in self._class_of:
            return np.empty(0, np.int64)
        indices = self._objects.indices_of(self._class_of[category_id])
        rng = np.random.default_rng(category_id)
        return rng.permutation(indices)[: self._number]
