"""Class statistics by hand, and their cache."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gal_d2.datasets import registration as datasets
from gal_d2.datasets import statistics
from gal_d2.datasets.annotation_file import DatasetNotFoundError, read_annotation_file
from gal_d2.datasets.registration import register_instances
from gal_d2.datasets.statistics import category_statistics, compute_statistics

NAME = "test_statistics"


def annotation(annotation_id: int, image_id: int, category_id: int, area: int, crowd=0) -> dict:
    """A square, or else a rectangle of 50 px height, in the corner of its image."""
    height = math.isqrt(area) if math.isqrt(area) ** 2 == area else 50
    width = area // height
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [0, 0, width, height],
        "segmentation": [[0, 0, width, 0, width, height, 0, height]],
        "area": area,
        "iscrowd": crowd,
    }


# Image 1 has 10,000 pixels, image 2 has 40,000.
CONTENT = {
    "images": [
        {"id": 2, "height": 200, "width": 200, "file_name": "2.png"},
        {"id": 1, "height": 100, "width": 100, "file_name": "1.png"},
    ],
    "annotations": [
        annotation(1, 1, 4, 100),  # sqrt relative area .1
        annotation(2, 1, 4, 900),  # .3
        annotation(3, 2, 4, 10000),  # .5
        annotation(4, 2, 9, 400),  # .1
        annotation(5, 2, 4, 40000, crowd=1),
        annotation(6, 1, 6, 5000, crowd=1),
    ],
    "categories": [{"id": 9, "name": "c"}, {"id": 6, "name": "b"}, {"id": 4, "name": "a"}],
}


@pytest.fixture
def json_file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(CONTENT))
    register_instances(NAME, path, tmp_path)
    statistics._cached.cache_clear()
    yield path
    for registry in (DatasetCatalog, MetadataCatalog, datasets._sources):
        registry.pop(NAME)


@pytest.fixture
def computed(monkeypatch):
    """A list that grows by one whenever statistics are computed."""
    calls = []

    def counting(content):
        calls.append(content)
        return compute_statistics(content)

    monkeypatch.setattr(statistics, "compute_statistics", counting)
    return calls


def assert_expected(found) -> None:
    np.testing.assert_array_equal(found.image_count, [2, 0, 1])
    np.testing.assert_array_equal(found.instance_count, [3, 0, 1])
    np.testing.assert_allclose(found.scale_mean, [0.3, np.nan, 0.1], atol=1e-12)
    np.testing.assert_allclose(found.scale_std, [np.sqrt(0.08 / 3), np.nan, 0], atol=1e-12)
    assert found.overall_mean == pytest.approx(0.25)
    assert found.overall_std == pytest.approx(np.std([0.1, 0.3, 0.5, 0.1]))


class TestValues:
    def test_by_hand(self, json_file):
        assert_expected(category_statistics(NAME))

    @pytest.mark.parametrize("images", [CONTENT["images"], []])
    def test_no_instances(self, tmp_path, images):
        path = tmp_path / "own.json"
        path.write_text(json.dumps({**CONTENT, "images": images, "annotations": []}))
        found = compute_statistics(read_annotation_file(path))
        np.testing.assert_array_equal(found.image_count, [0, 0, 0])
        assert np.isnan(found.scale_mean).all() and np.isnan(found.scale_std).all()
        assert np.isnan(found.overall_mean) and np.isnan(found.overall_std)

    def test_unknown_data_set(self):
        with pytest.raises(DatasetNotFoundError, match="There is no data set 'nothing'"):
            category_statistics("nothing")


class TestCache:
    def again(self):
        """As another process would."""
        statistics._cached.cache_clear()
        return category_statistics(NAME)

    def test_written_next_to_the_annotations_and_used(self, json_file, computed):
        category_statistics(NAME)
        assert [p.name for p in json_file.parent.iterdir() if p != json_file] == [
            "own.statistics.npz"
        ]
        assert_expected(self.again())
        assert len(computed) == 1

    def test_kept_in_the_process(self, json_file):
        assert category_statistics(NAME) is category_statistics(NAME)

    @pytest.mark.parametrize("what", ["size", "time"])
    def test_changed_annotations(self, json_file, computed, what):
        category_statistics(NAME)
        if what == "size":
            json_file.write_text(json.dumps({**CONTENT, "info": {}}))
        else:
            stat = json_file.stat()
            os.utime(json_file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
        assert_expected(self.again())
        assert len(computed) == 2

    def test_another_category_list(self, json_file, computed, tmp_path):
        category_statistics(NAME)
        more = {**CONTENT, "categories": [*CONTENT["categories"], {"id": 5, "name": "d"}]}
        (tmp_path / "more.json").write_text(json.dumps(more))
        register_instances("more", tmp_path / "more.json", tmp_path)
        register_instances(NAME, json_file, tmp_path, categories_from="more", replace=True)
        np.testing.assert_array_equal(self.again().instance_count, [3, 0, 0, 1])
        for registry in (DatasetCatalog, MetadataCatalog, datasets._sources):
            registry.pop("more")

    @pytest.mark.parametrize("damage", [b"", b"junk", "half", "empty archive"])
    def test_damaged(self, json_file, computed, caplog, damage):
        category_statistics(NAME)
        cache = json_file.with_name("own.statistics.npz")
        if damage == "empty archive":
            np.savez(cache)
        else:
            cache.write_bytes(cache.read_bytes()[:200] if damage == "half" else damage)
        assert_expected(self.again())
        assert "own.statistics.npz is not readable" in caplog.text
        assert len(computed) == 2
        assert_expected(self.again())
        assert len(computed) == 2

    def test_folder_that_cannot_be_written(self, json_file, computed, monkeypatch, caplog):
        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(statistics.np, "savez", refuse)
        with caplog.at_level(logging.WARNING, "gal_d2"):
            assert_expected(category_statistics(NAME))
        assert "own.statistics.npz cannot be written" in caplog.text
        category_statistics(NAME)
        assert len(computed) == 1
        assert [p.name for p in json_file.parent.iterdir()] == ["own.json"]

    def test_full_disk_leaves_nothing_behind(self, json_file, monkeypatch, caplog):
        def half(file, **arrays):
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(statistics.np, "savez", half)
        assert_expected(category_statistics(NAME))
        assert "No space left on device" in caplog.text
        assert [p.name for p in json_file.parent.iterdir()] == ["own.json"]

    def test_missing_annotations(self, json_file):
        category_statistics(NAME)
        shutil.move(json_file, json_file.with_name("away.json"))
        with pytest.raises(DatasetNotFoundError, match=r"own\.json"):
            category_statistics(NAME)
