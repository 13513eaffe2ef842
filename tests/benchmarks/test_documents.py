"""benchmarks/documents.py: tables between marks in a document."""

from __future__ import annotations

import pytest
from documents import END, begin, check_document, replace_tables

from gal_d2.errors import UserError

COMMAND = "benchmarks/some.py"


def test_only_the_place_of_the_command_changes(tmp_path):
    path = tmp_path / "some.md"
    other = f"{begin('benchmarks/other.py')}\nkept\n\n{END}"
    path.write_text(f"Before\n{begin(COMMAND)}old\n{END}Between\n{other}After\n")
    for text in ("new\n", "\nnewer\n\n"):
        replace_tables(path, COMMAND, text)
        expected = f"Before\n{begin(COMMAND)}\n{text.strip()}\n\n{END}Between\n{other}After\n"
        assert path.read_text() == expected


@pytest.mark.parametrize("text", [None, "no marks", END, begin(COMMAND), f"{END}{begin(COMMAND)}"])
def test_a_document_without_a_place_for_them(tmp_path, text):
    path = tmp_path / "some.md"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"some.md has no place for the tables"):
        check_document(path, COMMAND)
