"""Reading LVIS- and COCO-format annotation JSON: parse, check, and fill in what COCO lacks."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import mmap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

FREQUENCIES = ("r", "c", "f")
RARE_MAX_IMAGES = 10
COMMON_MAX_IMAGES = 100

# The category list is looked for in this much of the end of the file before the whole is parsed.
_CATEGORY_TAIL_BYTES = 64 * 2**20
_IDS_IN_MESSAGE = 10


class DatasetNotFoundError(UserError):
    """A file of a data set, or the data set itself, is not there."""


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
        annotations: in the order of the file. Each dict has ``id, image_id, category_id`` (JSON
            id), ``bbox`` (XYWH, pixels), ``area`` (pixels), ``iscrowd``, and ``segmentation``:
            polygons or a compressed RLE.
        categories: sorted by id; the position is the contiguous class index.
        exhaustive: the file has no federated fields, so in each image every category is annotated
            completely (COCO format), and a category that is not there is known to be absent.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: tuple[Category, ...]
    exhaustive: bool


def frequency_of(image_count: int) -> str:
    """LVIS rule: 'r' (rare) up to 10 training images, 'c' (common) up to 100, else 'f'."""
    if image_count <= RARE_MAX_IMAGES:
        return "r"
    return "c" if image_count <= COMMON_MAX_IMAGES else "f"


def file_signature(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns: what says that a cached reading is still good.

    Raises:
        DatasetNotFoundError: the file is not there.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _not_there(path) from error
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Reading makes millions of objects and no cycle; looking for one takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_garbage_collection()
def read_annotation_file(path: str | Path) -> AnnotationFile:
    """Read and check a whole annotation JSON, in one pass and without copying annotations.

    Polygons of fewer than 3 points are dropped, and annotations without a usable segmentation are
    left out; both are logged once with their ids. Where an annotation is left out, its category
    counts as not exhaustively annotated in that image, so that finding the object is no mistake.

    Raises:
        DatasetNotFoundError: the file is not there.
        UserError: broken JSON, or a missing or senseless field.
    """
    path = Path(path)
    content = _parse(path)
    raw_categories = _category_dicts(path, content)
    images, federated = _check_images(path, _field(path, content, "images"))
    annotations = _check_annotations(
        path,
        _field(path, content, "annotations"),
        {image["id"]: image for image in images},
        {category["id"] for category in raw_categories},
    )
    counts = _image_counts(annotations)
    return AnnotationFile(
        path=path,
        images=images,
        annotations=annotations,
        categories=_categories(path, raw_categories, counts),
        exhaustive=not federated,
    )


def read_categories(path: str | Path) -> tuple[Category, ...]:
    """The categories alone, sorted by id.

    Quick (no parsing of annotations) when the list stands at the end of the file, as in LVIS and
    COCO, and gives each category's frequency and image count; otherwise the whole file is read.

    Raises:
        DatasetNotFoundError, UserError: as :func:`read_annotation_file`.
    """
    path = Path(path)
    tail = _parse_tail(path)
    if tail is not None:
        raw_categories = _category_dicts(path, tail)
        if all("frequency" in c and "image_count" in c for c in raw_categories):
            return _categories(path, raw_categories, {})
    return read_annotation_file(path).categories


def _not_there(path: Path) -> DatasetNotFoundError:
    return DatasetNotFoundError(
        f"The annotation file '{path}' is not there: datasets/README.md describes where each data "
        "set is expected (below $DETECTRON2_DATASETS) and how to get it."
    )


def _fail(path: Path, problem: str, cause: BaseException | None = None) -> None:
    raise UserError(f"{path}: {problem}") from cause


def _parse(path: Path) -> dict[str, Any]:
    file_signature(path)
    try:
        with path.open("rb") as file:
            content = json.loads(file.read())
    except OSError as error:
        _fail(path, f"cannot be read ({error.strerror}); give a readable annotation JSON.", error)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        _fail(path, f"is not valid JSON ({error}); download or export the file again.", error)
    if not isinstance(content, dict):
        _fail(path, "must hold one JSON object with images, annotations and categories.")
    return content


def _parse_tail(path: Path) -> dict[str, Any] | None:
    """The part of the file from the last '"categories"' key on, if that key is a top-level one.

    It is one exactly when the text from there to the end, with '{' before it, is a whole object.
    """
    size, _ = file_signature(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            start = view.rfind(b'"categories"', max(0, size - _CATEGORY_TAIL_BYTES))
            tail = view[start:] if start >= 0 else b""
        return json.loads(b"{" + tail)
    except (OSError, ValueError):  # parsing the whole file tells what is wrong, if anything is
        return None


def _field(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        _fail(path, f"the field '{key}' must be a list of objects, as in LVIS or COCO format.")
    return value


def _category_dicts(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    categories = _field(path, content, "categories")
    if not categories:
        _fail(path, "the field 'categories' is empty; list at least one category.")
    seen = set()
    for category in categories:
        category_id = category.get("id")
        if type(category_id) is not int:
            _fail(path, f"category {category} needs an integer 'id'.")
        if category_id in seen:
            _fail(path, f"category id {category_id} occurs twice in 'categories'; make it unique.")
        seen.add(category_id)
        if not isinstance(category.get("name"), str):
            _fail(path, f"category {category_id} needs a 'name' (text).")
    return sorted(categories, key=lambda category: category["id"])


def _categories(
    path: Path, raw_categories: list[dict[str, Any]], image_counts: dict[int, int]
) -> tuple[Category, ...]:
    categories = []
    for raw in raw_categories:
        image_count = raw.get("image_count", image_counts.get(raw["id"], 0))
        if type(image_count) is not int or image_count < 0:
            _fail(
                path,
                f"category {raw['id']}: image_count is {image_count!r}; give a whole number >= 0, "
                "or leave the field out to have it counted.",
            )
        frequency = raw.get("frequency", frequency_of(image_count))
        if frequency not in FREQUENCIES:
            _fail(
                path,
                f"category {raw['id']}: frequency is {frequency!r}; use 'r', 'c' or 'f', or leave "
                "the field out to have it derived.",
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
        if type(image_id) is not int:
            _fail(path, f"an image ({image.get('file_name')}) has no integer 'id'; give it one.")
        if image_id in seen:
            _fail(path, f"image id {image_id} occurs twice in 'images'; make it unique.")
        seen.add(image_id)
        for key in ("height", "width"):
            value = image.get(key)
            if type(value) is not int or value <= 0:
                _fail(path, f"image {image_id}: {key} is {value!r}; give its pixels, an integer.")
        if not image.get("file_name") and not image.get("coco_url"):
            _fail(
                path, f"image {image_id} has neither 'file_name' nor 'coco_url'; add a file_name."
            )
        federated |= "neg_category_ids" in image or "not_exhaustive_category_ids" in image
        image.setdefault("neg_category_ids", [])
        image.setdefault("not_exhaustive_category_ids", [])
    return sorted(images, key=lambda image: image["id"]), federated


def _check_annotations(
    path: Path,
    annotations: list[dict[str, Any]],
    images: dict[int, dict[str, Any]],
    category_ids: set[int],
) -> list[dict[str, Any]]:
    seen = set()
    kept, skipped, trimmed = [], [], []
    for annotation in annotations:
        try:
            annotation_id = annotation["id"]
            image = images[annotation["image_id"]]
            category_id = annotation["category_id"]
            segmentation = annotation["segmentation"]
            bbox = annotation["bbox"]
        except (KeyError, TypeError) as error:
            _explain_missing(path, annotation, error)
        if type(category_id) is not int or category_id not in category_ids:
            _fail(
                path,
                f"annotation {annotation_id}: category_id {category_id!r} is not in 'categories'; "
                "add the category or remove the annotation.",
            )
        if type(annotation_id) is not int or annotation_id in seen:
            _fail(
                path,
                f"annotation id {annotation_id!r} occurs twice or is no integer; make the ids "
                "unique integers.",
            )
        seen.add(annotation_id)
        try:
            usable = _usable_segmentation(segmentation, image["height"], image["width"])
            _x, _y, _width, _height = bbox
        except (TypeError, ValueError) as error:
            _fail(
                path,
                f"annotation {annotation_id} (image {image['id']}): bad segmentation or bbox "
                f"({error}); give polygons or an RLE, and a bbox of [x, y, width, height].",
                error,
            )
        if usable is None:
            skipped.append(annotation_id)
            image["not_exhaustive_category_ids"] = [
                *image["not_exhaustive_category_ids"],
                category_id,
            ]
            continue
        if usable is not segmentation:
            if isinstance(usable, list):
                trimmed.append(annotation_id)
            annotation["segmentation"] = usable
        area = annotation.get("area")
        if area is None:
            annotation["area"] = segmentation_area(usable, image["height"], image["width"])
        elif not isinstance(area, int | float) or not area >= 0:
            _fail(
                path,
                f"annotation {annotation_id} (image {image['id']}): area is {area!r}; give its "
                "pixels, or leave the field out to have it computed.",
            )
        annotation["iscrowd"] = annotation.get("iscrowd", 0)
        kept.append(annotation)
    _log_ids(path, skipped, "annotations without a usable segmentation are left out")
    _log_ids(path, trimmed, "annotations have polygons of fewer than 3 points, which are dropped")
    return kept


def _explain_missing(path: Path, annotation: dict[str, Any], error: Exception) -> None:
    annotation_id = annotation.get("id")
    image_id = annotation.get("image_id")
    for key in ("id", "image_id", "category_id", "segmentation", "bbox"):
        if key not in annotation:
            _fail(
                path,
                f"annotation {annotation_id} (image {image_id}) has no '{key}'; add the field.",
                error,
            )
    _fail(
        path,
        f"annotation {annotation_id}: image_id {image_id!r} is not in 'images'; add the image or "
        "remove the annotation.",
        error,
    )


def _usable_segmentation(segmentation: Any, height: int, width: int) -> Any:
    """Polygons of at least 3 points, or a compressed RLE; None if nothing is left.

    Returns the object itself when there is nothing to change.

    Raises:
        TypeError, ValueError: it is neither, or the RLE does not fit the image.
    """
    if isinstance(segmentation, list):
        polygons = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        if len(polygons) == len(segmentation):
            return segmentation or None
        return polygons or None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise TypeError("neither a list of polygons nor an RLE with 'size' and 'counts'")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(
            f"the RLE's size is {segmentation['size']}, the image's is {[height, width]}"
        )
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width or min(counts) < 0:
            raise ValueError(f"the RLE's counts sum to {sum(counts)}, not {height * width}")
        rle = mask_utils.frPyObjects(segmentation, height, width)
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    area = int(mask_utils.area(segmentation))
    if not 0 <= area <= height * width:
        raise ValueError(f"the RLE covers {area} pixels of {height * width}")
    return segmentation if area else None


def segmentation_area(segmentation: list | dict, height: int, width: int) -> float:
    """Pixels that polygons or a compressed RLE cover."""
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    return float(mask_utils.area(segmentation))


def _log_ids(path: Path, ids: list[int], what: str) -> None:
    if not ids:
        return
    shown = ", ".join(map(str, ids[:_IDS_IN_MESSAGE]))
    more = ", ..." if len(ids) > _IDS_IN_MESSAGE else ""
    logger.warning("%s: %d %s (ids %s%s)", path, len(ids), what, shown, more)
