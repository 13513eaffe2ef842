"""Registration of LVIS-style data sets with detectron2, and what of them is known by name.

A registered set's metadata has ``thing_classes``, ``thing_dataset_id_to_contiguous_id`` (category
id in the JSON -> class), ``category_frequency`` ('r'/'c'/'f' by class) and ``class_image_count``
(list of ``{"id", "image_count"}``, as detectron2's federated loss wants it). They are read from the
JSON when one of them is first asked for: registering costs nothing and needs no file.

Importing this module registers ``lvis_v1_train/val`` (in place of detectron2's own) and
``miniature_train/val`` and ``street_train/val`` under ``$DETECTRON2_DATASETS``, as detectron2 does
with its data sets.
"""

from __future__ import annotations

import difflib
import logging
import os
import time
from pathlib import Path
from typing import Any

import detectron2.data.datasets  # noqa: F401  (it registers names that ours replace)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from gal_d2.datasets.annotation_file import (
    AnnotationFile,
    Category,
    read_annotation_file,
    read_categories,
    read_category_names,
)
from gal_d2.datasets.annotation_json import (
    DatasetNotFoundError,
    file_signature,
    without_garbage_collection,
)
from gal_d2.datasets.object_report import ObjectReport
from gal_d2.datasets.records import make_records
from gal_d2.datasets.shared_categories import log_findings, require_listed, with_categories
from gal_d2.datasets.source import Source, first_image
from gal_d2.errors import UserError
from gal_d2.files.image_file import WarnOnce

__all__ = [
    "DatasetNotFoundError",
    "load_annotation_file",
    "load_instances",
    "load_metadata",
    "names_left_out",
    "object_report",
    "register_all",
    "register_instances",
    "register_lvis",
    "register_miniature",
    "register_street",
    "require_dataset",
]

logger = logging.getLogger(__name__)
_warn_once = WarnOnce(logger)

_LVIS_V1 = {
    "lvis_v1_train": "lvis/lvis_v1_train.json",
    "lvis_v1_val": "lvis/lvis_v1_val.json",
}
_FROM_JSON = frozenset(
    {
        "thing_classes",
        "thing_dataset_id_to_contiguous_id",
        "category_frequency",
        "class_image_count",
    }
)


_sources: dict[str, Source] = {}
# What became of a file's objects, by (path, size and time): said and counted once a process.
_reports: dict[tuple[Path, tuple[int, int]], ObjectReport] = {}


class _JsonMetadata(Metadata):
    """Metadata that reads the category list from the JSON when it is first asked for it."""

    def __getattr__(self, key: str) -> Any:
        if key in _FROM_JSON:
            self.__dict__.update(_category_metadata(_load_categories(self.name)))
            return self.__dict__[key]
        return super().__getattr__(key)


def register_instances(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    *,
    categories_from: str | None = None,
    annotated_only: bool = False,
    replace: bool = False,
) -> None:
    """Make an LVIS- or COCO-format data set known to detectron2 under ``name``.

    Polygons and RLE are understood. Category ids may be any integers: classes are contiguous by
    sorted id. A category's missing ``image_count`` and ``frequency`` are derived from the
    annotations by the LVIS rule (rare up to 10 images, common up to 100). The files are not looked
    at before they are needed: call :func:`require_dataset` to check them.

    Args:
        name: of the data set.
        json_file: the annotations.
        image_root: the folder that ``file_name`` is relative to. Where an image has only a
            ``coco_url``, its last two parts (``train2017/000000000009.jpg``) are.
        categories_from: another registered set, which gives classes, frequencies and image counts.
            Name the training set here when you register its validation set: an own JSON of COCO
            format has no frequencies, and those derived from the validation images are not meant.
        annotated_only: a category without any annotation, such as an exporter's root category, is
            no class, unless it has an ``image_count`` or a ``frequency``. Of use for a training
            set; validation images may well lack a category that a model knows.
        replace: take the place of a set of that name.

    Raises:
        UserError: the name is taken, with other arguments; or ``categories_from`` is unknown.
    """
    source = Source(
        Path(json_file), Path(image_root), categories_from, annotated_only=annotated_only
    )
    _register(name, source, replace=replace)


def register_lvis(root: str | Path | None = None) -> None:
    """Register ``lvis_v1_train`` and ``lvis_v1_val`` in detectron2's layout, in place of its own.

    Args:
        root: the data sets' folder; default ``$DETECTRON2_DATASETS``, or else ``datasets``.
    """
    root = _root(root)
    for name, json_file in _LVIS_V1.items():
        source = Source(root / json_file, root / "coco", split_folders=True)
        _register(name, source, replace=True)


def register_miniature(root: str | Path | None = None) -> None:
    """Register ``miniature_train`` and ``miniature_val`` (``tools/prepare_miniature.py``).

    Args:
        root: the data sets' folder; default ``$DETECTRON2_DATASETS``, or else ``datasets``.
    """
    _register_prepared("miniature", root)


def register_street(root: str | Path | None = None) -> None:
    """Register ``street_train`` and ``street_val`` (``tools/prepare_street.py``).

    Args:
        root: the data sets' folder; default ``$DETECTRON2_DATASETS``, or else ``datasets``.
    """
    _register_prepared("street", root)


def register_all(root: str | Path | None = None) -> None:
    """Register every data set that this project has a name for."""
    register_lvis(root)
    register_miniature(root)
    register_street(root)


def require_dataset(name: str) -> None:
    """Check that a data set is registered and that its annotations and images are there.

    Of the images, the first one is looked for; where it is missing, all others.

    Raises:
        DatasetNotFoundError: the name is unknown, or a file is missing: of the images, all.
        UserError: the first image is missing, and the annotation file is broken.
    """
    source = _source(name)
    file_signature(source.json_file)
    missing = None
    if not source.image_root.is_dir():
        missing = source.image_root
    else:
        image = first_image(source)
        if image is not None and not image.is_file() and not _has_other_images(name):
            missing = image
    if missing is not None:
        raise DatasetNotFoundError(
            f"The images of data set '{name}' are not there ('{missing}' is missing): "
            "docs/datasets.md describes where they are expected and how to get them."
        )


def load_metadata(name: str) -> Metadata:
    """The metadata with all of its fields, read anew if the JSON was not read before.

    ``MetadataCatalog.get(name).thing_classes`` gives the same; this also explains a wrong name.

    Raises:
        DatasetNotFoundError: the name is unknown, or its annotation file is missing.
        UserError: the annotation file is broken.
    """
    _source(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.__dict__.keys() >= _FROM_JSON:
        metadata.__dict__.update(_category_metadata(_load_categories(name)))
    return metadata


def names_left_out(name: str) -> list[str]:
    """The categories that a data set lists and that are no classes, for nothing shows them.

    Raises:
        DatasetNotFoundError: the name is unknown, or its annotation file is missing.
        UserError: the annotation file is broken.
    """
    source = _source(name)
    if source.categories_from is not None:
        return names_left_out(source.categories_from)
    if not source.annotated_only:
        return []
    class_of = load_metadata(name).thing_dataset_id_to_contiguous_id
    listed = read_category_names(source.json_file)
    return [listed[category_id] for category_id in sorted(listed.keys() - class_of.keys())]


def load_annotation_file(name: str) -> AnnotationFile:
    """The checked annotations of a data set, with its ``categories_from`` applied.

    What was left out or put right is logged when a file is first read.

    Raises:
        DatasetNotFoundError: the name is unknown, or its annotation file is missing.
        UserError: the annotation file is broken.
    """
    source = _source(name)
    signature = file_signature(source.json_file)
    content = read_annotation_file(
        source.json_file, annotated_only=source.own_classes_annotated_only
    )
    if source.categories_from is not None:
        categories = _checked_categories(name, content.categories)
        content = with_categories(content, categories, source.categories_from)
    if (source.json_file, signature) not in _reports:
        log_findings(content, follows_another=source.categories_from is not None)
        _reports[source.json_file, signature] = content.report
    return content


def object_report(name: str) -> ObjectReport:
    """What became of the objects of a data set; read from its file where that was not done yet.

    Raises:
        DatasetNotFoundError, UserError: as :func:`load_annotation_file`.
    """
    source = _source(name)
    key = source.json_file, file_signature(source.json_file)
    return _reports[key] if key in _reports else load_annotation_file(name).report


@without_garbage_collection()
def load_instances(name: str) -> list[dict[str, Any]]:
    """A data set's images in detectron2's standard format; what ``DatasetCatalog.get`` calls.

    The records also have ``neg_category_ids`` and ``not_exhaustive_category_ids`` (ids of the
    JSON, as in detectron2's LVIS loader). In a set without these fields both are empty here, and
    :class:`gal_d2.evaluation.lvis_evaluation.LVISEvaluator` takes every absent category as
    negative. Annotations have ``iscrowd``; ``category_id`` is the class.

    Raises:
        DatasetNotFoundError: the name is unknown, or its annotation file is missing.
        UserError: the annotation file is broken.
    """
    start = time.perf_counter()
    source = _source(name)
    content = load_annotation_file(name)
    # The file may have changed since its categories were read, and the records must agree.
    MetadataCatalog.get(name).__dict__.update(_category_metadata(content.categories))
    records, renamed = make_records(source, content)
    if renamed:
        found, file_name = renamed[0]
        _warn_once(
            f"{source.json_file} names",
            f"{source.json_file}: {len(renamed)} image names are read with / for \\, or in another "
            f"Unicode form, as the files have it (first: '{found}' is {file_name})",
        )
    # Of the objects, `ObjectReport.counts` tells: a second total beside it would only puzzle.
    logger.info(
        "%s: %d images, %d categories, read in %.1f s",
        name,
        len(records),
        len(content.categories),
        time.perf_counter() - start,
    )
    return records


def _has_other_images(name: str) -> bool:
    """Some, of an own data set; one of LVIS's layout comes as a whole."""
    if _source(name).split_folders:
        return False
    return any(os.path.isfile(record["file_name"]) for record in load_instances(name))


def _root(root: str | Path | None) -> Path:
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets") if root is None else root)


def _register_prepared(name: str, root: str | Path | None) -> None:
    """Both splits of a set that one of this project's tools makes in a folder of its name."""
    folder = _root(root) / name
    for split in ("train", "val"):
        source = Source(folder / "annotations" / f"{name}_{split}.json", folder / "images" / split)
        _register(f"{name}_{split}", source, replace=True)


def _register(name: str, source: Source, *, replace: bool) -> None:
    if source.categories_from is not None:
        if source.categories_from == name:
            raise UserError(f"Data set '{name}' cannot take its categories from itself.")
        _source(source.categories_from)
    if _sources.get(name) == source and name in DatasetCatalog:
        return
    if name in DatasetCatalog and not replace:
        old = _sources.get(name)
        described = f" for '{old.json_file}' and '{old.image_root}'" if old else ""
        raise UserError(
            f"The data set name '{name}' is already taken{described}; choose another one."
        )
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    _sources[name] = source
    DatasetCatalog.register(name, lambda: load_instances(name))
    metadata = _JsonMetadata(name=name)
    metadata.set(
        json_file=str(source.json_file),
        image_root=str(source.image_root),
        evaluator_type="lvis",
    )
    MetadataCatalog[name] = metadata


def _source(name: str) -> Source:
    """Where the files of a set are: one registered here, or any other whose metadata says so."""
    if name in _sources:
        return _sources[name]
    if name not in DatasetCatalog:
        known = DatasetCatalog.list()
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(_sources)
        raise DatasetNotFoundError(
            f"There is no data set '{name}'; the nearest registered ones are: "
            f"{', '.join(nearest) or 'none'}. docs/datasets.md describes how to register yours."
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None or metadata.get("image_root") is None:
        raise UserError(
            f"Data set '{name}' has no annotation JSON in its metadata; register it with "
            "gal_d2.datasets.registration.register_instances."
        )
    return Source(
        Path(metadata.json_file),
        Path(metadata.image_root),
        split_folders=metadata.get("evaluator_type") == "lvis",
    )


def _load_categories(name: str) -> tuple[Category, ...]:
    source = _source(name)
    categories = read_categories(source.json_file, annotated_only=source.own_classes_annotated_only)
    return _checked_categories(name, categories) if source.categories_from else categories


def _checked_categories(name: str, own: tuple[Category, ...]) -> tuple[Category, ...]:
    """The categories of ``categories_from``, whose file must list ``own``, with the same names."""
    other = _sources[name].categories_from
    categories = _load_categories(other)
    name_of = {category.id: category.name for category in categories}
    if _source(other).annotated_only and any(category.id not in name_of for category in own):
        name_of = read_category_names(_source(other).json_file)
    require_listed(_sources[name].json_file, own, name_of, other)
    return categories


def _category_metadata(categories: tuple[Category, ...]) -> dict[str, Any]:
    return {
        "thing_classes": [category.name for category in categories],
        "thing_dataset_id_to_contiguous_id": {
            category.id: index for index, category in enumerate(categories)
        },
        "category_frequency": [category.frequency for category in categories],
        "class_image_count": [
            {"id": category.id, "image_count": category.image_count} for category in categories
        ],
    }


register_all()
