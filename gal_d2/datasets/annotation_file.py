"""Reading LVIS- and COCO-format annotation JSON: parse, check, and fill in what COCO lacks."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gal_d2.datasets.annotation_cache import CheckedAnnotations, checked_annotations
from gal_d2.datasets.annotation_json import (
    fail,
    parse,
    parse_tail,
    without_garbage_collection,
)
from gal_d2.datasets.annotation_objects import is_id, normalise_annotations, show_id
from gal_d2.datasets.annotation_table import AnnotationTable, pack
from gal_d2.datasets.object_report import ObjectReport

FREQUENCIES = ("r", "c", "f")
RARE_MAX_IMAGES = 10
COMMON_MAX_IMAGES = 100

# What is read of a category.
_CATEGORY_KEYS = ("id", "name", "frequency", "image_count", "def", "synonyms")
# pycocotools counts an image's pixels in 32 bits.
_MAX_PIXELS = 2**31 - 1


@dataclass(frozen=True)
class Category:
    """A category: its JSON id, its name, and in how many training images it is annotated.

    ``definition`` and ``synonyms`` are LVIS's "def" and "synonyms"; empty where the file has none.
    """

    id: int
    name: str
    frequency: str
    image_count: int
    definition: str = ""
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnnotationFile:
    """The checked content of an annotation JSON.

    Attributes:
        path: where it was read from.
        images: sorted by id. Each dict has ``id, height, width``, ``file_name`` or ``coco_url``,
            ``neg_category_ids`` and ``not_exhaustive_category_ids`` (JSON ids; maybe empty).
        annotations: those with a usable mask, in the order of the file. Each dict has ``id,
            image_id, category_id`` (JSON id), and ``segmentation`` (flat polygons or a compressed
            RLE), ``bbox`` (XYWH, pixels), ``area`` (pixels) and ``iscrowd`` (0 or 1), which agree:
            see :func:`gal_d2.datasets.annotation_objects.normalise_annotations`.
        categories: sorted by id; the position is the contiguous class index.
        exhaustive: the file has no federated fields, so in each image every category is annotated
            completely (COCO format), and a category that is not there is known to be absent.
        report: what was left out and what was put right.
        left_out: names, by id, of categories without annotations that are no classes.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: AnnotationTable
    categories: tuple[Category, ...]
    exhaustive: bool
    report: ObjectReport
    left_out: dict[int, str]


def frequency_of(image_count: int) -> str:
    """LVIS rule: 'r' (rare) up to 10 training images, 'c' (common) up to 100, else 'f'."""
    if image_count <= RARE_MAX_IMAGES:
        return "r"
    return "c" if image_count <= COMMON_MAX_IMAGES else "f"


def read_annotation_file(path: str | Path, *, annotated_only: bool = False) -> AnnotationFile:
    """The checked content of an annotation JSON, parsed or as it was kept when it was parsed.

    Annotations without a usable mask are left out; ``report`` counts them. Nothing is logged about
    them.

    Args:
        path: of the JSON.
        annotated_only: categories without any annotation are no classes (an exporter's root
            category, say), unless they have an ``image_count`` or a ``frequency``.

    Raises:
        DatasetNotFoundError: the file is not there.
        UserError: broken JSON, or a missing or senseless field.
    """
    path = Path(path)
    checked = checked_annotations(path, lambda: check_annotations(path))
    raw_categories = checked.about["categories"]
    report = ObjectReport.from_json(checked.about["report"])
    left_out = {}
    if annotated_only and report.total:
        left_out = {
            raw["id"]: raw["name"]
            for raw in raw_categories
            if raw["id"] not in report.objects_of and not _is_asked_for(raw)
        }
    return AnnotationFile(
        path=path,
        images=checked.table.images(),
        annotations=checked.table,
        categories=_categories(
            path,
            [raw for raw in raw_categories if raw["id"] not in left_out],
            dict(checked.about["image_counts"]),
        ),
        exhaustive=checked.about["exhaustive"],
        report=report,
        left_out=left_out,
    )


@without_garbage_collection()
def check_annotations(path: Path) -> CheckedAnnotations:
    """Parse and check a whole annotation JSON.

    Raises:
        DatasetNotFoundError, UserError: as :func:`read_annotation_file`.
    """
    content = parse(path)
    raw_categories = _category_dicts(path, content)
    images, federated = _check_images(path, _field(path, content, "images"))
    raw_annotations = _field(path, content, "annotations")
    annotations, report = normalise_annotations(
        raw_annotations,
        {image["id"]: image for image in images},
        {category["id"] for category in raw_categories},
        functools.partial(fail, path),
    )
    raw_annotations.clear()  # so that packing frees each as it goes
    about = {
        "categories": [
            {key: raw[key] for key in _CATEGORY_KEYS if key in raw} for raw in raw_categories
        ],
        "exhaustive": not federated,
        "image_counts": list(_image_counts(annotations).items()),
        "report": report.to_json(),
    }
    return CheckedAnnotations(AnnotationTable(pack(images, annotations)), about)


def read_categories(path: str | Path, *, annotated_only: bool = False) -> tuple[Category, ...]:
    """The categories alone, sorted by id.

    Quick (no parsing of annotations) when the list stands at the end of the file, as in LVIS and
    COCO, and gives each category's frequency and image count; otherwise the whole file is read.

    Args:
        path, annotated_only: as of :func:`read_annotation_file`.

    Raises:
        DatasetNotFoundError, UserError: as :func:`read_annotation_file`.
    """
    path = Path(path)
    tail = parse_tail(path)
    if tail is not None:
        raw_categories = _category_dicts(path, tail)
        if all("frequency" in c and "image_count" in c for c in raw_categories):
            return _categories(path, raw_categories, {})
    return read_annotation_file(path, annotated_only=annotated_only).categories


def read_category_names(path: str | Path) -> dict[int, str]:
    """The names of all categories that the file lists, by id.

    Raises:
        DatasetNotFoundError, UserError: as :func:`read_annotation_file`.
    """
    path = Path(path)
    content = parse_tail(path)
    return {
        raw["id"]: raw["name"]
        for raw in _category_dicts(path, parse(path) if content is None else content)
    }


def _field(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        fail(path, f"the field '{key}' must be a list of objects, as in LVIS or COCO format.")
    return value


def _category_dicts(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    categories = _field(path, content, "categories")
    if not categories:
        fail(path, "the field 'categories' is empty; list at least one category.")
    seen = set()
    for category in categories:
        category_id = category.get("id")
        if not is_id(category_id):
            fail(
                path,
                f"category {category.get('name')!r:.60} has the id {show_id(category_id)}; make "
                "the ids whole numbers from 0 on.",
            )
        if category_id in seen:
            fail(path, f"category id {category_id} occurs twice in 'categories'; make it unique.")
        seen.add(category_id)
        if not _is_text(category.get("name")):
            fail(path, f"category {category_id} needs a 'name' (text).")
    return sorted(categories, key=lambda category: category["id"])


def _categories(
    path: Path, raw_categories: list[dict[str, Any]], image_counts: dict[int, int]
) -> tuple[Category, ...]:
    categories = []
    id_of: dict[str, int] = {}
    for raw in raw_categories:
        if raw["name"] in id_of:
            fail(
                path,
                f"the categories {id_of[raw['name']]} and {raw['id']} are both named "
                f"'{raw['name']}'; rename one, or give their annotations one category_id.",
            )
        id_of[raw["name"]] = raw["id"]
        image_count = raw.get("image_count", image_counts.get(raw["id"], 0))
        if not is_id(image_count):
            fail(
                path,
                f"category {raw['id']}: image_count is {image_count!r:.60}; give a whole number "
                ">= 0, or leave the field out to have it counted.",
            )
        frequency = raw.get("frequency", frequency_of(image_count))
        if frequency not in FREQUENCIES:
            fail(
                path,
                f"category {raw['id']}: frequency is {frequency!r:.60}; use 'r', 'c' or 'f', or "
                "leave the field out to have it derived.",
            )
        definition, synonyms = raw.get("def"), raw.get("synonyms")
        categories.append(
            Category(
                raw["id"],
                raw["name"],
                frequency,
                image_count,
                definition if isinstance(definition, str) else "",
                tuple(s for s in synonyms if isinstance(s, str))
                if isinstance(synonyms, list)
                else (),
            )
        )
    return tuple(categories)


def _image_counts(annotations: list[dict[str, Any]]) -> dict[int, int]:
    """In how many images each category has an instance; crowds are none."""
    images_of = defaultdict(set)
    for annotation in annotations:
        if not annotation["iscrowd"]:
            images_of[annotation["category_id"]].add(annotation["image_id"])
    return {category_id: len(images) for category_id, images in images_of.items()}


def _check_images(path: Path, images: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Check the images and give each the federated fields; True if any had them before."""
    federated = False
    seen = set()
    for image in images:
        image_id = image.get("id")
        if not is_id(image_id):
            name = image.get("file_name")
            fail(
                path,
                f"the image {name!r:.200} has the id {show_id(image_id)}; make the ids whole "
                "numbers from 0 on.",
            )
        if image_id in seen:
            fail(path, f"image id {image_id} occurs twice in 'images'; make it unique.")
        seen.add(image_id)
        for key in ("height", "width"):
            value = image.get(key)
            if type(value) is not int or value <= 0:
                fail(
                    path,
                    f"image {image_id}: {key} is {value!r:.60}; give its pixels, an integer.",
                )
        if image["height"] * image["width"] > _MAX_PIXELS:
            fail(
                path,
                f"image {image_id}: height x width is more than {_MAX_PIXELS} pixels; correct "
                "them, or cut the image into tiles.",
            )
        _check_image_name(path, image)
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            federated |= key in image
            value = image.setdefault(key, [])
            if not isinstance(value, list) or not all(map(is_id, value)):
                fail(path, f"image {image_id}: {key} is {value!r:.60}; give a list of ids.")
    return sorted(images, key=lambda image: image["id"]), federated


def _check_image_name(path: Path, image: dict[str, Any]) -> None:
    for key in ("file_name", "coco_url"):
        value = image.get(key)
        if value is not None and (not _is_text(value) or "\0" in value):
            fail(path, f"image {image['id']}: {key} is {value!r:.200}; give a file's name.")
    if not image.get("file_name") and not image.get("coco_url"):
        fail(path, f"image {image['id']} has neither 'file_name' nor 'coco_url'; add a file_name.")


def _is_text(value: Any) -> bool:
    """Text that can be printed: JSON can also write half a character."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_asked_for(raw_category: dict[str, Any]) -> bool:
    return "image_count" in raw_category or "frequency" in raw_category
