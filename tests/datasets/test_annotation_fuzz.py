"""Mutated annotation files: each is read with the right numbers, or refused in one sentence."""

from __future__ import annotations

import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from annotation_mutations import box_of, draw, mutated, small_coco, small_lvis
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from gal_d2.copy_paste.masks import Box, transform_segmentations
from gal_d2.datasets import registration as datasets
from gal_d2.datasets.annotation_file import read_annotation_file, read_categories
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_instances, register_instances
from gal_d2.datasets.statistics import compute_statistics
from gal_d2.errors import UserError
from gal_d2.evaluation.lvis_evaluation import _evaluate, _GroundTruth

NAME = "test_annotation_fuzz"
CONTENTS = {"coco": small_coco, "lvis": small_lvis}
MAX_BYTES = 2 * 2**30
MAX_CPU_SECONDS = 10
CROWD = {0: 0, 1: 1, "0": 0, "1": 1, None: 0}


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """No more than 2 GB above what the process has now: a leak is a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "own.json"
    register_instances(NAME, path, tmp_path, replace=True)
    yield path
    for registry in (DatasetCatalog, MetadataCatalog, datasets._sources):
        registry.pop(NAME)


def assert_handled(path: Path, text: bytes) -> bool:
    """Read ``text`` from ``path``; True if it was read, False if it was refused."""
    path.write_bytes(text)
    start = time.process_time()
    try:
        content = read_annotation_file(path)
        records = load_instances(NAME)
        names = CategoryNames.from_file(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return False
    finally:
        assert time.process_time() - start < MAX_CPU_SECONDS
    raw = json.loads(text)
    size = {image["id"]: (image["height"], image["width"]) for image in raw["images"]}
    expected = {}
    for annotation in raw["annotations"]:
        bitmap = draw(annotation.get("segmentation"), *size[annotation["image_id"]])
        if bitmap is not None and bitmap.any():
            expected[annotation["id"]] = (annotation, bitmap)
    assert [a["id"] for a in content.annotations] == list(expected)
    for annotation in content.annotations:
        assert_right(annotation, *expected[annotation["id"]])
    assert content.report.total == len(raw["annotations"])
    used = [a for a in content.annotations if not a["iscrowd"]]
    assert content.report.num_used == len(used)

    # Mapper, statistics and evaluator see the same objects.
    assert [r["image_id"] for r in records] == sorted(size)
    in_records = [a for record in records for a in record["annotations"]]
    assert len(in_records) == len(content.annotations)
    for record in records:
        canvas = Box(0, 0, record["width"], record["height"])
        masks = transform_segmentations(
            [a["segmentation"] for a in record["annotations"]], T.NoOpTransform(), canvas
        )
        ids = [a["id"] for a in content.annotations if a["image_id"] == record["image_id"]]
        assert [m.area for m in masks] == [int(expected[i][1].sum()) for i in ids]
    counts = compute_statistics(content).instance_count
    by_category = [sum(a["category_id"] == c.id for a in used) for c in content.categories]
    assert counts.tolist() == by_category
    assert {c.id: c.name for c in read_categories(path)}.items() >= names.names.items()
    assert_perfect_detections_are_perfect(content, expected, by_category)
    return True


def assert_right(found: dict, annotation: dict, bitmap: np.ndarray) -> None:
    """The normalised annotation is the raw one, with area and box as its mask has them."""
    assert found["iscrowd"] == CROWD[annotation.get("iscrowd")]
    for key in ("image_id", "category_id"):
        assert found[key] == annotation[key]
    pixels, box = int(bitmap.sum()), np.array(box_of(bitmap))
    stated = annotation.get("area")
    if found["area"] != pixels:
        assert found["area"] == stated and stated > 0
        assert abs(stated - pixels) <= max(4, 0.25 * pixels)
    if found["bbox"] != box.tolist():
        assert found["bbox"] == annotation["bbox"]
        x, y, width, height = found["bbox"]
        # A stated box may be that of the polygon's points, half a pixel off, too.
        near = np.abs(np.array([x, y, x + width, y + height]) - [*box[:2], *(box[:2] + box[2:])])
        assert (near <= np.maximum(2, 0.05 * np.tile(box[2:], 2)) + 1).all()
    rle = found["segmentation"]
    if isinstance(rle, list):
        rle = mask_utils.merge(mask_utils.frPyObjects(rle, *bitmap.shape))
    assert np.array_equal(mask_utils.decode(rle), bitmap)


def assert_perfect_detections_are_perfect(content, expected, by_category) -> None:
    """A detector that gives back the masks has AP 1 in each category with an object."""
    if not content.images:
        return
    truth = _GroundTruth.of(content)
    detections = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "segmentation": mask_utils.encode(np.asfortranarray(expected[a["id"]][1], np.uint8)),
            "score": 0.9,
        }
        for a in content.annotations
        if not a["iscrowd"]
    ]
    for task in ("bbox", "segm"):
        if not detections:
            return
        precision, _ = _evaluate(truth.dataset, detections, task, 300)
        for index, count in enumerate(by_category):
            figures = precision[:, :, index, 0]
            assert figures.min() == pytest.approx(1) if count else (figures == -1).all()


@pytest.mark.parametrize("kind", CONTENTS)
def test_the_unchanged_file_is_read(registered: Path, kind: str) -> None:
    text = json.dumps(CONTENTS[kind]()).encode()
    assert assert_handled(registered, text)
    assert assert_handled(registered, b"\xef\xbb\xbf" + text)


@pytest.mark.parametrize("key", ["area", "bbox", "iscrowd", "segmentation"])
def test_optional_fields_may_be_missing_or_null(registered: Path, key: str) -> None:
    content = small_coco()
    del content["annotations"][0][key]
    content["annotations"][1][key] = None
    assert assert_handled(registered, json.dumps(content).encode())


def fuzz(path: Path, kind: str, count: int) -> None:
    read = []

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**63))
    def run(seed: int) -> None:
        read.append(assert_handled(path, mutated(CONTENTS[kind](), random.Random(seed))))

    run()
    assert 0.1 < np.mean(read) < 0.9  # the faults are neither all harmless nor all fatal


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_hundred_mutated_files(registered: Path, kind: str) -> None:
    fuzz(registered, kind, 50)


@pytest.mark.slow
@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_thousand_mutated_files(registered: Path, kind: str) -> None:
    fuzz(registered, kind, 500)
