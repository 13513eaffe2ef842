"""A file appears as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from gal_d2.files.atomic_file import TEMPORARY, replacing, sync


def test_until_the_end_the_old_file_is_there(tmp_path: Path):
    path = tmp_path / "a.npz"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        match = TEMPORARY.fullmatch(temporary.name)
        assert match and match["name"] == "a.npz" and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_nothing(tmp_path: Path):
    path = tmp_path / "a.npz"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path):
    path = tmp_path / "a.npz"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    sync(tmp_path)
