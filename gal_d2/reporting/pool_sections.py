"""Sections of a report about the pool: pastes, what is known of it, cut-outs, the generator."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from gal_d2.reporting import figures
from gal_d2.reporting.belief import edges_of
from gal_d2.reporting.dossier import Dossier
from gal_d2.reporting.generator import KEPT, Drawn, Generation, read_journal
from gal_d2.reporting.markup import (
    Cell,
    Section,
    chart,
    heading,
    joined,
    note,
    number,
    paragraph,
    table,
)
from gal_d2.reporting.pastes import Pastes, count_rows
from gal_d2.reporting.run import GROUPS
from gal_d2.reporting.training_sections import FIRST

NO_LEDGER = (
    "This run has no ledger: it is written while training with GAL.SCORER.ENABLED, at checkpoints."
)


def pastes(dossier: Dossier) -> Section:
    """Who was pasted when."""
    title = "What was pasted"
    found = dossier.pastes[0]
    if found is None:
        return Section("pastes", title, note(dossier.problems.get("ledger0", NO_LEDGER)))
    pasted = int(found.pasted.sum())
    auditions = count_rows(dossier.run.folder / "auditions")
    lead = f"{pasted:,} pastes of {len(found.tally.pool_id):,} different cut-outs"
    if auditions:
        share = auditions / (auditions + pasted)
        lead += f", and {auditions:,} auditions ({share:.0%} of all scores)"
    both = zip(dossier.runs, dossier.pastes, strict=True)
    told = [(n, run.name, p) for n, (run, p) in enumerate(both) if p is not None]
    silent = [run.name for run, p in zip(dossier.runs, dossier.pastes, strict=True) if p is None]
    charts = {
        "distinct": figures.quarters(
            [(n, name, p.distinct) for n, name, p in told], "different cut-outs", share=False
        )
    }
    places = [chart("distinct", 320, "Different cut-outs that were pasted in each quarter")]
    good = [(n, name, p.good) for n, name, p in told if p.good is not None]
    if good:
        charts["good"] = figures.quarters(good, "share of good ones", share=True)
        about = (
            "Good ones among the pasted, by the truth file beside the pool (no training reads it)"
        )
        places.append(chart("good", 320, about))
    accepted = [(n, name, _accepted(p)) for n, name, p in told]
    if any(share is not None and share < 1 for *_, shares in accepted for share in shares):
        charts["accepted"] = figures.quarters(accepted, "share accepted", share=True)
        about = "Pastes that trained the heads; the others were rejected"
        places.append(chart("accepted", 320, about))
    ids = found.category_ids.tolist()
    order = _most_changed(found)
    rows = []
    shares = _shares_by_half(found)
    different = dict(zip(*np.unique(found.tally.category_id, return_counts=True), strict=True))
    for row in order:
        total = int(found.pasted[row].sum())
        rows.append(
            [
                dossier.name_of(ids[row]),
                _group(dossier, ids[row]),
                number(total, ",d"),
                _percent(shares[row, 0], 2),
                _percent(shares[row, 1], 2),
                number(different.get(ids[row]), ",d"),
                _percent(found.accepted[row].sum() / max(total, 1)),
            ]
        )
    headings = [
        *("category", "group", "pastes", "share in the 1st half", "share in the 2nd half"),
        *("different cut-outs", "accepted"),
    ]
    body = joined(
        [
            paragraph(lead + "."),
            *([paragraph(f"Without a ledger: {', '.join(silent)}.", "fine")] if silent else []),
            Markup('<div class="row">{}</div>').format(joined(places)),
            heading("By category over time"),
            paragraph("At first the categories whose share changed most; choose others by name."),
            Markup('<div class="explorer" data-explorer="pastes"></div>'),
            chart("pastes", 420),
            table(headings, rows, first=FIRST),
        ]
    )
    data = {
        "pastes": {
            "steps": np.round(found.window_steps).astype(int).tolist(),
            "names": [dossier.name_of(i) for i in ids],
            "first": order[:FIRST],
            "pasted": found.pasted.tolist(),
            "accepted": found.accepted.tolist(),
        }
    }
    return Section("pastes", title, body, charts, data)


def _percent(share: float, digits: int = 0) -> Cell:
    return Cell(f"{share:.{digits}%}", float(share))


def _accepted(found: Pastes) -> list[float | None]:
    """Share of the pasted that trained the heads, by quarter."""
    pasted = found.pasted.reshape(len(found.category_ids), 4, -1).sum((0, 2))
    accepted = found.accepted.reshape(len(found.category_ids), 4, -1).sum((0, 2))
    return [a / n if n else None for a, n in zip(accepted.tolist(), pasted.tolist(), strict=True)]


def _shares_by_half(found: Pastes) -> np.ndarray:
    """(K, 2) share of each category in the pastes of the first and the second half."""
    halves = found.pasted.reshape(len(found.category_ids), 2, -1).sum(2)
    return halves / np.maximum(halves.sum(0), 1)


def _most_changed(found: Pastes) -> list[int]:
    """Rows by how much their share of the pastes changed between the halves."""
    shares = _shares_by_half(found)
    return np.argsort(-np.abs(shares[:, 1] - shares[:, 0]), kind="stable").tolist()


def _group(dossier: Dossier, category_id: int) -> str:
    group = dossier.groups.get(category_id, "")
    return GROUPS.get(group, group)


def belief(dossier: Dossier) -> Section:
    """What is known about the pool."""
    title = "What is known about the pool"
    found = dossier.belief
    if found is None:
        missing = (
            "This run kept no posterior: it does with the sampler `posterior` (GAL.POOL.SAMPLER)."
        )
        return Section("belief", title, note(dossier.problems.get("posterior", missing)))
    figures_of = dossier.by_category
    values = [c.separation for c in figures_of.values() if np.isfinite(c.separation)]
    in_pool = dossier.pool.counts() if dossier.pool is not None else {}
    has_truth = any(np.isfinite(c.auc) for c in figures_of.values())
    rows = []
    order = sorted(figures_of, key=lambda i: -np.nan_to_num(figures_of[i].separation, nan=-1.0))
    for category_id in order:
        one = figures_of[category_id]
        rows.append(
            [
                dossier.name_of(category_id),
                _group(dossier, category_id),
                number(in_pool.get(category_id), ",d"),
                number(one.scored, ",d"),
                number(one.separation, ".2f"),
                _percent(one.better),
                *([number(one.auc, ".2f")] if has_truth else []),
            ]
        )
    headings = ["category", "group", "in the pool", "scored", "separation", "above average"]
    headings += ["AUC of good against bad"] if has_truth else []
    lead = (
        f"{len(found):,} cut-outs were scored at least once. A value is how good a cut-out is "
        "expected to be, compared with its category's candidates: 0 is their average, 1 is one "
        "standard deviation of single scores better. It is what the sampler draws by."
    )
    about = (
        "Separation is the known share of the differences between a category's cut-outs: 0, "
        "nothing is known yet; 1, the value of each is certain."
    )
    ids = sorted(figures_of)
    edges = edges_of(found)
    data = {
        "belief": {
            "names": [dossier.name_of(i) for i in ids],
            "groups": [dossier.groups.get(i, "") for i in ids],
            "x": np.round((edges[:-1] + edges[1:]) / 2, 3).tolist(),
            "counts": [figures_of[i].histogram.tolist() for i in ids],
        }
    }
    charts = {
        "belief": figures.beliefs(found, dossier.groups),
        "uncertainty": figures.uncertainties(found),
    }
    places = [chart("uncertainty", 320, "How sure that is: lower is surer")]
    if len(values) > 1:
        charts["separation"] = figures.separations(values)
        places.append(chart("separation", 320, about))
    else:
        places.append(paragraph(about, "fine"))
    body = joined(
        [
            paragraph(lead),
            Markup('<div class="explorer" data-explorer="belief"></div>'),
            chart("belief", 380, "Expected values of the cut-outs"),
            Markup('<div class="row">{}</div>').format(joined(places)),
            table(headings, rows, first=FIRST),
        ]
    )
    return Section("belief", title, body, charts, data)


def generator(dossier: Dossier) -> Section:
    """What was drawn and what came of it."""
    title = "What the generator drew"
    found = read_journal(dossier.pool.root) if dossier.pool is not None else None
    if found is None:
        text = "There is no journal of a generator beside the pool: nothing was drawn for it."
        return Section("generator", title, note(text))
    names = found.names | dossier.names
    reasons = [KEPT, *sorted(reason for reason in found.outcomes if reason != KEPT)]
    by_category = sorted(found.by_category.items(), key=lambda item: -item[1].drawn)
    shown = [(names.get(i, f"category {i}"), part.outcomes) for i, part in by_category[:FIRST]]
    drawn, kept = found.outcomes.total(), found.outcomes[KEPT]
    lead = (
        f"{drawn:,} images were drawn, and {kept:,} of them ({kept / max(drawn, 1):.0%}) became "
        "cut-outs of the pool; the others were dropped by a segmenter or a filter. The ten "
        "categories with the most images:"
    )
    heads = ["images", "kept", "pasted", "pastes of a kept one", "above average"]
    body = joined(
        [
            paragraph(lead),
            chart("outcomes", 120 + 30 * len(shown)),
            heading("By prompt template"),
            table(["template", *heads], _generated(dossier, found, by_template=True), first=FIRST),
            heading("By category"),
            table(["category", *heads], _generated(dossier, found, names=names), first=FIRST),
            paragraph(
                "Pasted: the share of the kept ones that was pasted at least once. Above average: "
                "the share of those scored whose value is above their category's average.",
                "fine",
            ),
        ]
    )
    return Section("generator", title, body, {"outcomes": figures.outcomes(shown, reasons)})


def _generated(
    dossier: Dossier,
    found: Generation,
    *,
    by_template: bool = False,
    names: dict[int, str] | None = None,
) -> list[list]:
    parts: dict = found.by_template if by_template else found.by_category
    order = sorted(parts, key=lambda key: -parts[key].drawn)
    return [
        [
            key if by_template else (names or {}).get(key, f"category {key}"),
            *_came_of(dossier, parts[key]),
        ]
        for key in order
    ]


def _came_of(dossier: Dossier, part: Drawn) -> list[Cell]:
    kept = part.outcomes[KEPT]
    cells = [number(part.drawn, ",d"), _percent(kept / part.drawn)]
    ids = np.unique(np.array(part.pool_ids, np.int64))
    found, belief = dossier.pastes[0], dossier.belief
    if found is None or not len(ids):
        cells += [number(None), number(None)]
    else:
        pasted = found.tally.pasted[np.isin(found.tally.pool_id, ids)]
        share = len(pasted) / len(ids)
        cells += [_percent(share), number(pasted.sum() / len(ids), ".1f")]
    mine = np.isin(belief.pool_id, ids) if belief is not None else np.zeros(0, bool)
    if not mine.any():
        return [*cells, number(None)]
    better = float((belief.value[mine] > 0).mean())
    return [*cells, _percent(better)]
