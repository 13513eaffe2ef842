"""Small valid annotation JSONs, what can go wrong with such files, and a plain reading of them.

The reading shares no code with the package: it goes through one annotation at a time, and draws
every mask.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

HEIGHT, WIDTH = 40, 50
NAN, INFINITY = float("nan"), float("inf")
# What exporters, spreadsheets and broken disks put in place of a value.
VALUES = [
    *(None, True, False, "", "0", "1", "1.5", "x", "\ud800", "a\0b", -1, 0, 1, 2, 7, 0.5, 1e-9),
    *(NAN, INFINITY, -INFINITY, 1e6, -1e6, 1e308, 10**40, 10**400, 2**31, 2**63, 2**64),
    *([], {}, [[]], [[[]]], [0], [0, 0, 0, 0], [[1, 2], [8, 2], [8, 9]], [5, 5, 20, 5, 20, 30]),
    *([[[5, 5], [20, 5], [20, 30]]], [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]], [[60, 60, 70, 60, 70, 70]]),
    *([5, 5, 2, 2], ["1", "2", "3", "4"], {"size": [HEIGHT, WIDTH], "counts": "0oooooo0"}),
    *({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, {"size": [1, 1], "counts": [0, 1]}),
    *({"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}, {"counts": []}),
]


def small_coco() -> dict:
    """COCO format: 4 images, 3 categories, polygons, both kinds of RLE, a crowd."""
    images = [
        {"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"sub/{i}.png"}
        for i in (3, 5, 9, 12)
    ]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 5:25] = 1
    mask[15:20, 10:20] = 0
    compressed = mask_utils.encode(np.asfortranarray(mask))
    compressed["counts"] = compressed["counts"].decode()
    segmentations = [
        [[5, 5, 25, 5, 25, 30, 5, 30]],
        [[30.5, 8.25, 44, 10, 40.5, 33], [3, 3, 9, 3, 9, 9, 3, 9]],
        compressed,
        {"size": [HEIGHT, WIDTH], "counts": [410, 20, 20, 20, HEIGHT * WIDTH - 470]},
        [[-4, 10, 12, 10, 12, 24, -4, 24]],
        [[20, 20, 48, 21, 33, 38]],
        compressed,
    ]
    annotations = []
    for number, segmentation in enumerate(segmentations):
        bitmap = draw(segmentation, HEIGHT, WIDTH)
        annotations.append(
            {
                "id": number,
                "image_id": images[number % 3]["id"],
                "category_id": (7, 2, 2, 30)[number % 4],
                "bbox": box_of(bitmap),
                "area": int(bitmap.sum()),
                "iscrowd": int(number == 6),
                "segmentation": segmentation,
            }
        )
    categories = [{"id": i, "name": f"thing {i}", "supercategory": "thing"} for i in (7, 2, 30)]
    return {"images": images, "annotations": annotations, "categories": categories}


def small_lvis() -> dict:
    """The same in LVIS format."""
    content = small_coco()
    for image in content["images"]:
        image.update(neg_category_ids=[30], not_exhaustive_category_ids=[2])
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image['id']:012d}.jpg"
    for category in content["categories"]:
        category.update(frequency="r", image_count=3, synonyms=["a thing"])
        category["def"] = "something"
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    return content


def mutated(content: dict, rng: random.Random) -> bytes:
    """The text of a file with one to three faults."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if not content:
            break
        container, key = _place(content, rng)
        kind = rng.choice(["drop", "drop", "value", "value", "number", "number", "copy", "twice"])
        if kind == "drop":
            del container[key]
        elif kind == "value":
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == "number":
            if type(container[key]) in (int, float):
                container[key] = container[key] * rng.choice([-1, 0, 0.5, 2, 3]) + rng.choice(
                    [0, 3]
                )
        elif kind == "copy":
            other, other_key = _place(content, rng)
            container[key] = copy.deepcopy(other[other_key])
        elif isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
    text = json.dumps(content).encode()
    kind = rng.choice(["none"] * 12 + ["bom", "utf-16", "cut", "byte", "deep"])
    if kind == "bom":
        return b"\xef\xbb\xbf" + text
    if kind == "utf-16":
        return text.decode().encode("utf-16")
    if kind == "cut":
        return text[: rng.randrange(len(text))]
    if kind == "byte":
        place = rng.randrange(len(text))
        return text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
    if kind == "deep":
        return b"[" * 200_000 + text
    return text


def _place(document: dict, rng: random.Random) -> tuple[Any, Any]:
    """A (container, key) of a document: a way down from its root that may end anywhere."""
    container = document
    while True:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        # Most can go wrong with annotations.
        key = "annotations" if "annotations" in keys and rng.random() < 0.7 else rng.choice(keys)
        inner = container[key]
        stop = 0.03 if container is document else 0.15
        if not isinstance(inner, dict | list) or not inner or rng.random() < stop:
            return container, key
        container = inner


def draw(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """(H, W) bool; None where there is nothing to draw. Only for what was read without a fault."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        runs = segmentation["counts"]
        if isinstance(runs, str):
            runs = _plain_runs(runs)
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    polygons = [p for p in _rings(segmentation) if len(p) >= 6 and len(p) % 2 == 0]
    if not polygons:
        return None
    bitmap = np.zeros((height, width), bool)
    for polygon in polygons:
        bitmap |= mask_utils.decode(mask_utils.frPyObjects([polygon], height, width))[..., 0] > 0
    in_unit_square = all(0 <= c <= 1 for polygon in polygons for c in polygon)
    return None if in_unit_square else bitmap


def box_of(bitmap: np.ndarray) -> list[int]:
    """The tight XYWH box."""
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def _rings(value: list) -> list[list[float]]:
    if not any(isinstance(item, list) for item in value):
        return [value]
    if all(isinstance(i, list) and len(i) == 2 and not isinstance(i[0], list) for i in value):
        return [[c for point in value for c in point]]
    return [ring for item in value if item for ring in _rings(item)]


def _plain_runs(text: str) -> list[int]:
    """Run lengths of COCO's text, as the specification of its encoder has it."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            code = ord(text[place]) - 48
            value |= (code & 31) << shift
            shift += 5
            place += 1
            more = bool(code & 32)
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
