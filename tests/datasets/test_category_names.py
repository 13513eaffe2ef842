"""Finding a category by what people call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError

CATEGORIES = [
    {"id": 7, "name": "bun", "synonyms": ["bun", "roll"]},
    {"id": 3, "name": "sandal_(type_of_shoe)", "synonyms": ["sandal"]},
    {"id": 4, "name": "roll_of_paper", "synonyms": ["roll", "paper roll", "bun"]},
    {"id": 12, "name": "7"},
]


@pytest.mark.parametrize(
    ("text", "category_id"),
    [
        ("bun", 7),  # also a synonym of 4, but a name comes first
        ("Bun", 7),
        ("Sandal (type of shoe)", 3),
        ("sandal", 3),
        ("paper_roll", 4),
        ("roll", None),  # a synonym of two
        ("7", 12),  # a name comes before an id
        ("3", 3),
        ("003", 3),
        ("5", None),
        ("-3", None),
        ("bunny", None),
        ("", None),
    ],
)
def test_resolve(text: str, category_id: int | None) -> None:
    assert CategoryNames(CATEGORIES).resolve(text) == category_id


def test_ids_and_names() -> None:
    names = CategoryNames(CATEGORIES)
    assert names.ids == [3, 4, 7, 12]
    assert names.names[3] == "sandal_(type_of_shoe)"


def test_without_the_part_in_parentheses() -> None:
    names = CategoryNames(
        [
            {"id": 1, "name": "sandal_(type_of_shoe)"},
            {"id": 2, "name": "bow_(weapon)"},
            {"id": 3, "name": "bow_(decorative_ribbons)"},
            {"id": 4, "name": "bat_(animal)"},
            {"id": 5, "name": "club", "synonyms": ["bat"]},
        ]
    )
    assert names.resolve("Sandal") == 1
    assert names.resolve("bow") is None  # of two
    assert names.nearest("bow")[:2] == ["bow_(weapon)", "bow_(decorative_ribbons)"]
    assert names.resolve("bat") == 5  # a synonym comes first


def test_nearest() -> None:
    names = CategoryNames(CATEGORIES)
    assert names.nearest("bunn") == ["bun"]
    assert names.nearest("sandals") == ["sandal_(type_of_shoe)"]
    assert names.nearest("xyzzy") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no list 'categories'"),
        ('{"images": []}', "no list 'categories'"),
        ('{"categories": []}', "'categories' is empty"),
        ('{"categories": [3]}', "needs an integer 'id' and a 'name'"),
        ('{"categories": [{"id": "3", "name": "bun"}]}', "needs an integer 'id'"),
        ('{"categories": [{"id": 3}]}', "and a 'name'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        CategoryNames.from_file(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json cannot be read"):
        CategoryNames.from_file(tmp_path / "nowhere.json")


def test_from_file(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps({"categories": CATEGORIES}))
    assert CategoryNames.from_file(path).resolve("bun") == 7


def test_several_names_at_once() -> None:
    names = CategoryNames(CATEGORIES)
    assert names.resolve_all(["bun", "7", "bun"], "--category") == [7, 12]
    with pytest.raises(UserError, match=r"--category: .*'bunn' \(did you mean bun\?\), 'xyzzy';"):
        names.resolve_all(["bunn", "bun", "xyzzy"], "--category")


class TestExporters:
    """What exporters add to a category list."""

    def write(
        self, path: Path, categories: list[dict], used: list[int], start: bytes = b""
    ) -> Path:
        annotations = [{"id": k, "category_id": i} for k, i in enumerate(used)]
        content = {"categories": categories, "annotations": annotations}
        path.write_bytes(start + json.dumps(content).encode())
        return path

    def test_byte_order_mark(self, tmp_path: Path) -> None:
        categories = [{"id": 1, "name": "bun"}]
        path = self.write(tmp_path / "a.json", categories, [1], b"\xef\xbb\xbf")
        assert CategoryNames.from_file(path).names == {1: "bun"}

    def test_root_category_of_the_same_name(self, tmp_path: Path) -> None:
        categories = [
            {"id": 0, "name": "bun", "supercategory": "none"},
            {"id": 1, "name": "bun", "supercategory": "bun"},
            {"id": 2, "name": "cup", "supercategory": "bun"},
        ]
        path = self.write(tmp_path / "a.json", categories, [1, 2])
        assert CategoryNames.from_file(path).names == {1: "bun", 2: "cup"}

    def test_a_parent_with_annotations_and_a_category_without_are_kept(self, tmp_path) -> None:
        categories = [
            {"id": 0, "name": "food", "supercategory": "none"},
            {"id": 1, "name": "bun", "supercategory": "food"},
            {"id": 2, "name": "cup", "supercategory": "food"},
        ]
        path = self.write(tmp_path / "a.json", categories, [0, 1])
        assert CategoryNames.from_file(path).ids == [0, 1, 2]

    def test_two_of_the_same_name(self) -> None:
        categories = [{"id": 3, "name": "bun"}, {"id": 5, "name": "bun"}]
        with pytest.raises(UserError, match="categories 3 and 5 are both named 'bun'; rename"):
            CategoryNames(categories)

    @pytest.mark.parametrize("synonyms", [None, 3, "roll"])
    def test_synonyms_that_are_no_list_are_none(self, synonyms: object) -> None:
        names = CategoryNames([{"id": 3, "name": "bun", "synonyms": synonyms}])
        assert names.resolve("r") is None and names.resolve("bun") == 3
