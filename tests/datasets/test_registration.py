"""Registration, metadata, the loader, and what it says about bad input."""

from __future__ import annotations

import copy
import json
import os
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_utils

from gal_d2.datasets import annotation_file, annotation_json
from gal_d2.datasets import registration as datasets
from gal_d2.datasets.annotation_file import (
    Category,
    frequency_of,
    read_annotation_file,
    read_categories,
)
from gal_d2.datasets.annotation_json import DatasetNotFoundError
from gal_d2.datasets.registration import (
    load_metadata,
    register_instances,
    register_lvis,
    register_miniature,
    require_dataset,
)
from gal_d2.errors import UserError

SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]
NAME = "test_datasets"


@pytest.fixture
def content():
    """COCO format: categories 7 and 2 (ids with gaps, unsorted), two images, no LVIS fields."""
    return {
        "images": [
            {"id": 11, "height": 40, "width": 50, "file_name": "b.png"},
            {"id": 5, "height": 30, "width": 60, "file_name": "sub/a.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 7, "bbox": [10, 10, 10, 10], "area": 100},
            {"id": 2, "image_id": 11, "category_id": 2, "bbox": [10, 10, 10, 10], "area": 100},
            {"id": 3, "image_id": 11, "category_id": 7, "bbox": [10, 10, 10, 10], "area": 100},
        ],
        "categories": [{"id": 7, "name": "seven"}, {"id": 2, "name": "two"}],
    }


@pytest.fixture(autouse=True)
def with_squares(content):
    for annotation in content["annotations"]:
        annotation["segmentation"] = copy.deepcopy(SQUARE)


@pytest.fixture(autouse=True)
def restore_registry():
    before = dict(DatasetCatalog), dict(MetadataCatalog), dict(datasets._sources)
    yield
    for registry, old in zip(
        (DatasetCatalog, MetadataCatalog, datasets._sources), before, strict=True
    ):
        registry.clear()
        registry.update(old)


@pytest.fixture
def write(tmp_path):
    def to_file(content, name: str = "own.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


@pytest.fixture
def register(write, tmp_path):
    def add(content, name: str = NAME, **kwargs):
        register_instances(name, write(content, f"{name}.json"), tmp_path / "images", **kwargs)
        return name

    return add


def uncompressed(mask: np.ndarray) -> dict:
    """COCO's RLE as a list of run lengths, column by column, beginning with zeros."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


class TestMetadata:
    def test_of_a_coco_json_before_anything_is_loaded(self, register, content):
        metadata = MetadataCatalog.get(register(content))
        assert metadata.thing_classes == ["two", "seven"]
        assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 7: 1}
        assert metadata.category_frequency == ["r", "r"]
        assert metadata.class_image_count == [
            {"id": 2, "image_count": 1},
            {"id": 7, "image_count": 2},
        ]
        assert metadata.evaluator_type == "lvis"
        assert metadata.get("thing_colors") is None
        with pytest.raises(AttributeError, match="thing_colors"):
            _ = metadata.thing_colors

    def test_is_complete_after_load_metadata(self, register, content):
        fields = load_metadata(register(content)).as_dict()
        assert fields["thing_classes"] == ["two", "seven"]
        assert fields["json_file"].endswith(f"{NAME}.json")
        assert fields["image_root"].endswith("images")

    def test_survives_pickling(self, register, content):
        metadata = pickle.loads(pickle.dumps(MetadataCatalog.get(register(content))))
        assert metadata.thing_classes == ["two", "seven"]

    def test_frequencies_of_the_json_are_kept(self, register, content):
        content["categories"] = [
            {"id": 7, "name": "seven", "frequency": "f", "image_count": 400},
            {"id": 2, "name": "two", "frequency": "c", "image_count": 12},
        ]
        metadata = load_metadata(register(content))
        assert metadata.category_frequency == ["c", "f"]
        assert [c["image_count"] for c in metadata.class_image_count] == [12, 400]

    def test_frequency_from_a_given_image_count(self, register, content):
        for category in content["categories"]:
            category["image_count"] = 11
        assert load_metadata(register(content)).category_frequency == ["c", "c"]

    def test_crowds_are_not_counted(self, register, content):
        content["annotations"][2]["iscrowd"] = 1
        counts = load_metadata(register(content)).class_image_count
        assert [c["image_count"] for c in counts] == [1, 1]

    def test_follows_a_changed_file_when_the_records_are_loaded(self, register, write, content):
        metadata = load_metadata(register(content))
        content["categories"].append({"id": 1, "name": "one"})
        write(content, f"{NAME}.json")
        records = DatasetCatalog.get(NAME)
        assert metadata.thing_classes == ["one", "two", "seven"]
        assert records[0]["annotations"][0]["category_id"] == 2

    @pytest.mark.parametrize(
        "image_count,frequency", [(0, "r"), (10, "r"), (11, "c"), (100, "c"), (101, "f")]
    )
    def test_lvis_rule(self, image_count, frequency):
        assert frequency_of(image_count) == frequency


class TestRecords:
    def test_standard_format(self, register, content, tmp_path):
        content["annotations"][1]["iscrowd"] = 1
        first, second = DatasetCatalog.get(register(content))
        assert first == {
            "file_name": str(tmp_path / "images" / "sub" / "a.png"),
            "height": 30,
            "width": 60,
            "image_id": 5,
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
            "annotations": [
                {
                    "bbox": [10, 10, 10, 10],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 1,
                    "segmentation": SQUARE,
                    "iscrowd": 0,
                }
            ],
        }
        assert [a["category_id"] for a in second["annotations"]] == [0, 1]
        assert [a["iscrowd"] for a in second["annotations"]] == [1, 0]

    def test_federated_fields(self, register, content):
        content["images"][1].update(neg_category_ids=[2], not_exhaustive_category_ids=[7])
        first, second = DatasetCatalog.get(register(content))
        assert first["neg_category_ids"] == [2] and first["not_exhaustive_category_ids"] == [7]
        assert second["neg_category_ids"] == [] and second["not_exhaustive_category_ids"] == []

    def test_exhaustive_only_without_federated_fields(self, write, content):
        assert read_annotation_file(write(content)).exhaustive
        content["images"][0]["neg_category_ids"] = []
        assert not read_annotation_file(write(content)).exhaustive

    def test_coco_url_in_place_of_file_name(self, register, content, tmp_path):
        del content["images"][0]["file_name"]
        content["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000011.jpg"
        _, second = DatasetCatalog.get(register(content))
        assert second["file_name"] == str(tmp_path / "images" / "val2017" / "000011.jpg")

    def test_file_name_goes_before_coco_url(self, register, content, tmp_path):
        content["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/000011.jpg"
        _, second = DatasetCatalog.get(register(content))
        assert second["file_name"] == str(tmp_path / "images" / "b.png")

    @pytest.mark.parametrize("compressed", [True, False])
    @pytest.mark.parametrize("corner", [0, 3])  # 0: the mask begins in the first pixel
    def test_rle(self, register, content, compressed, corner):
        mask = np.zeros((30, 60), np.uint8)
        mask[corner:15, corner:20] = 1
        if compressed:
            rle = mask_utils.encode(np.asfortranarray(mask))
            rle["counts"] = rle["counts"].decode()
        else:
            rle = uncompressed(mask)
        content["annotations"][0]["segmentation"] = rle
        del content["annotations"][0]["area"]
        first, _ = DatasetCatalog.get(register(content))
        found = first["annotations"][0]["segmentation"]
        np.testing.assert_array_equal(mask_utils.decode(found), mask)
        json.dumps(found)

    def test_missing_area_is_computed(self, write, content):
        for annotation in content["annotations"]:
            del annotation["area"]
        annotations = read_annotation_file(write(content)).annotations
        assert [a["area"] for a in annotations] == [100, 100, 100]

    def test_unusable_segmentations_are_left_out_and_counted(self, register, content):
        empty = mask_utils.encode(np.zeros((40, 50), np.uint8, order="F"))
        empty["counts"] = empty["counts"].decode()
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
        content["annotations"][1]["segmentation"] = []
        content["annotations"][2]["segmentation"] = empty
        first, second = DatasetCatalog.get(register(content))
        assert first["annotations"] == [] and second["annotations"] == []
        assert first["not_exhaustive_category_ids"] == [7]
        assert second["not_exhaustive_category_ids"] == [2, 7]
        report = datasets.object_report(NAME)
        assert (report.total, report.num_used, report.num_unusable) == (3, 0, 3)

    def test_bad_polygons_are_dropped_from_the_rest(self, register, content, caplog):
        content["annotations"][0]["segmentation"] = [[1, 2, 3, 4], *SQUARE, [1, 2, 3, 4, 5, 6, 7]]
        first, _ = DatasetCatalog.get(register(content))
        assert first["annotations"][0]["segmentation"] == SQUARE
        assert "1 annotations have polygons of fewer than 3 points" in caplog.text
        assert "ids 1" in caplog.text

    def test_corrections_are_logged_once_and_long_lists_cut_short(self, register, content, caplog):
        bad = {**content["annotations"][0], "area": 0}
        content["annotations"] = [{**bad, "id": i} for i in range(20)]
        name = register(content)
        for _ in range(2):
            assert {a["area"] for a in datasets.load_annotation_file(name).annotations} == {100}
        (message,) = [r.getMessage() for r in caplog.records]
        assert "20 annotations have an area that" in message and "8, 9, ...)" in message


class TestRegistration:
    def test_same_arguments_twice(self, register, content):
        register(content)
        metadata = load_metadata(NAME)
        register(content)
        assert MetadataCatalog.get(NAME) is metadata

    def test_other_arguments(self, register, content, tmp_path):
        register(content)
        with pytest.raises(UserError, match=rf"'{NAME}' is already taken for .*{NAME}\.json"):
            register_instances(NAME, tmp_path / "other.json", tmp_path)

    def test_name_of_detectron2(self, tmp_path):
        with pytest.raises(UserError, match="'coco_2017_val' is already taken; choose"):
            register_instances("coco_2017_val", tmp_path / "a.json", tmp_path)

    def test_replace(self, register, content, tmp_path):
        register(content)
        register_instances(NAME, tmp_path / "other.json", tmp_path, replace=True)
        assert MetadataCatalog.get(NAME).json_file == str(tmp_path / "other.json")

    def test_data_set_that_only_detectron2_knows(self, write, content, tmp_path):
        MetadataCatalog.get("theirs").set(
            json_file=str(write(content)), image_root=str(tmp_path), evaluator_type="coco"
        )
        DatasetCatalog.register("theirs", list)
        assert load_metadata("theirs").category_frequency == ["r", "r"]
        assert len(datasets.load_annotation_file("theirs").annotations) == 3

    def test_data_set_without_json(self):
        DatasetCatalog.register("theirs", list)
        with pytest.raises(UserError, match="no annotation JSON in its metadata"):
            load_metadata("theirs")


class TestCategoriesFrom:
    @pytest.fixture
    def train(self, register, content):
        content["categories"].append({"id": 1, "name": "one"})
        for category in content["categories"]:
            category.update(frequency="f", image_count=500)
        return register(copy.deepcopy(content), "train")

    def test_classes_and_frequencies_are_the_other_sets(self, register, content, train):
        content["categories"] = [{"id": 7, "name": "seven"}, {"id": 2, "name": "two"}]
        metadata = load_metadata(register(content, categories_from=train))
        assert metadata.thing_classes == ["one", "two", "seven"]
        assert metadata.category_frequency == ["f", "f", "f"]
        first, _ = DatasetCatalog.get(NAME)
        assert first["annotations"][0]["category_id"] == 2

    @pytest.mark.parametrize(
        "category_id,message", [(7, "'eight', but 'seven'"), (8, "'eight', but 'missing'")]
    )
    def test_contradiction(self, register, content, train, category_id, message):
        content["categories"] = [{"id": category_id, "name": "eight"}, {"id": 2, "name": "two"}]
        content["annotations"] = []
        name = register(content, categories_from=train)
        with pytest.raises(UserError, match=rf"category {category_id} is {message}.*'train'"):
            load_metadata(name)

    def test_unknown_or_itself(self, register, content):
        with pytest.raises(DatasetNotFoundError, match="There is no data set 'nowhere'"):
            register(content, categories_from="nowhere")
        with pytest.raises(UserError, match="from itself"):
            register(content, categories_from=NAME)


class TestKnownDatasets:
    def test_lvis_layout(self, tmp_path, monkeypatch):
        """All 1,203 categories count, though two images use one of them."""
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        register_lvis()
        for split in ("train", "val"):
            (tmp_path / "lvis").mkdir(exist_ok=True)
            url = f"http://images.cocodataset.org/{split}2017/000000000009.jpg"
            image = {"id": 9, "height": 480, "width": 640, "coco_url": url}
            if split == "val":  # the split folder comes from the URL even so
                image["file_name"] = "000000000009.jpg"
            annotation = {
                "id": 1,
                "image_id": 9,
                "category_id": 1203,
                "bbox": [10, 10, 10, 10],
                "area": 100,
                "segmentation": SQUARE,
            }
            (tmp_path / "lvis" / f"lvis_v1_{split}.json").write_text(
                json.dumps(
                    {
                        "images": [image],
                        "annotations": [annotation],
                        "categories": [
                            {"id": i, "name": f"thing_{i}", "frequency": "c", "image_count": 50}
                            for i in range(1, 1204)
                        ],
                    }
                )
            )
            metadata = MetadataCatalog.get(f"lvis_v1_{split}")
            assert metadata.thing_classes[0] == "thing_1" and len(metadata.thing_classes) == 1203
            assert metadata.thing_dataset_id_to_contiguous_id[1203] == 1202
            (record,) = DatasetCatalog.get(f"lvis_v1_{split}")
            path = tmp_path / "coco" / f"{split}2017" / "000000000009.jpg"
            assert record["file_name"] == str(path)
            assert record["annotations"][0]["category_id"] == 1202
            with pytest.raises(DatasetNotFoundError, match=str(tmp_path / "coco")):
                require_dataset(f"lvis_v1_{split}")
            path.parent.mkdir(parents=True)
            with pytest.raises(DatasetNotFoundError, match=str(path)):
                require_dataset(f"lvis_v1_{split}")
            path.touch()
            require_dataset(f"lvis_v1_{split}")

    def test_registered_on_import_and_again_elsewhere(self, tmp_path):
        assert "lvis_v1_train" in datasets._sources and "miniature_val" in datasets._sources
        register_miniature(tmp_path)
        metadata = MetadataCatalog.get("miniature_val")
        folder = tmp_path / "miniature"
        assert metadata.json_file == str(folder / "annotations" / "miniature_val.json")
        assert metadata.image_root == str(folder / "images" / "val")

    def test_default_folder(self, monkeypatch):
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
        register_lvis()
        json_file = MetadataCatalog.get("lvis_v1_val").json_file
        assert json_file == os.path.join("datasets", "lvis", "lvis_v1_val.json")


class TestMissingFiles:
    def test_annotations(self, tmp_path):
        register_instances(NAME, tmp_path / "not" / "there.json", tmp_path)
        for access in (
            lambda: require_dataset(NAME),
            lambda: load_metadata(NAME),
            lambda: MetadataCatalog.get(NAME).thing_classes,
            lambda: DatasetCatalog.get(NAME),
        ):
            with pytest.raises(DatasetNotFoundError) as caught:
                access()
            message = str(caught.value)
            assert str(tmp_path / "not" / "there.json") in message
            assert "docs/datasets.md" in message and "\n" not in message

    def test_images(self, register, content, tmp_path):
        name = register(content)
        with pytest.raises(DatasetNotFoundError, match=r"images' is missing.*docs/datasets\.md"):
            require_dataset(name)
        (tmp_path / "images").mkdir()
        with pytest.raises(DatasetNotFoundError, match=r"b\.png' is missing"):
            require_dataset(name)
        (tmp_path / "images" / "b.png").touch()
        require_dataset(name)

    def test_unknown_name_lists_the_nearest(self):
        with pytest.raises(DatasetNotFoundError, match=r"'lvis_v1_tran'.*lvis_v1_train"):
            require_dataset("lvis_v1_tran")
        with pytest.raises(DatasetNotFoundError, match=r"'\?\?'.*miniature_train"):
            require_dataset("??")


def change(path: str, value) -> object:
    """A function that sets ("annotations.0.bbox") or, with ``...``, removes a field."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def apply(content: dict) -> None:
        for part in parents:
            content = content[part]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return apply


class TestBrokenFiles:
    @pytest.mark.parametrize(
        "text,message",
        [
            ("", "is not valid JSON"),
            ('{"images": [', r"is not valid JSON \(.*line 1 column 13"),
            ("[]", "must hold one JSON object"),
            ("{}", "field 'categories' must be a list"),
        ],
    )
    def test_text(self, write, text, message):
        path = write(text)
        for read in (read_annotation_file, read_categories):
            with pytest.raises(UserError, match=message) as caught:
                read(path)
            assert str(path) in str(caught.value)

    def test_not_text_at_all(self, tmp_path):
        path = tmp_path / "own.json"
        path.write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(UserError, match="is not valid JSON"):
            read_categories(path)

    def test_folder(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
            read_categories(tmp_path)

    @pytest.mark.parametrize(
        "path,value,message",
        [
            ("images", ..., "the field 'images' must be a list"),
            ("annotations", 3, "the field 'annotations' must be a list"),
            ("categories", [], "'categories' is empty"),
            ("categories", [1], "the field 'categories' must be a list of objects"),
            ("categories.0.id", "7", "'seven' has the id '7', which is text; make"),
            ("categories.0.id", 2, "category id 2 occurs twice"),
            ("categories.0.name", ..., "category 7 needs a 'name'"),
            ("categories.0.name", "\ud800", "category 7 needs a 'name'"),
            ("categories.0.name", "two", "categories 2 and 7 are both named 'two'"),
            ("categories.0.frequency", "x", "category 7: frequency is 'x'; use 'r', 'c' or 'f'"),
            ("categories.0.image_count", -1, "category 7: image_count is -1"),
            ("images.0.id", ..., r"the image 'b\.png' has the id None; make"),
            ("images.0.id", "0007", "has the id '0007', which is text"),
            ("images.0.id", True, "has the id True"),
            ("images.0.id", -1, "has the id -1"),
            ("images.0.id", 2**63, "has the id 9223372036854775808"),
            ("images.0.id", 5, "image id 5 occurs twice"),
            ("images.0.height", ..., "image 11: height is None"),
            ("images.0.width", 0, "image 11: width is 0"),
            ("images.0.width", 2**31, "more than 2147483647 pixels"),
            ("images.0.file_name", ..., "image 11 has neither 'file_name' nor 'coco_url'"),
            ("images.0.file_name", ["b.png"], r"image 11: file_name is \['b.png'\]"),
            ("images.0.file_name", "b\0.png", "image 11: file_name is"),
            ("images.0.neg_category_ids", None, "image 11: neg_category_ids is None"),
            ("images.0.not_exhaustive_category_ids", ["7"], "give a list of ids"),
            ("annotations.0.id", ..., r"annotation None \(image 5\) has no 'id'"),
            ("annotations.0.id", 2, "annotation id 2 occurs twice"),
            ("annotations.0.id", [1], r"annotation of image 5 has the id \[1\]"),
            ("annotations.0.id", "a", "annotation of image 5 has the id 'a', which is text"),
            ("annotations.0.image_id", 77, "annotation 1: image_id 77 is not in 'images'"),
            ("annotations.0.image_id", [5], r"annotation 1: image_id \[5\] is not in 'images'"),
            ("annotations.0.category_id", 3, "annotation 1: category_id 3 is not in 'categories'"),
            ("annotations.0.category_id", [], r"annotation 1: category_id \[\] is not in"),
            (
                "annotations.0.bbox",
                [1, 2, 3],
                r"annotation 1 \(image 5\): bbox is \[1, 2, 3\]",
            ),
            ("annotations.0.area", "big", r"annotation 1 \(image 5\): area is 'big'"),
            ("annotations.0.segmentation", "abc", r"annotation 1 \(image 5\): bad segmentation"),
            ("annotations.0.segmentation", {"size": [30, 60]}, "neither a list of polygons"),
            (
                "annotations.0.segmentation",
                {"size": [60, 30], "counts": [1800]},
                r"size is \[60, 30\], the image's is \[30, 60\]",
            ),
            (
                "annotations.0.segmentation",
                {"size": [30, 60], "counts": [5, 5]},
                "counts sum to 10, not 1800",
            ),
            ("annotations.0.segmentation", {"size": [30, 60], "counts": 3}, "bad segmentation"),
            (
                "annotations.0.segmentation",
                {"size": [30, 60], "counts": "0oooooo0"},
                "counts end within a number|counts sum to .*, not 1800",
            ),
        ],
    )
    def test_field(self, write, content, path, value, message):
        change(path, value)(content)
        file = write(content)
        with pytest.raises(UserError, match=message) as caught:
            read_annotation_file(file)
        assert str(file) in str(caught.value)


class TestQuickCategories:
    EXPECTED = (Category(2, "two", "c", 12), Category(7, "seven", "f", 400))

    @pytest.fixture
    def lvis_like(self, content):
        content["categories"] = [
            {"id": 7, "name": "seven", "frequency": "f", "image_count": 400},
            {"id": 2, "name": "two", "frequency": "c", "image_count": 12},
        ]
        return content

    @pytest.fixture
    def no_whole_file(self, monkeypatch):
        def fail(path):
            raise AssertionError("the whole file was parsed")

        monkeypatch.setattr(annotation_file, "parse", fail)

    def test_at_the_end(self, write, lvis_like, no_whole_file):
        assert read_categories(write(lvis_like)) == self.EXPECTED

    def test_definition_and_synonyms_are_optional(self, write, lvis_like, no_whole_file):
        lvis_like["categories"][1] |= {"def": "the number after one", "synonyms": ["two", "pair"]}
        lvis_like["categories"][0] |= {"def": None, "synonyms": None}
        two, seven = read_categories(write(lvis_like))
        assert (two.definition, two.synonyms) == ("the number after one", ("two", "pair"))
        assert (seven.definition, seven.synonyms) == ("", ())

    def test_at_the_beginning(self, write, lvis_like, no_whole_file):
        reordered = {"categories": lvis_like["categories"], **lvis_like}
        assert read_categories(write(reordered)) == self.EXPECTED

    def test_a_deeper_field_of_that_name_does_not_mislead(self, write, lvis_like):
        lvis_like = {"categories": lvis_like.pop("categories"), **lvis_like}
        lvis_like["images"][0]["categories"] = [{"id": 1, "name": "not this"}]
        lvis_like["info"] = {"text": '"categories": []'}
        assert read_categories(write(lvis_like)) == self.EXPECTED

    def test_too_far_from_the_end(self, write, lvis_like, monkeypatch):
        monkeypatch.setattr(annotation_json, "_CATEGORY_TAIL_BYTES", 20)
        assert read_categories(write(lvis_like)) == self.EXPECTED
