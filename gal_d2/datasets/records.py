"""Dataset dicts in detectron2's format, whose annotations are made when they are looked at.

A record is an ordinary dict; its ``annotations`` are a sequence over the arrays of the whole file.
Pickled (for loader workers), it says where in the mapped file they lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode

from gal_d2.datasets.annotation_cache import table_at
from gal_d2.datasets.annotation_file import AnnotationFile
from gal_d2.datasets.annotation_table import AnnotationTable
from gal_d2.datasets.image_paths import find_image
from gal_d2.datasets.source import Source, image_name


class ImageAnnotations(Sequence):
    """The annotations of one image, in detectron2's format; each look gives a new dict.

    Args:
        table: of the whole file.
        rows: (k,) of the image.
        classes: (k,) class indices.
    """

    __slots__ = ("classes", "rows", "table")
    __hash__ = None

    def __init__(self, table: AnnotationTable, rows: Sequence[int], classes: Sequence[int]) -> None:
        self.table, self.rows, self.classes = table, rows, classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self.rows[index]
        arrays = self.table.arrays
        return {
            "bbox": arrays["box"][row].tolist(),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": self.classes[index],
            "segmentation": self.table.segmentation(row),
            "iscrowd": int(arrays["crowd"][row]),
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __deepcopy__(self, memo: dict) -> list[dict[str, Any]]:
        return list(self)  # whoever copies means to change them

    def __reduce__(self) -> tuple:
        if self.table.home is None:
            return list, (list(self),)
        return _restore, (*self.table.home, self.rows, self.classes)

    def object_classes(self) -> list[int]:
        """Class indices of those that are no crowds, without making the others' dicts."""
        crowd = self.table.arrays["crowd"]
        return [c for row, c in zip(self.rows, self.classes, strict=True) if not crowd[row]]


def make_records(
    source: Source, content: AnnotationFile
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """The dataset dicts of a file.

    Args:
        source: where its images are.
        content: its annotations; those of other categories than its own are left out.

    Returns:
        A record for each image; and of the images that are found under another name than the
        file gives, this name and the path.

    Raises:
        UserError: an image lies outside of the folder.
    """
    table = content.annotations
    starts = table.arrays["first_row"].tolist()
    classes = table.classes_by_row([category.id for category in content.categories]).tolist()
    records, renamed = [], []
    for image, (start, stop) in zip(content.images, pairwise(starts), strict=True):
        name_in_json = image_name(source, image)
        file_name = find_image(source.image_root, name_in_json)
        if file_name != os.path.join(source.image_root, name_in_json):
            renamed.append((name_in_json, file_name))
        rows: Sequence[int] = range(start, stop)
        of_image = classes[start:stop]
        if of_image and min(of_image) < 0:
            rows = tuple(row for row in rows if classes[row] >= 0)
            of_image = [classes[row] for row in rows]
        records.append(
            {
                "file_name": file_name,
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
                "neg_category_ids": image["neg_category_ids"],
                "annotations": ImageAnnotations(table, rows, tuple(of_image)),
            }
        )
    return records, renamed


def object_classes(record: Mapping[str, Any]) -> list[int]:
    """Class indices of the objects of a dataset dict, crowds aside."""
    annotations = record.get("annotations", ())
    if isinstance(annotations, ImageAnnotations):
        return annotations.object_classes()
    return [a["category_id"] for a in annotations if not a.get("iscrowd", 0)]


def repeat_factors(records: Sequence[Mapping[str, Any]], threshold: float) -> torch.Tensor:
    """(number of records,) float32: LVIS's repeat factors as detectron2 computes them.

    Crowds count as their class, as they do there.

    Args:
        records: dataset dicts.
        threshold: share of the images below which those of a class are repeated.
    """
    # What detectron2 reads of an annotation, without making the rest of each.
    classes = [
        [{"category_id": c} for c in set(annotations.classes)]
        if isinstance(annotations := record["annotations"], ImageAnnotations)
        else annotations
        for record in records
    ]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        [{"annotations": of_image} for of_image in classes], threshold
    )


def _restore(home: str, identity: int, rows: Sequence[int], classes: Sequence[int]) -> Any:
    return ImageAnnotations(table_at(home, identity), rows, classes)
