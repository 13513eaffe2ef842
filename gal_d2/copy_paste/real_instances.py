"""Real-to-real copy-paste: objects cut out of other training images (Ghiasi et al. 2021)."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from gal_d2.copy_paste.masks import Box, transform_segmentations
from gal_d2.errors import UserError
from gal_d2.files.image_file import read_training_image


class RealCutOut(NamedTuple):
    """An object of a training image: its class, and uint8 (H, W, 4) R, G, B and alpha 0 or 255."""

    class_index: int
    rgba: np.ndarray


class RealInstances:
    """The annotated objects of a training set, to draw from and to cut out of their images.

    Drawing reads nothing; cutting out reads the object's whole image, which costs as much as
    loading another training image. The annotations are kept as packed bytes (polygons as float32),
    so that forked workers share them.

    Args:
        dataset_dicts: the training set in detectron2's format; not kept.
        min_size: smaller objects, by sqrt(width * height) of their box in pixels, are left out.
            They would have to be enlarged.

    Raises:
        UserError: no object is left.
    """

    def __init__(self, dataset_dicts: Iterable[dict], *, min_size: float = 10) -> None:
        self._images: list[tuple[str, int | None, int | None]] = []
        images, classes, segmentations = [], [], []
        for record in dataset_dicts:
            self._images.append((record["file_name"], record.get("height"), record.get("width")))
            for annotation in record.get("annotations", ()):
                if can_be_cut_out(annotation, min_size):
                    images.append(len(self._images) - 1)
                    classes.append(annotation["category_id"])
                    segmentations.append(_pack(annotation["segmentation"]))
        if not classes:
            raise UserError(
                "The training set has no object to cut out, as GAL.COPY_PASTE.REAL_FRACTION above "
                "0 and the filter clip_image need: none has a segmentation and a box of at least "
                f"{min_size} x {min_size} px, crowds aside; set the former to 0 and leave the "
                "latter out of GAL.GENERATOR.FILTER.NAMES, or annotate masks."
            )
        self._image_of = np.array(images, dtype=np.int32)
        self._class_of = np.array(classes, dtype=np.int32)
        self._packed = np.frombuffer(b"".join(segmentations), dtype=np.uint8)
        self._ends = np.cumsum([len(packed) for packed in segmentations])
        self._by_class = np.argsort(self._class_of, kind="stable")
        self._classes, self._class_starts = np.unique(
            self._class_of[self._by_class], return_index=True
        )

    def __len__(self) -> int:
        return len(self._class_of)

    @property
    def classes(self) -> np.ndarray:
        """Ascending class indices that have an object to draw."""
        return self._classes

    def indices_of(self, class_index: int) -> np.ndarray:
        """int64 (m,), to be given to :meth:`cut_out`: all objects of a class, in order."""
        return np.flatnonzero(self._class_of == class_index)

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``num`` objects: a class uniformly, then one of its objects uniformly.

        Returns:
            int64 (num,), to be given to :meth:`cut_out`.
        """
        ends = np.append(self._class_starts[1:], len(self))
        chosen = rng.integers(len(self._classes), size=num)
        return self._by_class[rng.integers(self._class_starts[chosen], ends[chosen])]

    def cut_out(self, index: int) -> RealCutOut | None:
        """Cut an object out of its image.

        Returns:
            The object, cropped to its mask; None if its segmentation covers no pixel.

        Raises:
            UnreadableImageError: the image is missing or broken.
        """
        file_name, height, width = self._images[self._image_of[index]]
        record = {"file_name": file_name}
        if height is not None and width is not None:
            record |= {"height": height, "width": width}
        image = read_training_image(record, "RGB")
        start = self._ends[index - 1] if index else 0
        segmentation = _unpack(self._packed[start : self._ends[index]].tobytes())
        canvas = Box(0, 0, image.shape[1], image.shape[0])
        (mask,) = transform_segmentations([segmentation], T.NoOpTransform(), canvas)
        if mask is None:
            return None
        rgba = np.dstack((image[mask.box.slices], mask.bitmap.view(np.uint8) * np.uint8(255)))
        return RealCutOut(int(self._class_of[index]), rgba)


def can_be_cut_out(annotation: dict, min_size: float) -> bool:
    """Whether an annotation is an object with a mask, and a box of ``min_size`` px or more.

    Crowds are not: they are many objects, and parts of them.
    """
    if annotation.get("iscrowd", 0) or not annotation.get("segmentation"):
        return False
    x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return math.sqrt(max(0.0, x1 - x0) * max(0.0, y1 - y0)) >= min_size


def _pack(segmentation: list | dict) -> bytes:
    if isinstance(segmentation, dict):
        return pickle.dumps(segmentation)
    return pickle.dumps([np.asarray(polygon, np.float32).tobytes() for polygon in segmentation])


def _unpack(packed: bytes) -> list | dict:
    segmentation = pickle.loads(packed)
    if isinstance(segmentation, dict):
        return segmentation
    return [np.frombuffer(polygon, np.float32) for polygon in segmentation]
