"""The section of a report that shows cut-outs: the best, the worst and the most disputed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.reporting.cut_outs import (
    CATEGORIES,
    Event,
    Selection,
    Shown,
    histories,
    require_single_scores,
    select,
)
from gal_d2.reporting.dossier import Dossier
from gal_d2.reporting.markup import Section, heading, joined, note, paragraph
from gal_d2.reporting.pool_sections import NO_LEDGER
from gal_d2.testbeds.truth import GOOD
from gal_d2.visualization.page_pictures import dots, thumbnail

# Colour and name of a dot, by Event.kind.
_KINDS = {
    "pasted": ("#1f6feb", "pasted"),
    "rejected": ("#d62828", "pasted, rejected"),
    "audition": ("#e8a317", "audition"),
}


def cut_outs(dossier: Dossier) -> Section:
    """The best, the worst and the most disputed cut-outs."""
    title = "Best, worst and most disputed cut-outs"
    found = dossier.pastes[0]
    if found is None:
        return Section("cutouts", title, note(dossier.problems.get("ledger0", NO_LEDGER)))
    try:
        require_single_scores(dict(dossier.run.config))
    except UserError as error:
        return Section("cutouts", title, note(str(error)))
    if dossier.pool is None:
        text = "The pool is not there: name its folder with --pool to see the cut-outs."
        return Section("cutouts", title, note(dossier.problems.get("pool", text)))
    in_pool = dossier.pool.contains(found.tally.pool_id)
    if not in_pool.any():
        text = (
            f"None of the cut-outs that were pasted is in the pool {dossier.pool.root}: it was "
            "filled anew since, or is another one; name the right one with --pool."
        )
        return Section("cutouts", title, note(text))
    chosen = select(found.tally, dossier.belief, in_pool)
    chosen = chosen.with_histories(histories(dossier.run.folder, chosen.pool_ids()))
    if not chosen.best:
        return Section("cutouts", title, note("None of the cut-outs has a score."))
    limits = _limits(chosen)
    ranked = "expected value" if dossier.belief is not None else "mean score"
    lead = (
        f"Ranked by {ranked}, with at most two of a category. Below each: category, value ± "
        "standard deviation, number of scores in training, and its history: a dot for each score, "
        "time to the right (from the first step to the last), better upwards. Point at a "
        "picture to read where it comes from."
    )
    legend = joined(
        [
            Markup('<span class="key"><i style="background:{}"></i>{}</span>').format(*pair)
            for pair in _KINDS.values()
        ]
    )
    disputed = (
        "Disputed are those whose scores in training disagree most. ↕: the standard deviation of "
        "their scores, as a multiple of that of all scores of the category; each score is compared "
        "with its category's mean at the time."
    )
    parts = [
        paragraph(lead),
        Markup('<p class="legend">{}</p>').format(legend),
        heading("Best"),
        cards(dossier, chosen.best, limits),
        heading("Worst"),
        cards(dossier, chosen.worst, limits),
    ]
    if chosen.disputed:
        parts += [heading("Most disputed"), paragraph(disputed, "fine")]
        parts.append(cards(dossier, chosen.disputed, limits, disputed=True))
    if chosen.by_category:
        parts.append(heading("By category"))
        parts.append(_by_category(dossier, chosen))
    return Section("cutouts", title, joined(parts))


def _by_category(dossier: Dossier, chosen: Selection) -> Markup:
    ids = sorted(chosen.by_category, key=lambda i: dossier.name_of(i).casefold())
    options = joined(
        [Markup('<option value="{}">{}</option>').format(i, dossier.name_of(i)) for i in ids]
    )
    panels = []
    for category_id in ids:
        best, worst = chosen.by_category[category_id]
        panels.append(
            Markup('<div class="panel" data-category="{}">{}{}{}{}</div>').format(
                category_id,
                paragraph("Best", "fine"),
                cards(dossier, best, small=True),
                paragraph("Worst", "fine"),
                cards(dossier, worst, small=True),
            )
        )
    more = ""
    if len(set(dossier.pastes[0].category_ids.tolist())) > len(ids):
        more = (
            f"The {CATEGORIES} categories that were pasted most often; tools/rank_instances.py "
            "draws any."
        )
    return Markup(
        '<div class="switch"><p><label>Category <select>{}</select></label> {}</p>{}</div>'
    ).format(options, more, joined(panels))


def _limits(chosen: Selection) -> tuple[float, float]:
    """The range of all histories but for the outermost hundredths, so that they compare."""
    rows = (*chosen.best, *chosen.worst, *chosen.disputed)
    scores = [event.score for shown in rows for event in shown.history]
    return tuple(np.quantile(scores, [0.01, 0.99]).tolist()) if scores else (-1.0, 1.0)


def cards(
    dossier: Dossier,
    row: Sequence[Shown],
    limits: tuple[float, float] = (-1.0, 1.0),
    *,
    disputed: bool = False,
    small: bool = False,
) -> Markup:
    """Pictures of cut-outs with their figures.

    Args:
        dossier: has the pool.
        row: in their order.
        limits: lowest and highest score of the histories.
        disputed: show how far scores disagree.
        small: smaller pictures, without histories.
    """
    made = []
    for shown in row:
        try:
            cut_out = dossier.pool.get(shown.pool_id)
            rgba, source = cut_out.rgba, cut_out.source
            where = ", ".join(filter(None, (source.prompt, source.generator, source.origin)))
        except CorruptCutOutError:
            rgba, where = None, "unreadable"
        value = f"{shown.value:+.2f}"
        if np.isfinite(shown.std):
            value += f" ± {shown.std:.2f}"
        if disputed:
            value = Markup("<b>↕ {:.2f}</b><br>{}").format(shown.disagreement, value)
        history = ""
        if not small:
            history = dots(
                [
                    (e.step, e.score, _KINDS[e.kind][0], _KINDS[e.kind][1])
                    for e in _thinned(shown.history)
                ],
                steps=(0, dossier.pastes[0].steps),
                limits=limits,
            )
        truth = ""
        if dossier.truth is not None and shown.pool_id in dossier.truth.pool_id:
            kind = str(dossier.truth.kind[dossier.truth.rows(np.array([shown.pool_id]))][0])
            truth = Markup('<div class="truth {}">{}</div>').format(
                "good" if kind == GOOD else "bad", kind.replace("_", " ")
            )
        made.append(
            Markup(
                '<div class="card" title="{}"><div class="picture">{}</div><div class="name">{}'
                '</div><div class="figures">{}<br>{:,} {}</div>{}{}</div>'
            ).format(
                f"{where} (id {shown.pool_id})",
                Markup(thumbnail(rgba, 64 if small else 112)),
                dossier.name_of(shown.category_id),
                value,
                shown.scored,
                "score" if shown.scored == 1 else "scores",
                Markup(history),
                truth,
            )
        )
    return Markup('<div class="cards{}">{}</div>').format(" small" if small else "", joined(made))


def _thinned(events: Sequence[Event], most: int = 60) -> list[Event]:
    """At most so many, spread over all."""
    if len(events) <= most:
        return list(events)
    return [events[i] for i in np.linspace(0, len(events) - 1, most).round().astype(int)]
