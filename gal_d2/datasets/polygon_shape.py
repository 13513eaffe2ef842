"""What polygons look like by their numbers alone, thousands of annotations at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from gal_d2.datasets.segmentation import is_number

_NUMBERS = {int, float}

Fail = Callable[[str], None]


class Pending(NamedTuple):
    """An annotation with flat polygons of 3 points or more, whose numbers are not checked yet."""

    annotation: dict[str, Any]
    image: dict[str, Any]


class Shape(NamedTuple):
    """Arrays by annotation: low and high (N, 2) XY bounds, area (N,) of its polygons together,
    roundness (N,), the largest ratio of area to perimeter among them, and are_apart (N,), that
    they cannot overlap."""

    low: np.ndarray
    high: np.ndarray
    area: np.ndarray
    roundness: np.ndarray
    are_apart: np.ndarray


def measure(pending: Sequence[Pending], fail: Fail) -> Shape:
    """Bounds, area and shape of the polygons of each annotation; their numbers are checked here.

    Args:
        pending: N annotations.
        fail: raises a UserError with the sentence that it is given.
    """
    polygons = [polygon for item in pending for polygon in item.annotation["segmentation"]]
    points = _points(pending, polygons, fail)
    ends = np.cumsum(np.fromiter(map(len, polygons), np.int64, len(polygons)) // 2)
    starts = np.append(0, ends[:-1])
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    with np.errstate(all="ignore"):  # what is not finite is found by its bounds
        low = np.minimum.reduceat(points, starts)
        high = np.maximum.reduceat(points, starts)
        step = points[following] - points
        cross = points[:, 0] * step[:, 1] - points[:, 1] * step[:, 0]
        area = np.abs(np.add.reduceat(cross, starts)) / 2
        perimeter = np.add.reduceat(np.hypot(step[:, 0], step[:, 1]), starts)
        roundness = area / np.maximum(perimeter, 1e-9)
        count = np.fromiter((len(i.annotation["segmentation"]) for i in pending), np.int64)
        first = np.append(0, np.cumsum(count)[:-1])
        return Shape(
            np.minimum.reduceat(low, first),
            np.maximum.reduceat(high, first),
            np.add.reduceat(area, first),
            np.maximum.reduceat(roundness, first),
            _are_apart(low, high, count),
        )


def _are_apart(low: np.ndarray, high: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(N,): the bounds of an annotation's polygons follow one another along x or along y.

    Args:
        low, high: (P, 2) of all polygons.
        count: (N,) polygons of each annotation.
    """
    owner = np.repeat(np.arange(len(count)), count)
    apart = np.zeros(len(count), bool)
    for axis in (0, 1):
        order = np.lexsort((low[:, axis], owner))
        before, after = order[:-1], order[1:]
        overlaps = (owner[before] == owner[after]) & ~(high[before, axis] <= low[after, axis])
        along = np.ones(len(count), bool)
        along[owner[after[overlaps]]] = False
        apart |= along
    return apart


def _points(pending: Sequence[Pending], polygons: list[list], fail: Fail) -> np.ndarray:
    """(P, 2) float64 of all polygons, after a look at the types of their elements."""
    flat = list(chain.from_iterable(polygons))
    if not set(map(type, flat)) <= _NUMBERS:
        for annotation, _ in pending:
            for value in chain(*annotation["segmentation"]):
                if not is_number(value):
                    fail_segmentation(
                        annotation, f"{value!r:.40} stands where a coordinate is expected", fail
                    )
    return floats(flat).reshape(-1, 2)


def floats(values: Sequence[float]) -> np.ndarray:
    """float64; an int beyond its range becomes infinite."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([_as_float(value) for value in values], dtype=np.float64)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def name_of(annotation: dict[str, Any]) -> str:
    """The annotation in a message, whatever its ids are."""
    return f"annotation {annotation.get('id')!r:.60} (image {annotation.get('image_id')!r:.60})"


def fail_segmentation(annotation: dict[str, Any], problem: object, fail: Fail) -> None:
    """Raise the UserError of a segmentation that cannot be read."""
    fail(
        f"{name_of(annotation)}: bad segmentation ({problem}); give polygons in pixels, or an RLE "
        "of the image's size."
    )
