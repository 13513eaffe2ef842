"""Class statistics by hand."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from gal_d2.datasets import registration as datasets
from gal_d2.datasets.annotation_file import read_annotation_file
from gal_d2.datasets.annotation_json import DatasetNotFoundError
from gal_d2.datasets.registration import register_instances
from gal_d2.datasets.statistics import category_statistics, compute_statistics, image_counts

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
    yield path
    for registry in (DatasetCatalog, MetadataCatalog, datasets._sources):
        registry.pop(NAME)


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

    def test_images_of_each_category(self, json_file):
        assert image_counts([NAME]) == {4: 2, 6: 0, 9: 1}
        assert image_counts([NAME, NAME]) == {4: 4, 6: 0, 9: 2}

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


class TestKept:
    def test_by_the_process(self, json_file):
        assert category_statistics(NAME) is category_statistics(NAME)

    def test_changed_annotations(self, json_file):
        category_statistics(NAME)
        json_file.write_text(json.dumps({**CONTENT, "annotations": CONTENT["annotations"][3:]}))
        np.testing.assert_array_equal(category_statistics(NAME).instance_count, [0, 0, 1])

    def test_another_category_list(self, json_file, tmp_path):
        category_statistics(NAME)
        more = {**CONTENT, "categories": [*CONTENT["categories"], {"id": 5, "name": "d"}]}
        (tmp_path / "more.json").write_text(json.dumps(more))
        register_instances("more", tmp_path / "more.json", tmp_path)
        register_instances(NAME, json_file, tmp_path, categories_from="more", replace=True)
        np.testing.assert_array_equal(category_statistics(NAME).instance_count, [3, 0, 0, 1])
        for registry in (DatasetCatalog, MetadataCatalog, datasets._sources):
            registry.pop("more")

    def test_missing_annotations(self, json_file):
        category_statistics(NAME)
        shutil.move(json_file, json_file.with_name("away.json"))
        with pytest.raises(DatasetNotFoundError, match=r"own\.json"):
            category_statistics(NAME)
