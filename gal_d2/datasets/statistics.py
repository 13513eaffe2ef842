"""How many and how large the objects of each class are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from gal_d2.datasets.annotation_file import AnnotationFile
from gal_d2.datasets.annotation_json import file_signature
from gal_d2.datasets.registration import load_annotation_file, load_metadata


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
    """Statistics of a registered data set; the process keeps them as long as the JSON stays.

    Raises:
        DatasetNotFoundError: the name is unknown, or its annotation file is missing.
        UserError: the annotation file is broken.
    """
    metadata = load_metadata(dataset_name)
    json_file = Path(metadata.json_file)
    category_ids = tuple(sorted(metadata.thing_dataset_id_to_contiguous_id))
    return _kept(dataset_name, json_file, file_signature(json_file), category_ids)


def image_counts(dataset_names: Iterable[str]) -> dict[int, int]:
    """By category id (as in the JSON): images with an instance, in all these data sets together.

    Raises:
        DatasetNotFoundError, UserError: as :func:`category_statistics`.
    """
    counts: Counter[int] = Counter()
    for name in dataset_names:
        images = category_statistics(name).image_count
        class_of = load_metadata(name).thing_dataset_id_to_contiguous_id
        counts.update({category: int(images[index]) for category, index in class_of.items()})
    return dict(counts)


@lru_cache(maxsize=8)
def _kept(
    dataset_name: str, json_file: Path, signature: tuple[int, int], category_ids: tuple[int, ...]
) -> CategoryStatistics:
    return compute_statistics(load_annotation_file(dataset_name))


def compute_statistics(content: AnnotationFile) -> CategoryStatistics:
    """Count and measure the instances of an annotation file; its crowds are ignored."""
    image_area = np.array(
        [image["height"] * image["width"] for image in content.images], dtype=np.float64
    )
    table = content.annotations
    is_object = table.column("crowd") == 0
    classes = table.classes([category.id for category in content.categories])[is_object]
    images = table.column("image")[is_object]
    scale = np.sqrt(table.column("area")[is_object] / image_area[images])
    return statistics_of(classes, images, scale, len(content.categories))


def statistics_of(
    classes: np.ndarray, images: np.ndarray, scale: np.ndarray, num_classes: int
) -> CategoryStatistics:
    """Count and measure N instances.

    Args:
        classes: (N,) int64, class index.
        images: (N,) int64, index of the image, from 0.
        scale: (N,) float64, sqrt(instance area / image area).
        num_classes: C.
    """
    instance_count = np.bincount(classes, minlength=num_classes)
    num_images = int(images.max(initial=0)) + 1
    # np.unique keeps a hash table, which for a million takes fifty times as long as sorting.
    pairs = np.sort(classes * num_images + images)
    is_first = np.diff(pairs, prepend=-1) > 0
    image_count = np.bincount(pairs[is_first] // num_images, minlength=num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is documented
        mean = np.bincount(classes, scale, minlength=num_classes) / instance_count
        deviation = (scale - mean[classes]) ** 2
        std = np.sqrt(np.bincount(classes, deviation, minlength=num_classes) / instance_count)
    return CategoryStatistics(
        image_count=image_count,
        instance_count=instance_count,
        scale_mean=mean,
        scale_std=std,
        overall_mean=float(scale.mean()) if len(scale) else float("nan"),
        overall_std=float(scale.std()) if len(scale) else float("nan"),
    )
