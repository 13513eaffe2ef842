"""Copy-paste in a detectron2 script that has nothing else of GAL-D2: no config keys, no trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures.masks import polygon_area
from pycocotools import mask as mask_utils

from gal_d2.copy_paste.augmentation import build_resize
from gal_d2.copy_paste.masks import usable_polygons
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.scale import class_scales
from gal_d2.datasets.statistics import CategoryStatistics, statistics_of
from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.sampler import UniformClassSampler


def pool_arguments(
    cfg: CfgNode,
    pool: str | PathLike,
    *,
    augmentations: Sequence[T.Augmentation | T.Transform] | None = None,
    options: PasteOptions | None = None,
) -> dict[str, Any]:
    """The arguments of a :class:`gal_d2.copy_paste.mapper.CopyPasteMapper` that pastes from a pool.

    For arguments and errors see :meth:`gal_d2.copy_paste.mapper.CopyPasteMapper.from_pool`.
    """
    if cfg.MODEL.KEYPOINT_ON:
        raise UserError(
            "MODEL.KEYPOINT_ON is True, and pasted objects have no keypoints: set it to False, or "
            "keep detectron2's own mapper."
        )
    # A set's classes are known once it is loaded.
    parts = [DatasetCatalog.get(name) for name in cfg.DATASETS.TRAIN]
    class_of, names = _categories(cfg.DATASETS.TRAIN[0])
    opened = InstancePool(pool, names=names)
    dicts = [record for part in parts for record in part]
    mean, std = class_scales([measure_dicts(dicts, len(class_of))])
    return {
        "augmentations": list(build_resize(cfg) if augmentations is None else augmentations),
        "image_format": cfg.INPUT.FORMAT,
        "options": options or PasteOptions(),
        "pool": opened,
        "sampler": UniformClassSampler(opened, class_of),
        "class_of_category": class_of,
        "scale_mean": mean,
        "scale_std": std,
    }


def measure_dicts(dicts: Iterable[dict], num_classes: int) -> CategoryStatistics:
    """Count and measure the objects of a data set in detectron2's format; crowds are left out.

    Args:
        dicts: with "height" and "width"; objects with a mask (polygons or RLE) count.
        num_classes: C.

    Raises:
        UserError: an image has no size, or an object's class is not among the C.
    """
    classes, images, scales = [], [], []
    for index, record in enumerate(dicts):
        if not record.get("height") or not record.get("width"):
            raise UserError(
                f"The dataset dict of {record.get('file_name')} has no 'height' and 'width': add "
                "them, for pastes are as large as real objects are against their images."
            )
        size = record["height"] * record["width"]
        for annotation in record.get("annotations", ()):
            if annotation.get("iscrowd", 0) or not annotation.get("segmentation"):
                continue
            if not 0 <= annotation["category_id"] < num_classes:
                raise UserError(
                    f"An object of {record.get('file_name')} has category_id "
                    f"{annotation['category_id']}, but there are {num_classes} classes: in "
                    "dataset dicts it is the class, from 0."
                )
            classes.append(annotation["category_id"])
            images.append(index)
            scales.append((_area(annotation["segmentation"]) / size) ** 0.5)
    return statistics_of(
        np.array(classes, np.int64), np.array(images, np.int64), np.array(scales), num_classes
    )


def _area(segmentation: list | dict) -> float:
    """In pixels."""
    if isinstance(segmentation, list):
        return sum(polygon_area(*polygon.T) for polygon in usable_polygons(segmentation))
    if isinstance(segmentation["counts"], list):
        return sum(segmentation["counts"][1::2])  # runs of background and object take turns
    return float(mask_utils.area(segmentation))


def _categories(dataset: str) -> tuple[dict[int, int], dict[int, str]]:
    """Class by category id, and name by category id."""
    metadata = MetadataCatalog.get(dataset)
    classes = metadata.get("thing_classes")
    if not classes:
        raise UserError(
            f"The data set '{dataset}' (DATASETS.TRAIN) has no class names: set them with "
            f"MetadataCatalog.get('{dataset}').thing_classes = [...]."
        )
    # Without ids of their own, categories are numbered as the classes are.
    identity = {index: index for index in range(len(classes))}
    class_of = metadata.get("thing_dataset_id_to_contiguous_id") or identity
    return dict(class_of), {category: classes[index] for category, index in class_of.items()}
