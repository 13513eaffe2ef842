"""How many and how large the objects of each class are; computed once per annotation file."""

from __future__ import annotations

import dataclasses
import logging
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from gal_d2.datasets.annotation_file import AnnotationFile, file_signature
from gal_d2.datasets.registration import load_annotation_file, load_metadata
from gal_d2.files.atomic_file import replacing
from gal_d2.files.checksum import require_intact, seal_zip

logger = logging.getLogger(__name__)

# Part of the cache's key: raise it when the meaning of a field changes.
_FORMAT = 2


@dataclass(frozen=True, eq=False)
class CategoryStatistics:
    """Arrays by class index, shape (C,). Crowds are not counted.

    Attributes:
        image_count: int64, images with at least one instance.
        instance_count: int64.
        scale_mean: float64, mean of sqrt(instance area / image area); NaN without an instance.
        scale_std: float64, its standard deviation (population); NaN without an instance, and 0
            with a single one.
        overall_mean, overall_std: the same two over the instances of all classes together.
    """

    image_count: np.ndarray
    instance_count: np.ndarray
    scale_mean: np.ndarray
    scale_std: np.ndarray
    overall_mean: float
    overall_std: float


def category_statistics(dataset_name: str) -> CategoryStatistics:
    """Statistics of a registered data set, from the cache file next to its annotations if valid.

    The cache is ``<stem of the JSON>.statistics.npz``. It is good for one size and modification
    time of the JSON and one category list. Where it cannot be written, that is logged, and
    the result is kept for this process only.

    Raises:
        DatasetNotFoundError: the name is unknown, or its annotation file is missing.
        UserError: the annotation file is broken.
    """
    metadata = load_metadata(dataset_name)
    json_file = Path(metadata.json_file)
    category_ids = tuple(sorted(metadata.thing_dataset_id_to_contiguous_id))
    return _cached(dataset_name, json_file, file_signature(json_file), category_ids)


@lru_cache(maxsize=8)
def _cached(
    dataset_name: str, json_file: Path, signature: tuple[int, int], category_ids: tuple[int, ...]
) -> CategoryStatistics:
    cache = json_file.with_name(f"{json_file.stem}.statistics.npz")
    key = np.array([_FORMAT, *signature, *category_ids], dtype=np.int64)
    statistics = _read(cache, key)
    if statistics is None:
        statistics = compute_statistics(load_annotation_file(dataset_name))
        _write(cache, key, statistics)
    return statistics


def compute_statistics(content: AnnotationFile) -> CategoryStatistics:
    """Count and measure the instances of an annotation file; its crowds are ignored."""
    class_of = {category.id: index for index, category in enumerate(content.categories)}
    index_of = {image["id"]: index for index, image in enumerate(content.images)}
    image_area = np.array(
        [image["height"] * image["width"] for image in content.images], dtype=np.float64
    )
    instances = [ann for ann in content.annotations if not ann["iscrowd"]]
    count = len(instances)
    classes = np.fromiter((class_of[a["category_id"]] for a in instances), np.int64, count)
    images = np.fromiter((index_of[a["image_id"]] for a in instances), np.int64, count)
    area = np.fromiter((a["area"] for a in instances), np.float64, count)
    scale = np.sqrt(area / image_area[images])

    num_classes = len(class_of)
    instance_count = np.bincount(classes, minlength=num_classes)
    pairs = np.unique(classes * max(len(content.images), 1) + images)
    image_count = np.bincount(pairs // max(len(content.images), 1), minlength=num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is documented
        mean = np.bincount(classes, scale, minlength=num_classes) / instance_count
        deviation = (scale - mean[classes]) ** 2
        std = np.sqrt(np.bincount(classes, deviation, minlength=num_classes) / instance_count)
    return CategoryStatistics(
        image_count=image_count,
        instance_count=instance_count,
        scale_mean=mean,
        scale_std=std,
        overall_mean=float(scale.mean()) if count else float("nan"),
        overall_std=float(scale.std()) if count else float("nan"),
    )


def _read(cache: Path, key: np.ndarray) -> CategoryStatistics | None:
    try:
        require_intact(cache)
        with np.load(cache, allow_pickle=False) as stored:
            if not np.array_equal(stored["key"], key):
                return None
            return CategoryStatistics(
                image_count=stored["image_count"],
                instance_count=stored["instance_count"],
                scale_mean=stored["scale_mean"],
                scale_std=stored["scale_std"],
                overall_mean=float(stored["overall_mean"]),
                overall_std=float(stored["overall_std"]),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is not readable (%s); it is computed anew", cache, error)
        return None


def _write(cache: Path, key: np.ndarray, statistics: CategoryStatistics) -> None:
    try:
        with replacing(cache) as temporary:
            with temporary.open("wb") as file:
                np.savez(file, key=key, **dataclasses.asdict(statistics))
            seal_zip(temporary)
    except OSError as error:
        logger.warning("%s cannot be written (%s); the next run computes it again", cache, error)
