"""The piece ``annotations`` of benchmarks/scale.py."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.data.common import DatasetFromList
from scale_steps import Steps

from gal_d2.datasets import annotation_cache
from gal_d2.datasets.annotation_cache import SUFFIX, cache_places
from gal_d2.datasets.records import object_classes, repeat_factors
from gal_d2.datasets.registration import load_instances, register_instances
from gal_d2.datasets.statistics import category_statistics

CATEGORIES = 1203
IMAGES = 16  # of a step
ANNOTATIONS_PER_IMAGE = 12.68
SHAPES = 5000
RANKS, WORKERS = 8, 8


def measure_annotations(size: int, folder: Path, steps: Steps) -> None:
    """A JSON with LVIS's number of objects, points of polygons, and long tail."""
    path = folder / "lvis.json"
    steps.time("synthetic JSON, written", lambda: write_annotations(path, size))
    steps.note("JSON, on disk", path.stat().st_size / 1e6)
    steps.rows += _in_a_process(first_start, path)
    steps.note("checked annotations, on disk", cache_places(path)[0].stat().st_size / 1e6)
    steps.rows += _in_a_process(second_start, path)
    steps.rows += _in_a_process(measure_sharing, path)


def first_start(path: Path, steps: Steps) -> None:
    """What a process does that finds the JSON alone."""
    register_instances("scale", path, path.parent, replace=True)
    steps.time("first start: parsed, checked, kept", lambda: load_instances("scale"))


def second_start(path: Path, steps: Steps) -> None:
    """What a process does that finds the checked annotations."""
    register_instances("scale", path, path.parent, replace=True)
    records = steps.time("second start: mapped", lambda: load_instances("scale"))
    steps.time("statistics", lambda: category_statistics("scale"))
    steps.time("repeat factors", lambda: repeat_factors(records, 0.001))
    steps.time("images with objects", lambda: [r for r in records if object_classes(r)])
    kept = steps.time("handed to the loader", lambda: DatasetFromList(records, copy=False))
    steps.note("what the loader keeps", kept._lst.nbytes / 1e6)
    rng = np.random.default_rng(0)

    def step() -> None:
        for index in rng.integers(len(kept), size=IMAGES):
            list(kept[int(index)]["annotations"])

    steps.time("annotations of a step's images", step, 50)


def measure_sharing(path: Path, steps: Steps) -> None:
    """Memory of ranks that each start by themselves, and of their forked loader workers."""
    context = multiprocessing.get_context("fork")
    finish, reports = context.Event(), context.SimpleQueue()
    started = context.Barrier(1 + RANKS * (1 + WORKERS))
    arguments = path, started, finish, reports
    ranks = [context.Process(target=_rank, args=arguments) for _ in range(RANKS)]
    for process in ranks:
        process.start()
    started.wait()
    own = [reports.get() for _ in range(RANKS * (1 + WORKERS))]
    finish.set()
    for process in ranks:
        process.join()
    name = f"{RANKS} ranks x {WORKERS} workers"
    steps.note(f"{name}: mapped annotations, all together", sum(r["shared"] for r in own))
    for kind in ("rank", "worker"):
        private = max(r["private"] for r in own if r["kind"] == kind)
        steps.note(f"{name}: memory of a {kind}'s own", private)


def _rank(path: Path, started: Any, finish: Any, reports: Any) -> None:
    register_instances("scale", path, path.parent, replace=True)
    kept = DatasetFromList(load_instances("scale"), copy=False)
    gc.collect()
    context = multiprocessing.get_context("fork")
    arguments = "worker", kept, path, started, finish, reports
    workers = [context.Process(target=_read_and_report, args=arguments) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    _read_and_report("rank", kept, path, started, finish, reports)
    for worker in workers:
        worker.join()


def _read_and_report(
    kind: str, kept: DatasetFromList, path: Path, started: Any, finish: Any, reports: Any
) -> None:
    """Look at some images' annotations, and report what that left in memory, in MB."""
    rng = np.random.default_rng(os.getpid())
    for index in rng.integers(len(kept), size=200):
        list(kept[int(index)]["annotations"])
    started.wait()
    shared, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(SUFFIX)
        elif inside and line.startswith("Pss:"):
            shared += int(line.split()[1])
    rollup = Path("/proc/self/smaps_rollup").read_text()
    private = sum(int(kb) for kb in re.findall(r"Private_\w+:\s+(\d+)", rollup))
    reports.put({"kind": kind, "shared": shared / 1e3, "private": private / 1e3})
    finish.wait()


def _in_a_process(function: Callable[[Path, Steps], None], path: Path) -> list[dict]:
    """The rows of a function that begins with nothing read."""
    context = multiprocessing.get_context("fork")
    rows = context.SimpleQueue()

    def run() -> None:
        annotation_cache.LEAST_BYTES = 0  # a small trial is cached, too
        steps = Steps()
        function(path, steps)
        rows.put(steps.rows)

    process = context.Process(target=run)
    process.start()
    found = rows.get()
    process.join()
    return found


def write_annotations(path: Path, images: int) -> None:
    """Objects are star-shaped polygons of 6 to 120 points, 40 on average as LVIS's have.

    Their shapes repeat, so that writing takes less time than reading.
    """
    rng = np.random.default_rng(0)
    count = round(images * ANNOTATIONS_PER_IMAGE)
    image_of = np.sort(rng.integers(images, size=count)).tolist()
    popularity = 1 / np.arange(1, CATEGORIES + 1) ** 1.3
    category = rng.choice(CATEGORIES, count, p=popularity / popularity.sum()) + 1
    category[: min(CATEGORIES, count)] = np.arange(1, min(CATEGORIES, count) + 1)
    shapes = [json.dumps(_shape(rng))[1:] for _ in range(SHAPES)]
    shape_of = rng.integers(SHAPES, size=count).tolist()
    with path.open("w") as file:
        file.write('{"images": [')
        for number in range(images):
            record = {"id": number + 1, "width": 640, "height": 480}
            record |= {"file_name": f"{number:012d}.jpg", "neg_category_ids": [1, 2, 3]}
            record["not_exhaustive_category_ids"] = []
            file.write(("," if number else "") + json.dumps(record))
        file.write('], "annotations": [')
        for number, (image, k) in enumerate(zip(image_of, category.tolist(), strict=True)):
            ids = f'"id": {number + 1}, "image_id": {image + 1}, "category_id": {k}, '
            file.write(("," if number else "") + "{" + ids + shapes[shape_of[number]])
        names = [{"id": k, "name": f"thing {k}"} for k in range(1, CATEGORIES + 1)]
        file.write(f'], "categories": {json.dumps(names)}}}')


def _shape(rng: np.random.Generator) -> dict:
    """The fields of an annotation that its polygon gives."""
    points = int(np.clip(rng.gamma(2.0, 20.0), 6, 120))
    centre, radius = rng.uniform((60, 60), (580, 420)), rng.uniform(15, 55, points)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    around = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
    polygon = (centre + around).round(2)
    low, high = polygon.min(0), polygon.max(0)
    x, y = polygon.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    segmentation = [polygon.ravel().tolist()]
    return {"area": area, "bbox": [*low, *(high - low)], "segmentation": segmentation}
