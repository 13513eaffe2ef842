"""What is said of a data set before the first step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from gal_d2.datasets import check as dataset_check
from gal_d2.datasets import registration as datasets
from gal_d2.datasets.check import (
    check_evaluation_set,
    check_training_set,
    find_bad_images,
)
from gal_d2.datasets.registration import load_instances, load_metadata, register_instances
from gal_d2.errors import UserError

NAME, OTHER = "test_dataset_check", "test_dataset_check_2"
HEIGHT, WIDTH = 24, 32


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    for registry in (DatasetCatalog, MetadataCatalog, datasets._sources):
        for name in (NAME, OTHER):
            registry.pop(name, None)


@pytest.fixture
def content(tmp_path: Path) -> dict:
    """Three images with an object each, of categories 1 and 2."""
    images = []
    for number in range(3):
        pixels = np.full((HEIGHT, WIDTH, 3), 50 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append(
            {"id": number, "height": HEIGHT, "width": WIDTH, "file_name": f"{number}.png"}
        )
    return {
        "images": images,
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1 + number % 2,
                "segmentation": [[5, 5, 20, 5, 20, 15, 5, 15]],
            }
            for number in range(3)
        ],
        "categories": [{"id": 1, "name": "bun"}, {"id": 2, "name": "cup"}],
    }


@pytest.fixture
def register(tmp_path: Path) -> Callable[..., str]:
    def add(content: dict, name: str = NAME, **options: object) -> str:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        register_instances(name, path, tmp_path, replace=True, **options)
        return name

    return add


def check_training(name: str) -> None:
    check_training_set(name, load_instances(name))


class TestObjects:
    def test_one_line_of_counts(self, register, content, caplog) -> None:
        content["annotations"][2]["iscrowd"] = 1
        with caplog.at_level(logging.INFO, "gal_d2"):
            check_training(register(content))
        lines = [r.getMessage() for r in caplog.records if "objects" in r.getMessage()]
        assert lines == [
            f"{NAME}: 2 of 3 objects train; 1 crowd (first: annotation 2 of image 2), 0 without a "
            "usable mask"
        ]

    def test_a_category_that_falls_out_is_named(self, register, content, caplog) -> None:
        content["annotations"][1]["segmentation"] = []
        check_training(register(content))
        assert "most objects of these categories are left out: cup (1 of 1)" in caplog.text

    @pytest.mark.parametrize("check", [check_training, check_evaluation_set])
    def test_none_left_stops(self, register, content, check) -> None:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = "1"
        with pytest.raises(UserError, match=r"\.json: none of its 3 objects can .*3 are crowds"):
            check(register(content))

    def test_no_annotation_at_all(self, register, content) -> None:
        content["annotations"] = []
        with pytest.raises(UserError, match="none of its 0 objects can train: it has no annot"):
            check_training(register(content))


class TestImages:
    def test_training_names_what_it_leaves_out(self, register, content, caplog, tmp_path) -> None:
        (tmp_path / "1.png").unlink()
        (tmp_path / "2.png").write_bytes(b"no image")
        check_training(register(content))
        assert f"1 of 3 image files are missing and left out of training: {tmp_path}/1.png" in (
            caplog.text
        )
        assert "2.png cannot be read" in caplog.text

    def test_evaluation_lists_all_missing_at_once(self, register, content, tmp_path) -> None:
        for number in (0, 2):
            (tmp_path / f"{number}.png").unlink()
        with pytest.raises(
            UserError, match=r"2 of 3 image files are missing: \S+0\.png, \S+2\.png"
        ):
            check_evaluation_set(register(content))

    def test_evaluation_refuses_a_wrong_size(self, register, content) -> None:
        content["images"][2]["height"] += 1
        with pytest.raises(UserError, match=r"2\.png is 32 x 24, but .* 32 x 25"):
            check_evaluation_set(register(content))

    def test_headers_are_enough_for_the_size(self, register, content, monkeypatch) -> None:
        content["images"][2]["height"] += 1
        monkeypatch.setattr(dataset_check, "DECODED", 1)
        with pytest.raises(UserError, match=r"32 x 25"):
            check_evaluation_set(register(content))

    def test_only_some_are_opened(self, register, content, monkeypatch) -> None:
        opened = []
        monkeypatch.setattr(dataset_check, "HEADERS", 2)
        monkeypatch.setattr(
            dataset_check, "read_training_image", lambda record, _: opened.append(record)
        )
        assert find_bad_images(NAME, load_instances(register(content))) == ([], [])
        assert len(opened) == 2 and opened[0]["image_id"] == 0

    def test_all_missing_or_all_bad_stop_training(self, register, content, tmp_path) -> None:
        for image in content["images"]:
            image["width"] = 99
        with pytest.raises(UserError, match=r"none of 3 images can be used\. The first: .*0\.png"):
            check_training(register(content))
        for number in range(3):
            (tmp_path / f"{number}.png").unlink()
        with pytest.raises(
            UserError, match=r"all 3 image files are missing, the first is .*0\.png"
        ):
            check_training(NAME)

    def test_names_with_backslashes_are_found_and_said_once(
        self, register, content, caplog, tmp_path
    ) -> None:
        for image in content["images"]:
            image["file_name"] = f"..\\{tmp_path.name}\\{image['file_name']}"
        for _ in range(2):
            check_training(register(content))
        (message,) = [r.getMessage() for r in caplog.records]
        assert "3 image names are read with / for \\" in message
        datasets.require_dataset(NAME)

    def test_a_missing_first_image_hides_no_others(self, register, content, tmp_path) -> None:
        (tmp_path / "0.png").unlink()
        datasets.require_dataset(register(content))


class TestCategories:
    """Those without any annotation, where they are no classes."""

    def with_root(self, content: dict) -> dict:
        return {**content, "categories": [{"id": 0, "name": "food"}, *content["categories"]]}

    def test_root_is_no_class(self, register, content, caplog) -> None:
        name = register(self.with_root(content), annotated_only=True)
        assert load_metadata(name).thing_classes == ["bun", "cup"]
        records = load_instances(name)
        assert [a["category_id"] for r in records for a in r["annotations"]] == [0, 1, 0]
        assert "no annotation is of 'food' (id 0): no class" in caplog.text

    def test_unless_it_is_asked_for(self, register, content) -> None:
        content = self.with_root(content)
        content["categories"][0]["image_count"] = 0
        name = register(content, annotated_only=True)
        assert load_metadata(name).thing_classes == ["food", "bun", "cup"]

    def test_it_is_kept_elsewhere(self, register, content) -> None:
        name = register(self.with_root(content))
        assert load_metadata(name).thing_classes == ["food", "bun", "cup"]

    def test_a_root_of_the_same_name_is_no_duplicate(self, register, content) -> None:
        content["categories"].insert(0, {"id": 0, "name": "bun"})
        name = register(content, annotated_only=True)
        assert load_metadata(name).thing_dataset_id_to_contiguous_id == {1: 0, 2: 1}
        with pytest.raises(UserError, match="categories 0 and 1 are both named 'bun'"):
            load_metadata(register(content, OTHER))

    def test_validation_may_list_the_root_and_has_objects_of_no_class_left_out(
        self, register, content, caplog
    ) -> None:
        content["categories"] += [{"id": 5, "name": "egg"}, {"id": 0, "name": "food"}]
        train = register(content, annotated_only=True)
        content["annotations"][2]["category_id"] = 5
        name = register(content, OTHER, categories_from=train)
        with caplog.at_level(logging.INFO, "gal_d2"):
            check_evaluation_set(name)
        assert load_metadata(name).thing_classes == ["bun", "cup"]
        assert "the objects of 'egg' are left out" in caplog.text
        assert "2 of 3 objects count in the evaluation" in caplog.text
        assert "1 of other categories (first: annotation 2 of image 2)" in caplog.text
