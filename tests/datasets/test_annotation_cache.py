"""Annotations from the cache are those of the JSON, and a cache that is not of it is not used."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from annotation_mutations import small_coco, small_lvis
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import RepeatFactorTrainingSampler
from pycocotools import mask as mask_utils

from gal_d2.datasets import annotation_cache, annotation_file
from gal_d2.datasets import registration as datasets
from gal_d2.datasets.annotation_cache import CheckedAnnotations, cache_places
from gal_d2.datasets.annotation_file import AnnotationFile, read_annotation_file
from gal_d2.datasets.records import object_classes, repeat_factors
from gal_d2.datasets.registration import load_instances, register_instances
from gal_d2.datasets.statistics import compute_statistics
from gal_d2.errors import UserError
from gal_d2.evaluation.lvis_evaluation import _evaluate, _GroundTruth

NAME = "test_annotation_cache"


@pytest.fixture(params=["coco", "lvis"])
def content(request: pytest.FixtureRequest) -> dict:
    return {"coco": small_coco, "lvis": small_lvis}[request.param]()


@pytest.fixture
def json_file(content: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a data set that is cached however small it is."""
    monkeypatch.setattr(annotation_cache, "LEAST_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    path = tmp_path / "data" / "own.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    register_instances(NAME, path, tmp_path, replace=True)
    forget()
    yield path
    forget()
    for registry in (DatasetCatalog, MetadataCatalog, datasets._sources):
        registry.pop(NAME)


def forget() -> None:
    """As another process, which has read nothing yet."""
    annotation_cache._held.clear()
    annotation_cache._homes.clear()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list that grows whenever a JSON is parsed."""
    seen: list[Path] = []
    check = annotation_file.check_annotations

    def counting(path: Path) -> CheckedAnnotations:
        seen.append(path)
        return check(path)

    monkeypatch.setattr(annotation_file, "check_annotations", counting)
    return seen


def parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> AnnotationFile:
    """The content without any cache."""
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(annotation_cache, "LEAST_BYTES", 1 << 60)
        found = read_annotation_file(path)
    forget()
    return found


def test_everything_is_as_without_a_cache(
    json_file: Path, monkeypatch: pytest.MonkeyPatch, checks: list[Path]
) -> None:
    expected = parsed(json_file, monkeypatch)
    records_before = load_instances(NAME)  # written
    forget()
    found = read_annotation_file(json_file)  # mapped
    assert len(checks) == 2 and found.annotations.home is not None
    assert found.images == expected.images
    assert list(found.annotations) == list(expected.annotations)
    for name in ("categories", "exhaustive", "left_out", "report"):
        assert getattr(found, name) == getattr(expected, name)
    for name, values in vars(compute_statistics(expected)).items():
        np.testing.assert_array_equal(getattr(compute_statistics(found), name), values)
    records = load_instances(NAME)
    assert records == records_before
    plain = [{**r, "annotations": list(r["annotations"])} for r in records]
    assert repeat_factors(records, 0.5).tolist() == repeat_factors(plain, 0.5).tolist()
    by_detectron2 = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(plain, 0.5)
    assert repeat_factors(records, 0.5).tolist() == by_detectron2.tolist()
    assert list(map(object_classes, records)) == list(map(object_classes, plain))
    figures = [
        _evaluate(_GroundTruth.of(of).dataset, detections(expected), "segm", 300)
        for of in (expected, found)
    ]
    np.testing.assert_array_equal(figures[0][0], figures[1][0])
    np.testing.assert_array_equal(figures[0][1], figures[1][1])


def detections(content: AnnotationFile) -> list[dict]:
    """Half of the objects, with the masks of others."""
    annotations = list(content.annotations)
    shifted = zip(annotations[::2], annotations[1:], strict=False)
    return [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.5}
        | {"segmentation": mask_of(b if i % 2 else a, content)}
        for i, (a, b) in enumerate(shifted)
    ]


def mask_of(annotation: dict, content: AnnotationFile) -> dict:
    (image,) = [i for i in content.images if i["id"] == annotation["image_id"]]
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return segmentation
    parts = mask_utils.frPyObjects(segmentation, image["height"], image["width"])
    return mask_utils.merge(parts)


def test_a_json_that_changed_is_read_anew(json_file: Path, checks: list[Path]) -> None:
    read_annotation_file(json_file)
    stat = json_file.stat()
    json_file.write_text(json_file.read_text().replace("thing 30", "thing 31"))
    os.utime(json_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert json_file.stat().st_size == stat.st_size
    forget()
    names = [category.name for category in read_annotation_file(json_file).categories]
    assert names == ["thing 2", "thing 7", "thing 31"] and len(checks) == 2


def test_a_copied_data_set_needs_no_parsing(json_file: Path, checks: list[Path]) -> None:
    read_annotation_file(json_file)
    os.utime(json_file, ns=(0, 0))
    read_annotation_file(json_file)
    assert len(checks) == 1


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda data: b"", lambda data: b"junk" * 99])
def test_a_damaged_cache_is_named_and_made_anew(
    json_file: Path,
    damage: Callable[[bytes], bytes],
    checks: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = list(read_annotation_file(json_file).annotations)
    (place, _) = cache_places(json_file)
    sound = place.read_bytes()
    place.unlink()  # the pages that are mapped stay as they are
    place.write_bytes(damage(sound))
    forget()
    assert list(read_annotation_file(json_file).annotations) == expected
    assert len(checks) == 2 and f"{place} is damaged" in caplog.text
    assert place.read_bytes() == sound


def test_a_cache_of_other_checks_is_not_used(
    json_file: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_annotation_file(json_file)
    forget()
    monkeypatch.setattr(annotation_cache, "FORMAT", annotation_cache.FORMAT + 1)
    read_annotation_file(json_file)
    assert len(checks) == 2


def test_where_the_folder_cannot_be_written_it_lies_in_the_users(
    json_file: Path, checks: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    beside, in_users = cache_places(json_file)
    beside.mkdir()  # so that no file can take its place
    with caplog.at_level(logging.INFO, "gal_d2.datasets.annotation_cache"):
        read_annotation_file(json_file)
    assert in_users.is_file() and caplog.text.count(str(in_users)) == 1
    forget()
    assert read_annotation_file(json_file).annotations.home[0] == str(in_users)
    assert len(checks) == 1


def test_where_nothing_can_be_written_it_is_done_without(
    json_file: Path, checks: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in cache_places(json_file):
        place.mkdir(parents=True)
    records = load_instances(NAME)
    assert caplog.text.count("cannot be kept") == 1 and len(checks) == 1
    copies = pickle.loads(pickle.dumps(records))
    assert copies == records and type(copies[0]["annotations"]) is list
    assert load_instances(NAME) == records and len(checks) == 1


def test_a_small_json_has_no_file_beside_it(
    json_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation_cache, "LEAST_BYTES", 1 << 20)
    read_annotation_file(json_file)
    assert [p.name for p in json_file.parent.iterdir()] == ["own.json"]


def test_a_pickled_record_says_where_its_annotations_are(json_file: Path) -> None:
    records = load_instances(NAME)
    sent = [pickle.dumps(record) for record in records]
    assert max(map(len, sent)) < 1000
    forget()
    assert [pickle.loads(record) for record in sent] == records
    (home,) = annotation_cache._homes
    with pytest.raises(UserError, match=r"have changed since .*--resume"):
        annotation_cache.table_at(home[0], home[1] + 1)
    os.unlink(home[0])
    forget()
    with pytest.raises(UserError, match=r"own\.annotations\.cache cannot be read"):
        pickle.loads(sent[0])


def test_a_copied_record_may_be_changed(json_file: Path) -> None:
    record = next(r for r in load_instances(NAME) if r["annotations"])
    copied = copy.deepcopy(record)
    copied["annotations"].pop()["segmentation"] = None
    assert len(copied["annotations"]) == len(record["annotations"]) - 1


def _read(path: Path, started, results) -> None:
    annotation_cache.LEAST_BYTES = 0
    checks = []
    check = annotation_file.check_annotations
    annotation_file.check_annotations = lambda p: checks.append(p) or check(p)
    started.wait()
    found = list(read_annotation_file(path).annotations)
    results.put((len(checks), found))


def test_of_processes_that_start_together_one_parses(json_file: Path) -> None:
    forked = multiprocessing.get_context("fork")
    started, results = forked.Barrier(4), forked.SimpleQueue()
    processes = [forked.Process(target=_read, args=(json_file, started, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert sorted(parses for parses, _ in found) == [0, 0, 0, 1]
    assert all(annotations == found[0][1] for _, annotations in found)
    names = sorted(p.name for p in json_file.parent.iterdir())
    assert names == ["own.annotations.cache", "own.json"]
