"""Pieces of an HTML page. Text is escaped wherever it is put in; only ``Markup`` is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

NO_VALUE = "-"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        key: its place in the page's address, letters only.
        title: heading.
        body: what stands below.
        charts: Plotly figures (``{"data", "layout"}``) by the key of :func:`chart`.
        data: what the page's script draws from, by name.
    """

    key: str
    title: str
    body: Markup
    charts: Mapping[str, dict] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts by a number.

    Attributes:
        shown: text or markup.
        number: what the column is sorted by; None: no value.
        tone: "good", "bad" or "".
    """

    shown: str | Markup
    number: float | None
    tone: str = ""


def joined(parts: Sequence[str | Markup]) -> Markup:
    """Pieces one after the other, text escaped."""
    return Markup("\n").join(parts)


def paragraph(text: str | Markup, kind: str = "lead") -> Markup:
    """A paragraph of text."""
    return Markup('<p class="{}">{}</p>').format(kind, text)


def note(text: str) -> Markup:
    """A sentence in place of what is missing."""
    return paragraph(text, "missing")


def heading(text: str) -> Markup:
    """A heading within a section."""
    return Markup("<h3>{}</h3>").format(text)


def chart(key: str, height: int, about: str = "") -> Markup:
    """The place of a chart and its caption.

    Args:
        key: of the figure.
        height: pixels.
        about: caption, below it.
    """
    caption = Markup("<figcaption>{}</figcaption>").format(about) if about else ""
    return Markup(
        '<figure><div class="chart" id="chart-{0}" data-chart="{0}" style="height:{1}px"></div>'
        "{2}</figure>"
    ).format(key, height, caption)


def number(value: float | None, style: str = ".1f", tone: str = "") -> Cell:
    """A number of a table; None and NaN have no value."""
    if value is None or not math.isfinite(value):
        return Cell(NO_VALUE, None)
    return Cell(format(value, style), value, tone)


def change(value: float | None, style: str = "+.1f", least: float = 0.05) -> Cell:
    """A difference: green above ``least``, red below ``-least``."""
    cell = number(value, style)
    if cell.number is None or abs(cell.number) < least:
        return cell
    return number(value, style, "good" if cell.number > 0 else "bad")


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Markup | Cell]],
    *,
    first: int = 0,
    key: str = "",
) -> Markup:
    """A table that sorts by a click on a heading.

    Args:
        headings: of the columns.
        rows: cells; a column of :class:`Cell` is set to the right.
        first: rows that are shown at first, with a search box and a button for the rest; 0: all.
        key: names the table, for the script.
    """
    numeric = [any(isinstance(row[i], Cell) for row in rows) for i in range(len(headings))]
    head = joined(
        [
            Markup('<th{} tabindex="0">{}</th>').format(_class("n" if is_number else ""), text)
            for text, is_number in zip(headings, numeric, strict=True)
        ]
    )
    body = joined([Markup("<tr>{}</tr>").format(_cells(row)) for row in rows])
    is_long = 0 < first < len(rows)
    bar = Markup(
        '<div class="bar"><input type="search" placeholder="Search {0:,} rows" '
        'aria-label="Search the table"><button type="button" class="more">Show all {0:,}</button>'
        '<span class="count"></span></div>'
    ).format(len(rows))
    return Markup(
        '<div class="table"{}>{}<div class="scroll"><table{}><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div></div>"
    ).format(
        Markup(' data-table="{}"').format(key) if key else "",
        bar if is_long else "",
        Markup(' data-first="{}"').format(first) if is_long else "",
        head,
        body,
    )


def _class(name: str) -> Markup:
    return Markup(' class="{}"').format(name) if name else Markup("")


def _cells(row: Sequence[str | Markup | Cell]) -> Markup:
    cells = []
    for cell in row:
        if isinstance(cell, Cell):
            names = " ".join(["n", *([cell.tone] if cell.tone else [])])
            key = "" if cell.number is None else repr(float(cell.number))
            cells.append(
                Markup('<td class="{}" data-k="{}">{}</td>').format(names, key, cell.shown)
            )
        else:
            cells.append(Markup("<td>{}</td>").format(cell))
    return Markup("").join(cells)


def tile(label: str, value: str, detail: str | Markup = "") -> Markup:
    """A key figure."""
    return Markup(
        '<div class="tile"><div class="label">{}</div><div class="value">{}</div>'
        '<div class="detail">{}</div></div>'
    ).format(label, value, detail)


def details(summary: str, body: Markup) -> Markup:
    """What is folded away at first."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def plain(text: str) -> str:
    """Text for a Plotly label, which understands some tags: it shows as it is."""
    return str(escape(text)).replace("&#39;", "'").replace("&#34;", '"')
