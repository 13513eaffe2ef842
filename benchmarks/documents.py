"""Tables in Markdown, and their place in a document: two marks that name the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gal_d2.errors import UserError

END = "<!-- end -->\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table of what ``str`` makes of the cells; each line ends with a line break."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def begin(command: str) -> str:
    return f"<!-- made by {command}: begin -->\n"


def check_document(path: Path, command: str) -> None:
    """See, before anything is measured, that there is a place for the tables.

    Raises:
        UserError: the file or the marks are not there.
    """
    _split(path, command)


def replace_tables(path: Path, command: str, text: str) -> None:
    """Put ``text`` in the place of what stands between the marks of ``command``.

    Raises:
        UserError: the file or the marks are not there.
    """
    before, after = _split(path, command)
    path.write_text(f"{before}\n{text.strip()}\n\n{after}")


def show(text: str, document: Path | None, command: str) -> None:
    """Print the tables, and put them into the document where there is one."""
    print(text)
    if document:
        replace_tables(document, command, text)


def _split(path: Path, command: str) -> tuple[str, str]:
    """What stands before and after the tables, the marks included."""
    text = path.read_text() if path.is_file() else ""
    mark = begin(command)
    if text.count(mark) != 1 or END not in text.partition(mark)[2]:
        raise UserError(
            f"--document {path} has no place for the tables: put the lines '{mark.strip()}' and "
            f"'{END.strip()}' where they belong."
        )
    before, _, rest = text.partition(mark)
    return before + mark, END + rest.partition(END)[2]
