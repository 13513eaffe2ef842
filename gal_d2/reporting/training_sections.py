"""Sections of a report about the training itself: what ran, AP, categories, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from gal_d2.reporting import config_table, figures
from gal_d2.reporting.dossier import Dossier
from gal_d2.reporting.markup import (
    NO_VALUE,
    Cell,
    Section,
    change,
    chart,
    details,
    heading,
    joined,
    note,
    number,
    paragraph,
    table,
    tile,
)
from gal_d2.reporting.run import GROUPS, METRICS, TASKS, Run
from gal_d2.reporting.time_use import PARTS, read_time
from gal_d2.selection.draw import separation

FIRST = 10
"""Rows and categories that are shown at first."""


def key_figures(dossier: Dossier) -> Markup:
    """The tiles at the top."""
    run, pastes = dossier.run, dossier.pastes[0]
    tiles = []
    for task, metric in (("segm", "AP"), ("segm", "APr"), ("bbox", "AP")):
        value = run.final(task, metric)
        if value is None:
            continue
        others = [(other.name, other.final(task, metric)) for other in dossier.runs[1:]]
        told = [f"{value - v:+.1f} against {name}" for name, v in others if v is not None]
        tiles.append(tile(f"{TASKS[task]} {metric}, per cent", f"{value:.1f}", _some_of(told)))
    if pastes is not None:
        pasted, accepted = int(pastes.pasted.sum()), int(pastes.accepted.sum())
        share = f"{accepted / pasted:.0%} of them trained the heads" if pasted else ""
        tiles.append(tile("pastes", f"{pasted:,}", share))
        different = len(pastes.tally.pool_id)
        of_pool = ""
        if dossier.pool is not None and dossier.pool.contains(pastes.tally.pool_id).all():
            of_pool = f"of {len(dossier.pool):,} in the pool"
        tiles.append(tile("different cut-outs pasted", f"{different:,}", of_pool))
        if pastes.good is not None:
            first, last = pastes.good[0], pastes.good[-1]
            detail = f"in the last quarter; {first:.0%} in the first"
            tiles.append(tile("good ones among the pasted", f"{last:.0%}", detail))
    if dossier.belief is not None:
        value = separation(dossier.belief.value, dossier.belief.std)
        tiles.append(tile("separation of the pool", f"{value:.2f}", "0: nothing known, 1: all"))
    use = read_time(run)
    if use is not None:
        hours = sum(use.total.values()) / 3600
        tiles.append(tile("training time", _hours(hours), "without evaluations"))
    return Markup('<div class="tiles">{}</div>').format(joined(tiles))


def _some_of(lines: Sequence[str]) -> Markup:
    more = [f"and {len(lines) - 2} more"] if len(lines) > 3 else []
    return Markup("<br>").join([*lines[: 2 if more else 3], *more])


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def what_ran(dossier: Dossier) -> Section:
    """Data, model and schedule; options against the defaults and the other runs."""
    run, others = dossier.run, dossier.runs[1:]
    parts = []
    if run.summary:
        rows = [(Markup("<b>{}</b>").format(what), text) for what, text in run.summary]
        parts.append(Markup('<div class="facts">{}</div>').format(table(["", run.name], rows)))
    else:
        parts.append(Markup('<div class="facts">{}</div>').format(_counts(dossier)))
    parts.append(heading("Options in which the runs differ"))
    with_config = [r for r in dossier.runs if r.config]
    if not others:
        parts.append(note("There is no other run: name some after the folder to compare them."))
    elif len(with_config) < 2 or not run.config:
        parts.append(note("There are not two runs with a config.yaml."))
    elif rows := config_table.between(with_config):
        cells = [[_code(key), *map(_code, values)] for key, values in rows]
        parts.append(table(["option", *(r.name for r in with_config)], cells))
    else:
        parts.append(note("None: the configs are the same."))
    if run.config:
        changed = config_table.from_defaults(run)
        cells = [[_code(cell) for cell in row] for row in changed]
        body = table(["option", "default", run.name], cells)
        parts.append(details(f"{len(changed)} options differ from the defaults", body))
    return Section("run", "What ran", joined(parts))


def _counts(dossier: Dossier) -> Markup:
    """What config, evaluation and pool tell, where the log has no summary."""
    run = dossier.run
    facts = {}
    if names := run.config.get("DATASETS.TRAIN"):
        facts["data"] = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    if dossier.groups:
        groups = Counter(dossier.groups.values())
        told = ", ".join(f"{groups[g]:,} {word}" for g, word in GROUPS.items() if groups[g])
        facts["categories"] = f"{len(dossier.groups):,} ({told})"
    if dossier.pool is not None:
        facts["pool"] = (
            f"{len(dossier.pool):,} cut-outs of {len(dossier.pool.category_ids):,} categories; "
            f"{dossier.pool.root}"
        )
    if run.config.get("GAL.COPY_PASTE.ENABLED") and "GAL.POOL.SAMPLER" in run.config:
        facts["sampler"] = str(run.config["GAL.POOL.SAMPLER"])
    if "SOLVER.MAX_ITER" in run.config:
        steps, batch = run.config["SOLVER.MAX_ITER"], run.config.get("SOLVER.IMS_PER_BATCH")
        facts["schedule"] = f"{steps} steps of {batch} images"
    if not facts:
        return note("There is neither a config.yaml nor a log.txt that says what was trained.")
    rows = [(Markup("<b>{}</b>").format(what), text) for what, text in facts.items()]
    return table(["", run.name], rows)


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def precision(dossier: Dossier) -> Section:
    """AP by frequency group, over the training and at its end."""
    title = "Average precision"
    figure = figures.precision(dossier.runs)
    if figure is None:
        text = "There is no evaluation in metrics.json: set DATASETS.TEST and TEST.EVAL_PERIOD."
        return Section("precision", title, note(text))
    headings = ["run", *(f"{word} {metric}" for word in TASKS.values() for metric in METRICS)]
    rows = []
    for place, run in enumerate(dossier.runs):
        cells: list[str | Markup | Cell] = [run.name]
        for task in TASKS:
            for metric in METRICS:
                value, base = run.final(task, metric), dossier.run.final(task, metric)
                cell = number(value)
                if place and value is not None and base is not None:
                    delta = value - base
                    shown = Markup("{} <small>({:+.1f})</small>").format(cell.shown, delta)
                    cell = Cell(shown, value)
                cells.append(cell)
        rows.append(cells)
    lead = (
        "In per cent; higher is better. AP is the mean over all categories, APr, APc and APf that "
        "over the rare, common and frequent ones."
    )
    parts = [
        paragraph(lead),
        chart("precision", 560),
        heading("Last evaluation"),
        table(headings, rows),
    ]
    if len(dossier.runs) > 1:
        parts.append(paragraph(f"In parentheses: the difference to {dossier.run.name}.", "fine"))
    return Section("precision", title, joined(parts), {"precision": figure})


def categories(dossier: Dossier) -> Section:
    """AP of each category, and how it differs from another run's."""
    title = "Precision by category"
    run = dossier.run
    if not run.categories:
        text = "There is no inference/per_category_ap.csv: it is written by the last evaluation."
        return Section("categories", title, note(text))
    others = [other for other in dossier.runs[1:] if other.categories]
    ids = sorted(run.categories)
    headings = ["category", "group", "training images"]
    for word in TASKS.values():
        headings += [f"{word} AP", *(f"{word}: change to {other.name}" for other in others)]
    rows = []
    for category_id in _most_changed(run, others, ids):
        result = run.categories[category_id]
        cells: list[str | Markup | Cell] = [
            result.name,
            GROUPS.get(result.group, result.group),
            number(result.train_images, ",d"),
        ]
        for task in TASKS:
            cells.append(number(result.ap.get(task)))
            cells += [change(_difference(run, other, category_id, task)) for other in others]
        rows.append(cells)
    parts, data = [], {}
    if others:
        parts += [
            paragraph("The categories that differ most between two runs come first."),
            Markup('<div class="explorer" data-explorer="change"></div>'),
            chart("change", 420),
        ]
        data["change"] = {
            "run": run.name,
            "others": [other.name for other in others],
            "names": [run.categories[i].name for i in ids],
            "groups": [run.categories[i].group for i in ids],
            "images": [run.categories[i].train_images for i in ids],
            "tasks": {
                word: [
                    [_rounded(_difference(run, other, i, task)) for i in ids] for other in others
                ]
                for task, word in TASKS.items()
            },
        }
    else:
        parts.append(paragraph("Name another run to see what changed against it."))
    parts.append(table(headings, rows, first=FIRST))
    return Section("categories", title, joined(parts), data=data)


def _difference(run: Run, other: Run, category_id: int, task: str) -> float | None:
    """AP of the run minus the other's; None where one has no value."""
    theirs = other.categories.get(category_id)
    if theirs is None or theirs.name != run.categories[category_id].name:
        return None
    values = run.categories[category_id].ap.get(task), theirs.ap.get(task)
    return None if None in values else values[0] - values[1]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _most_changed(run: Run, others: Sequence[Run], ids: Sequence[int]) -> list[int]:
    if not others:
        return sorted(ids, key=lambda i: run.categories[i].ap.get("segm", float("inf")))
    return sorted(ids, key=lambda i: -abs(_difference(run, others[0], i, "segm") or 0.0))


def time(dossier: Dossier) -> Section:
    """Where the time went."""
    title = "Time by part"
    use = read_time(dossier.run)
    if use is None:
        return Section("time", title, note("There are no times in metrics.json."))
    found = [(run.name, read_time(run)) for run in dossier.runs]
    found = [(name, part) for name, part in found if part is not None]
    rows = []
    for name, part in found:
        total = sum(part.total.values())
        a_step = total / max(float(np.diff(part.steps, prepend=0).sum()), 1.0)
        cells: list[str | Markup | Cell] = [
            name,
            number(total / 3600, ".2f"),
            number(a_step, ".3f"),
        ]
        for key in PARTS:
            seconds = part.total[key]
            cells.append(Cell(f"{seconds / total:.0%}" if total else NO_VALUE, seconds))
        rows.append(cells)
    headings = ["run", "hours", "seconds a step", *PARTS]
    lead = (
        "Time that passed (not CPU time) in training steps and auditions, without evaluations, "
        "checkpoints and pictures. Loading is the wait for the data loader."
    )
    body = joined(
        [
            paragraph(lead),
            chart("time", 340, f"{dossier.run.name}: seconds a step, by part"),
            table(headings, rows),
            *([chart("time-runs", 130 + 46 * len(found))] if len(found) > 1 else []),
        ]
    )
    charts = {"time": figures.time_over_training(use)}
    if len(found) > 1:
        charts["time-runs"] = figures.time_by_run(found)
    return Section("time", title, body, charts)
