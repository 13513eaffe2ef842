"""The one normalising pass over the annotations of a JSON: mapper, statistics, filter and
evaluator all use what it gives.

Most annotations of a data set are in order, and LVIS has 1.27 million. Those with polygons are
looked at by NumPy, thousands at once; what looks odd there is drawn and judged by its pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from gal_d2.datasets.object_report import Correction, ObjectReport, Unusable
from gal_d2.datasets.polygon_shape import (
    Fail,
    Pending,
    fail_segmentation,
    floats,
    measure,
    name_of,
)
from gal_d2.datasets.segmentation import (
    SegmentationError,
    as_polygons,
    check_rle,
    draw_polygons,
    extent,
    usable_polygons,
)

MAX_ID = 2**63 - 1
# Coordinates farther out than so many image sides are a fault, and costly to draw.
MAX_SIDES_OUT = 10
# Area and box may differ from the mask's by so much before the mask's are taken. Exporters count
# and round in different ways, and LVIS's own figures are kept.
AREA_TOLERANCE, AREA_TOLERANCE_PX = 0.25, 4
BOX_TOLERANCE, BOX_TOLERANCE_PX = 0.05, 2

_CHUNK = 20_000
_CROWD = {0: 0, 1: 1, "0": 0, "1": 1, None: 0}
_NUMBERS = {int, float}
_FIELDS = ("id", "image_id", "category_id")


def normalise_annotations(
    annotations: Sequence[dict[str, Any]],
    images: dict[int, dict[str, Any]],
    category_ids: set[int],
    fail: Fail,
) -> tuple[list[dict[str, Any]], ObjectReport]:
    """Check annotations and put them into one form, in place.

    A kept annotation has "segmentation" (flat polygons of at least 3 points, finite and near the
    image, or a compressed RLE of the image's size) that covers at least a pixel, "area" (above 0)
    and "bbox" (XYWH) that agree with it, and "iscrowd" 0 or 1. Where one is left out, its category
    counts as not exhaustively annotated in that image: finding the object is no mistake.

    Args:
        annotations: as in the JSON.
        images: by id, checked.
        category_ids: that exist.
        fail: raises a UserError with the sentence that it is given.

    Returns:
        The annotations with a usable mask in their order, and what became of the others.
    """
    report = ObjectReport(total=len(annotations))
    report.objects_of = Counter(
        category_id
        for category_id in (annotation.get("category_id") for annotation in annotations)
        if type(category_id) is int
    )
    kept: list[dict[str, Any]] = []
    seen: set[int] = set()
    for first in range(0, len(annotations), _CHUNK):
        chunk = annotations[first : first + _CHUNK]
        unusable: dict[int, Unusable] = {}
        pending: list[Pending] = []
        for annotation in chunk:
            image = _check_ids(annotation, images, category_ids, seen, fail)
            try:
                annotation["iscrowd"] = _CROWD[annotation.get("iscrowd")]
            except (KeyError, TypeError):
                fail(
                    f"{name_of(annotation)}: iscrowd is {annotation['iscrowd']!r:.40}; use 0 for "
                    "an object and 1 for a crowd."
                )
            reason = _take_segmentation(annotation, image, pending, report, fail)
            if reason is not None:
                unusable[annotation["id"]] = reason
        _check_polygons(pending, unusable, report, fail)
        for annotation in chunk:
            if annotation["id"] in unusable:
                _leave_out(annotation, images, unusable[annotation["id"]], report)
                continue
            if annotation["iscrowd"]:
                report.add_crowd(
                    annotation["id"], annotation["image_id"], annotation["category_id"]
                )
            kept.append(annotation)
    return kept, report


def show_id(value: Any) -> str:
    """An id that is no integer, for a message: "'0001', which is text"."""
    return f"{value!r:.60}" + (", which is text" if isinstance(value, str) else "")


def is_id(value: Any) -> bool:
    """An int from 0 on that fits 64 bits, as the evaluation needs."""
    return type(value) is int and 0 <= value <= MAX_ID


def _check_ids(
    annotation: dict[str, Any],
    images: dict[int, dict[str, Any]],
    category_ids: set[int],
    seen: set[int],
    fail: Fail,
) -> dict[str, Any]:
    """The annotation's image."""
    try:
        annotation_id, category_id = annotation["id"], annotation["category_id"]
        image = images[annotation["image_id"]]
    except (KeyError, TypeError):
        for key in _FIELDS:
            if key not in annotation:
                fail(f"{name_of(annotation)} has no '{key}'; add the field.")
        fail(
            f"annotation {annotation['id']!r:.60}: image_id "
            f"{show_id(annotation['image_id'])} is not in 'images'; add the image or remove the "
            "annotation."
        )
    if type(category_id) is not int or category_id not in category_ids:
        fail(
            f"annotation {annotation_id!r:.60}: category_id {show_id(category_id)} is not in "
            "'categories'; add the category or remove the annotation."
        )
    if not is_id(annotation_id):
        fail(
            f"an annotation of image {image['id']} has the id {show_id(annotation_id)}; make the "
            "ids whole numbers from 0 on."
        )
    if annotation_id in seen:
        fail(f"annotation id {annotation_id} occurs twice; make the ids unique.")
    seen.add(annotation_id)
    return image


def _take_segmentation(
    annotation: dict[str, Any],
    image: dict[str, Any],
    pending: list[Pending],
    report: ObjectReport,
    fail: Fail,
) -> Unusable | None:
    """Finish an annotation with an RLE, append one with polygons to ``pending``."""
    segmentation = annotation.get("segmentation")
    if not segmentation and (segmentation is None or isinstance(segmentation, list | dict)):
        return Unusable.NO_MASK
    try:
        if isinstance(segmentation, dict):
            rle, pixels = check_rle(segmentation, image["height"], image["width"])
            if not pixels:
                return Unusable.EMPTY_RLE
            annotation["segmentation"] = rle
            _fit_to_mask(annotation, rle, report, fail)
            return None
        if not isinstance(segmentation, list):
            raise SegmentationError(f"it is {segmentation!r:.40}")
        if not _are_flat(segmentation):
            segmentation = as_polygons(segmentation)
            usable = usable_polygons(segmentation)
            if not usable:
                return Unusable.FEW_POINTS if segmentation else Unusable.NO_MASK
            if len(usable) < len(segmentation):
                report.add_correction(Correction.POINTS, annotation["id"], image["id"])
            annotation["segmentation"] = usable
    except SegmentationError as error:
        fail_segmentation(annotation, error, fail)
    pending.append(Pending(annotation, image))
    return None


def _are_flat(segmentation: list) -> bool:
    """COCO's form, all polygons usable; what their elements are is looked at later."""
    for polygon in segmentation:
        if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2:
            return False
        if type(polygon[0]) is list:
            return False
    return True


def _check_polygons(
    pending: list[Pending], unusable: dict[int, Unusable], report: ObjectReport, fail: Fail
) -> None:
    """Check the numbers of polygons, area and bbox; what is not plainly right is drawn."""
    if not pending:
        return
    shape = measure(pending, fail)
    size = np.array([(image["width"], image["height"]) for _, image in pending], np.float64)
    limit = MAX_SIDES_OUT * size.max(axis=1, keepdims=True)
    far = ~((shape.low >= -limit) & (shape.high <= limit)).all(axis=1)  # true of NaN, too
    if far.any():
        annotation, image = pending[int(np.argmax(far))]
        bound = MAX_SIDES_OUT * max(image["width"], image["height"])
        value = next(v for v in chain(*annotation["segmentation"]) if not -bound <= v <= bound)
        fail(
            f"{name_of(annotation)}: a polygon has the coordinate {value!r:.40}, but the image is "
            f"{image['width']} x {image['height']} px; correct or remove the annotation."
        )
    in_unit_square = ((shape.low >= 0) & (shape.high <= 1)).all(axis=1) & (size > 2).all(axis=1)

    is_inside = ((shape.low >= -0.5) & (shape.high <= size + 0.5)).all(axis=1)
    area, boxes = _stated(pending, fail)
    area_fits = (area > 0) & _area_agrees(area, shape.area, AREA_TOLERANCE / 2)
    box_fits = _box_agrees(boxes, np.hstack((shape.low, shape.high)))
    # A region has room for a disc of radius area / perimeter: then it covers a pixel for sure.
    is_plain = (shape.roundness >= 1) & shape.are_apart & is_inside & area_fits & box_fits
    is_plain &= ~in_unit_square
    for index in np.flatnonzero(~is_plain).tolist():
        annotation, image = pending[index]
        if in_unit_square[index]:
            unusable[annotation["id"]] = Unusable.SHARES
            continue
        try:
            rle = draw_polygons(annotation["segmentation"], image["height"], image["width"])
        except SegmentationError as error:
            fail_segmentation(annotation, error, fail)
        # A thin polygon's pixels can end before its points do: a box around either is right.
        box_is_right = bool(box_fits[index] and is_inside[index])
        if not _fit_to_mask(annotation, rle, report, fail, box_is_right=box_is_right):
            unusable[annotation["id"]] = Unusable.NO_PIXEL


def _stated(pending: Sequence[Pending], fail: Fail) -> tuple[np.ndarray, np.ndarray]:
    """The areas (N,) and XYXY boxes (N, 4) that the annotations state; NaN where they do not."""
    areas = [_stated_area(item.annotation, fail) for item in pending]
    boxes = [_stated_box(item.annotation, fail) for item in pending]
    xywh = floats(list(chain.from_iterable(boxes))).reshape(-1, 4)
    with np.errstate(all="ignore"):
        return floats(areas), np.hstack((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]))


_NOWHERE = [float("nan")] * 4


def _stated_area(annotation: dict[str, Any], fail: Fail) -> float:
    area = annotation.get("area")
    if type(area) is float or type(area) is int:
        return area
    if area is not None:
        fail(
            f"{name_of(annotation)}: area is {area!r:.40}; give its pixels, or leave the field out "
            "to have it computed."
        )
    return float("nan")


def _stated_box(annotation: dict[str, Any], fail: Fail) -> list[float]:
    box = annotation.get("bbox")
    if type(box) is list and len(box) == 4 and set(map(type, box)) <= _NUMBERS:
        return box
    if box is not None and box != []:
        fail(
            f"{name_of(annotation)}: bbox is {box!r:.60}; give [x, y, width, height], or leave the "
            "field out to have it computed."
        )
    return _NOWHERE


def _fit_to_mask(
    annotation: dict[str, Any],
    rle: dict,
    report: ObjectReport,
    fail: Fail,
    *,
    box_is_right: bool = False,
) -> bool:
    """Give an annotation area and bbox of its mask where it has none or others.

    Returns:
        False if the mask has no pixel.
    """
    pixels, box = extent(rle)
    if not pixels:
        return False
    where = annotation["id"], annotation["image_id"]
    area = floats([_stated_area(annotation, fail)])
    if not (area > 0 and np.isfinite(area) and _area_agrees(area, pixels, AREA_TOLERANCE)):
        if annotation.get("area") is not None:
            report.add_correction(Correction.AREA, *where)
        annotation["area"] = pixels
    if box_is_right:
        return True
    stated = floats(_stated_box(annotation, fail))
    x, y, width, height = box
    corners = np.array([[x, y, x + width, y + height]])
    with np.errstate(all="ignore"):
        as_xywh = np.append(stated[:2], stated[:2] + stated[2:])[None]
    if not _box_agrees(as_xywh, corners):
        if annotation.get("bbox"):
            is_xyxy = bool(_box_agrees(stated[None], corners))
            report.add_correction(Correction.XYXY if is_xyxy else Correction.BOX, *where)
        annotation["bbox"] = box
    return True


def _area_agrees(stated: np.ndarray, measured: np.ndarray | float, tolerance: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.abs(stated - measured) <= np.maximum(AREA_TOLERANCE_PX, tolerance * measured)


def _box_agrees(stated: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """(N,) of (N, 4) XYXY boxes; False where a stated one is empty or not finite."""
    with np.errstate(all="ignore"):
        tolerance = np.maximum(
            BOX_TOLERANCE_PX, BOX_TOLERANCE * (measured[:, 2:] - measured[:, :2])
        )
        near = (np.abs(stated - measured) <= np.tile(tolerance, 2)).all(axis=1)
        return near & (stated[:, 2:] > stated[:, :2]).all(axis=1)


def _leave_out(
    annotation: dict[str, Any],
    images: dict[int, dict[str, Any]],
    reason: Unusable,
    report: ObjectReport,
) -> None:
    image_id, category_id = annotation["image_id"], annotation["category_id"]
    report.add_unusable(reason, annotation["id"], image_id, category_id)
    image = images[image_id]
    image["not_exhaustive_category_ids"] = [*image["not_exhaustive_category_ids"], category_id]
