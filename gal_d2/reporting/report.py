"""One self-contained HTML page about a run, against other runs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gal_d2.errors import UserError
from gal_d2.files.atomic_file import replacing
from gal_d2.reporting import cut_out_section, pool_sections, training_sections
from gal_d2.reporting.dossier import Dossier, gather
from gal_d2.reporting.figures import run_color
from gal_d2.reporting.markup import Section, joined
from gal_d2.reporting.run import read_runs

logger = logging.getLogger(__name__)

FILE_NAME = "report.html"
_SECTIONS: tuple[Callable[[Dossier], Section], ...] = (
    training_sections.what_ran,
    training_sections.precision,
    training_sections.categories,
    pool_sections.pastes,
    pool_sections.belief,
    cut_out_section.cut_outs,
    pool_sections.generator,
    training_sections.time,
)
_PAGE = Markup(
    """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head><body>
<nav><div>{links}</div></nav>
<main>
<header id="top"><h1>{title}</h1><div class="sub">{sub}</div>{tiles}</header>
{sections}
<footer id="foot">Made by tools/report.py on {date}.</footer>
</main>
<script type="application/json" id="content">{content}</script>
<script>{plotly}</script>
<script>{script}</script>
</body></html>
"""
)


def write_report(
    folder: Path,
    others: Sequence[Path] = (),
    *,
    output: Path | None = None,
    pool: Path | None = None,
) -> Path:
    """Read runs and write the page.

    Args:
        folder: OUTPUT_DIR of the run that the report is about.
        others: those that it is compared with.
        output: the page; None: ``report.html`` in ``folder``.
        pool: folder of the pool; None: where the run's config or log say.

    Returns:
        The path of the page.

    Raises:
        UserError: a folder is none of a training, or the page cannot be written.
    """
    path = output or folder / FILE_NAME
    page = page_of(gather(read_runs([folder, *others]), pool))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the report {path} cannot be written ({error.strerror or error}): name another file "
            "with --output."
        ) from error
    return path


def page_of(dossier: Dossier) -> str:
    """The page as text."""
    sections = [make(dossier) for make in _SECTIONS]
    content = {
        "charts": {key: figure for s in sections for key, figure in s.charts.items()},
        "data": {key: value for s in sections for key, value in s.data.items()},
    }
    assets = resources.files("gal_d2.reporting") / "assets"
    bodies = [
        Markup('<section id="{}"><h2>{}</h2>{}</section>').format(s.key, s.title, s.body)
        for s in sections
    ]
    links = [Markup('<a href="#{}">{}</a>').format(s.key, s.title) for s in sections]
    return _PAGE.format(
        title=f"Report of {dossier.run.name}",
        style=Markup((assets / "page.css").read_text(encoding="utf-8")),
        links=joined(links),
        sub=_runs(dossier),
        tiles=training_sections.key_figures(dossier),
        sections=joined(bodies),
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
        content=Markup(json_for_script(content)),
        plotly=Markup(get_plotlyjs()),
        script=Markup((assets / "page.js").read_text(encoding="utf-8")),
    )


def _runs(dossier: Dossier) -> Markup:
    """The folders, each with the colour that its lines have."""
    shown = [
        Markup('<span><i style="background:{}"></i>{}</span>').format(
            run_color(number), str(run.folder)
        )
        for number, run in enumerate(dossier.runs)
    ]
    return joined(shown)


def json_for_script(content: object) -> str:
    """JSON that no tag in it can end the ``script`` element of; what is not finite is null."""
    text = json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
