"""The best and the worst cut-outs of a category, as a picture and as a page to scroll and sort."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gal_d2.copy_paste.resize import crop_to_foreground
from gal_d2.visualization import page_pictures
from gal_d2.visualization.fitted import draw_fitted

NEUTRAL = 232  # grey that neither light nor dark objects vanish on
_GOOD, _BAD = "#1e8c46", "#d62828"


@dataclass(frozen=True)
class RankedCutOut:
    """A cut-out with what is shown of it.

    Attributes:
        rgba: (H, W, 4) uint8; None where it cannot be read.
        rank: from 1; None: it has no value.
        value: what it is ranked by.
        pool_id: of the pool.
        numbers: further columns of the page, by their headings; None: not known.
        texts: further columns of the page that are text.
        history: (step, score, accepted) of each exposure.
    """

    rgba: np.ndarray | None
    rank: int | None
    value: float | None
    pool_id: int
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[tuple[int, float | None, bool]] = ()


def on_neutral(rgba: np.ndarray | None, size: int, margin: float = 0.06) -> np.ndarray:
    """A cut-out in the middle of a grey square, as large as fits: (size, size, 3) uint8 RGB.

    Args:
        rgba: (H, W, 4) uint8; None or fully transparent: the square alone.
        size: of a side, in pixels.
        margin: share of the side that stays free all around.
    """
    canvas = np.full((size, size, 3), NEUTRAL, np.uint8)
    if rgba is None:
        return canvas
    cropped, foreground = crop_to_foreground(rgba)
    if foreground == 0:
        return canvas
    draw_fitted(canvas, cropped, margin)
    return canvas


def save_best_and_worst(
    best: Sequence[RankedCutOut],
    worst: Sequence[RankedCutOut],
    path: str | Path,
    *,
    title: str,
    value_name: str,
    dpi: int = 200,
) -> Path:
    """PNG with the best in the upper row and the worst in the lower, the value under each.

    Args:
        best: from the best on.
        worst: from the worst on.
        path: of the PNG; its folder is made.
        title: above all.
        value_name: what the numbers are.
        dpi: of the picture; a cell is 0.9 inch wide.
    """
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = max(len(best), len(worst), 1)
    width = max(0.9 * columns + 0.5, 4.0)
    # As wide as the picture, whatever its number of columns: a longer line would be cut off.
    title, value_name = _wrapped(title, width, size=10), _wrapped(value_name, width, size=8)
    more_lines = title.count("\n") + value_name.count("\n")
    figure = Figure(figsize=(width, 2.75 + 0.17 * more_lines), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.02)
    grid = figure.subplots(2, columns, squeeze=False)
    for axes, row, name, color in (
        (grid[0], best, "best", _GOOD),
        (grid[1], worst, "worst", _BAD),
    ):
        for axis in axes:
            axis.set_axis_off()
        for axis, cut_out in zip(axes, row, strict=False):
            axis.imshow(on_neutral(cut_out.rgba, round(0.9 * dpi)), interpolation="none")
            axis.set_title(f"{cut_out.value:+#.3g}", y=-0.22, fontsize=8, color=color)
        axes[0].text(
            -0.12,
            0.5,
            name,
            rotation=90,
            fontsize=10,
            color=color,
            va="center",
            ha="center",
            transform=axes[0].transAxes,
        )
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(value_name, fontsize=8)
    figure.savefig(path, dpi=dpi)
    return path


def best_and_worst(
    ranked: Sequence[RankedCutOut], top: int
) -> tuple[Sequence[RankedCutOut], Sequence[RankedCutOut]]:
    """The two rows of a picture: the best, from the best on, and the worst, from the worst on.

    Of few, the better half are the best and the rest the worst: none is shown twice.

    Args:
        ranked: from the best on.
        top: most of a row.

    Example:
        >>> best_and_worst("abcde", 8)
        ('abc', 'ed')
        >>> best_and_worst("abcde", 1)
        ('a', 'e')
    """
    best = ranked[: min(top, (len(ranked) + 1) // 2)]
    rest = ranked[len(best) :]
    return best, rest[::-1][:top]


def _wrapped(text: str, inches: float, size: float) -> str:
    """Text of a font size in lines that fit a width; a letter is 0.6 of the size, or less."""
    width = max(20, int(inches * 72 / (0.6 * size)))
    return textwrap.fill(text, width, break_on_hyphens=False)


def save_gallery(
    cut_outs: Sequence[RankedCutOut],
    path: str | Path,
    *,
    title: str,
    value_name: str,
    thumbnail: int = 96,
) -> Path:
    """One HTML file that needs no other: a table of all cut-outs, sorted by a click on a heading.

    Args:
        cut_outs: in the order in which they are first shown; all with the same ``numbers`` and
            ``texts``.
        path: of the file; its folder is made.
        title: above the table.
        value_name: heading of the value.
        thumbnail: longer side of the embedded pictures, in pixels.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    first = cut_outs[0] if cut_outs else RankedCutOut(None, None, None, 0)
    headings = ["rank", "cut-out", value_name, *first.numbers, "history", *first.texts, "pool id"]
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join(_row(cut_out, thumbnail) for cut_out in cut_outs)
    document = _PAGE.format(title=html.escape(title), neutral=NEUTRAL, head=head, body=body)
    path.write_text(document, encoding="utf-8")
    return path


def _row(cut_out: RankedCutOut, thumbnail: int) -> str:
    cells = [
        _number(cut_out.rank, "d"),
        f"<td class=c>{page_pictures.thumbnail(cut_out.rgba, thumbnail)}</td>",
        _number(cut_out.value),
        *(
            _number(value, "d" if isinstance(value, int) else "+.3f")
            for value in cut_out.numbers.values()
        ),
        f"<td data-k={len(cut_out.history)}>{_history(cut_out.history)}</td>",
        *(f"<td>{html.escape(text)}</td>" for text in cut_out.texts.values()),
        f"<td class=i>{cut_out.pool_id}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _number(value: float | None, how: str = "+.3f") -> str:
    if value is None:
        return "<td></td>"
    return f'<td class=n data-k="{value!r}">{value:{how}}</td>'


def _history(exposures: Sequence[tuple[int, float | None, bool]]) -> str:
    """A dot for each exposure: time to the right, score upwards; green accepted, red rejected."""
    return page_pictures.dots(
        [
            (step, score, *((_GOOD, "accepted") if accept else (_BAD, "rejected")))
            for step, score, accept in exposures
            if score is not None
        ]
    )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px system-ui, sans-serif; color: #222; margin: 1em; }}
h1 {{ font-size: 1.2em; }}
table {{ border-collapse: collapse; }}
th {{ position: sticky; top: 0; background: #fff; cursor: pointer; text-align: left;
      border-bottom: 2px solid #999; padding: 4px 10px; white-space: nowrap; }}
th[data-order="1"]::after {{ content: " \\2191"; }}
th[data-order="-1"]::after {{ content: " \\2193"; }}
td {{ border-bottom: 1px solid #ddd; padding: 4px 10px; }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
td.i {{ color: #888; font-size: 11px; }}
td.c {{ background: rgb({neutral}, {neutral}, {neutral}); text-align: center; }}
</style></head><body>
<h1>{title}</h1>
<p>A click on a heading sorts by it. In the history a dot is an exposure, in order of time: the
higher the better its score, green accepted, red rejected; point at one to read it.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<script>
const table = document.querySelector("table"), body = table.tBodies[0];
const key = (row, column) => {{
  const cell = row.cells[column], number = cell.dataset.k;
  return number === undefined ? cell.textContent : Number(number);
}};
table.tHead.rows[0].querySelectorAll("th").forEach((heading, column) => {{
  heading.addEventListener("click", () => {{
    const order = heading.dataset.order === "1" ? -1 : 1;
    table.querySelectorAll("th").forEach(other => delete other.dataset.order);
    heading.dataset.order = order;
    const missing = value => value === "";
    const rows = [...body.rows].map(row => [key(row, column), row]);
    rows.sort(([a], [b]) => missing(a) || missing(b) ? missing(a) - missing(b)
                                                     : order * (a > b ? 1 : a < b ? -1 : 0));
    body.append(...rows.map(([, row]) => row));
  }});
}});
</script></body></html>
"""
