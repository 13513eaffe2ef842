"""Names in annotations and files on the disk."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from gal_d2.datasets.image_paths import find_image, first_value


class TestFindImage:
    def test_a_plain_name_is_joined_without_a_look(self, tmp_path: Path) -> None:
        assert find_image(tmp_path, "sub/a.png") == str(tmp_path / "sub" / "a.png")

    def test_backslashes(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.png").touch()
        assert find_image(tmp_path, "sub\\a.png") == str(tmp_path / "sub" / "a.png")

    def test_a_file_whose_name_has_a_backslash_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.png").touch()
        (tmp_path / "sub\\a.png").touch()
        assert find_image(tmp_path, "sub\\a.png") == str(tmp_path / "sub\\a.png")

    @pytest.mark.parametrize(("on_disk", "in_json"), [("NFD", "NFC"), ("NFC", "NFD")])
    def test_unicode_forms(self, tmp_path: Path, on_disk: str, in_json: str) -> None:
        file = tmp_path / unicodedata.normalize(on_disk, "Brötchen") / "é.png"
        file.parent.mkdir()
        (file.parent / unicodedata.normalize(on_disk, "é.png")).touch()
        found = find_image(tmp_path, unicodedata.normalize(in_json, "Brötchen\\é.png"))
        assert Path(found).is_file()

    def test_what_is_nowhere_stays_as_it_is(self, tmp_path: Path) -> None:
        assert find_image(tmp_path, "sub\\ä.png") == str(tmp_path / "sub\\ä.png")


class TestFirstValue:
    @pytest.mark.parametrize("name", ["a.png", "sub\\a.png", 'a "b".png', "ä.png"])
    def test_escapes(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"images": [{"id": 1, "file_name": name}, {"file_name": "b"}]}))
        assert first_value(path, ["coco_url", "file_name"]) == ("file_name", name)

    @pytest.mark.parametrize("text", ["", "{}", '{"file_name": 3}', '{"file_name": "\\q"}'])
    def test_none(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "a.json"
        path.write_text(text)
        assert first_value(path, ["file_name"]) is None
