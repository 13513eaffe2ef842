"""Checks a segmentation as exporters write it, before pycocotools sees it.

pycocotools trusts what it is given: a NaN among polygon coordinates takes memory without end, and
a broken RLE string is read beyond its end. So every number is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

# Drawing takes about 100 bytes per pixel of outline: this is 200 MB, and no outline of an object.
MAX_OUTLINE = 2_000_000

# COCO's compressed RLE: 5 bits a character, from '0' on; bit 5 says that more follow.
_FIRST_CHARACTER, _LAST_CHARACTER = 48, 48 + 63
_MORE, _SIGN, _BITS = 0x20, 0x10, 5
_MAX_CHARACTERS = 7  # of one number: 35 bits


class SegmentationError(ValueError):
    """A segmentation cannot be read; the message says what is wrong with it, not where it is."""


def is_number(value: Any) -> bool:
    """An int or float, as JSON has them; not a bool."""
    return type(value) is float or type(value) is int


def as_polygons(value: list) -> list[list[float]]:
    """Flat polygons ``[x, y, x, y ...]`` from the forms that exporters write.

    A list of flat polygons (COCO), one flat polygon, one polygon as a list of ``[x, y]`` points,
    and a list of such. Their lengths are not checked.

    Raises:
        SegmentationError: it is none of these.

    Example:
        >>> as_polygons([[0, 0], [4, 0], [4, 4]])
        [[0, 0, 4, 0, 4, 4]]
    """
    if all(map(is_number, value)):
        return [value] if value else []
    if all(map(_is_point, value)):
        return [_flat(value)]
    polygons = []
    for part in value:
        if not isinstance(part, list):
            raise SegmentationError(f"{part!r:.40} stands where a polygon is expected")
        if not part:
            continue
        if all(map(is_number, part)):
            polygons.append(part)
        elif all(map(_is_point, part)):
            polygons.append(_flat(part))
        else:
            raise SegmentationError(
                f"the polygon {part!r:.60} is neither a list of numbers nor one of [x, y] points"
            )
    return polygons


def usable_polygons(polygons: Sequence[list]) -> list[list]:
    """Those of at least 3 points (an even number of coordinates, 6 or more)."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def check_rle(rle: dict, height: int, width: int) -> tuple[dict, int]:
    """A compressed RLE of an image's size, and how many pixels it covers.

    Args:
        rle: with "size" ([height, width]) and "counts" (a list of run lengths, or COCO's text).
        height, width: of the image.

    Returns:
        The RLE with "counts" as text, and the number of its pixels, maybe 0.

    Raises:
        SegmentationError: it is no RLE, or not one of this image's size.
    """
    if not {"size", "counts"} <= rle.keys():
        raise SegmentationError("it is neither a list of polygons nor an RLE with size and counts")
    size, counts = rle["size"], rle["counts"]
    if size != [height, width] or not all(type(side) is int for side in size):
        turned = " (an RLE's size is [height, width])" if size == [width, height] else ""
        raise SegmentationError(
            f"the RLE's size is {size!r:.40}, the image's is {[height, width]}{turned}"
        )
    if isinstance(counts, str):
        runs = _decode_counts(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = np.array(counts, dtype=object) if counts else np.zeros(0, np.int64)
    else:
        raise SegmentationError(
            f"the RLE's counts are {counts!r:.40}, neither text nor a list of whole numbers"
        )
    total = int(runs.sum())
    if total != height * width or runs.min() < 0:
        shown = total if abs(total) < 10**18 else "more than 18 digits"
        raise SegmentationError(
            f"the RLE's counts sum to {shown}, not {height * width}, or one is negative"
        )
    area = int(runs[1::2].sum())
    if isinstance(counts, list):
        encoded = mask_utils.frPyObjects({"size": size, "counts": counts}, height, width)
        return {"size": size, "counts": encoded["counts"].decode("ascii")}, area
    return rle, area


def draw_polygons(polygons: Sequence[list], height: int, width: int) -> dict:
    """The RLE of checked polygons (finite, of 3 points or more, not far outside), for pycocotools.

    Raises:
        SegmentationError: their outline is too long to be that of an object.
    """
    outline = sum(_perimeter(polygon) for polygon in polygons)
    if outline > MAX_OUTLINE:
        raise SegmentationError(
            f"the outline is {outline:.0f} px long, more than the {MAX_OUTLINE} that are drawn"
        )
    return mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))


def extent(rle: dict) -> tuple[float, list[float]]:
    """Pixels and tight XYWH box of a checked RLE."""
    return float(mask_utils.area(rle)), mask_utils.toBbox(rle).tolist()


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _flat(points: Sequence[Sequence[float]]) -> list[float]:
    return [coordinate for point in points for coordinate in point]


def _perimeter(polygon: Sequence[float]) -> float:
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.hypot(*(points - np.roll(points, 1, axis=0)).T).sum())


def _decode_counts(text: str) -> np.ndarray:
    """Run lengths (int64) of COCO's compressed text."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64)
    except UnicodeEncodeError as error:
        raise SegmentationError("the RLE's counts hold other than ASCII characters") from error
    if not codes.size:
        return codes
    if codes.min() < _FIRST_CHARACTER or codes.max() > _LAST_CHARACTER:
        raise SegmentationError("the RLE's counts hold characters that no RLE has")
    codes -= _FIRST_CHARACTER
    is_last = (codes & _MORE) == 0
    if not is_last[-1]:
        raise SegmentationError("the RLE's counts end within a number")
    ends = np.flatnonzero(is_last)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise SegmentationError("the RLE's counts hold a number of more than 35 bits")
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & (_MORE - 1)) << (_BITS * place), starts)
    is_negative = (codes[ends] & _SIGN) != 0
    runs -= is_negative * (np.int64(1) << (_BITS * lengths))
    # From the fourth number on each is stored as the difference to the one before the last.
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
