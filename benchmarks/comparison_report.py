"""Tables and figure of benchmarks/comparison.py, from the records of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from comparison_results import METRICS, QUARTERS, TASKS, WINDOWS
from comparison_runs import POINTS, Condition
from documents import markdown_table
from separation import spread

Records = Mapping[int, dict]  # of one condition, by seed: lines of the results
HEADS = {"bbox": "box", "segm": "mask"}


def report(
    title: str, main: Mapping[Condition, Records], ablations: Mapping[Condition, Records]
) -> str:
    """All tables, in Markdown.

    Args:
        title: what was trained, and how long.
        main: finished runs of the conditions.
        ablations: finished runs of variants of `gal`.
    """
    everything = [
        record for records in (*main.values(), *ablations.values()) for record in records.values()
    ]
    devices = sorted({str(record.get("device", "unknown")) for record in everything})
    seeds = sorted({seed for records in main.values() for seed in records})
    parts = [
        f"{title}, seeds {', '.join(map(str, seeds))}; on {' and '.join(devices)}. Mean ± standard "
        "deviation over the seeds; differences are between runs of one seed. The share of the "
        "distance is that between *all* and *oracle*. CPU time is user and system time of a whole "
        f"training with its {POINTS} evaluations, against *all* with the same seed on the same "
        "device; for filters with that of *all*, which they need first, and of the filtering.\n",
        main_table(main),
        "By frequency:\n",
        frequency_table(main),
        "Mask AP (APr) over the training:\n",
        progress_table(main),
        "Good ones among the pasted by quarter of the training (of them that trained, where some "
        "were rejected), and different cut-outs that were pasted in the last quarter:\n",
        pastes_table(main),
    ]
    gal = {condition: records for condition, records in main.items() if condition.name == "gal"}
    if ablations:
        parts += ["Variants of *ours*; differences to it:\n", ablation_table(gal | dict(ablations))]
    return "\n".join(parts)


def main_table(main: Mapping[Condition, Records]) -> str:
    by_name = {condition.name: records for condition, records in main.items()}
    base, oracle = by_name.get("all", {}), by_name.get("oracle", {})
    columns = [("segm", "AP"), ("segm", "APr"), ("bbox", "AP"), ("bbox", "APr")]
    compared = [("segm", "AP"), ("segm", "APr")]
    rows = []
    for condition, records in main.items():
        differences = [difference(records, base, *column) for column in compared]
        if condition.name == "all":
            differences = [[], []]
        rows.append(
            [
                condition.title,
                len(records),
                *(spread(last(records, *column), 1) for column in columns),
                *(signed(values) for values in differences),
                *(distance_share(records, base, oracle, *column) for column in compared),
                spread(cpu_ratios(condition, records, base)) if condition.name != "all" else "1",
            ]
        )
    header = ["pastes", "seeds", *(f"{HEADS[task]} {name}" for task, name in columns)]
    header += ["mask AP to all", "mask APr to all", "of the distance, AP", "of the distance, APr"]
    return markdown_table([*header, "CPU time"], rows)


def frequency_table(main: Mapping[Condition, Records]) -> str:
    columns = [(task, name) for task in TASKS for name in METRICS]
    rows = [
        [condition.title, *(spread(last(records, *column), 1) for column in columns)]
        for condition, records in main.items()
    ]
    return markdown_table(["pastes", *(f"{HEADS[task]} {name}" for task, name in columns)], rows)


def progress_table(main: Mapping[Condition, Records]) -> str:
    rows = []
    for condition, records in main.items():
        ap, rare = (curve(records, "segm", name).T for name in ("AP", "APr"))
        cells = [f"{_one(a)} ({_one(r)})" for a, r in zip(ap, rare, strict=True)]
        rows.append([condition.title, *cells])
    header = [f"after {point}/{POINTS}" for point in range(1, POINTS + 1)]
    return markdown_table(["pastes", *header], rows)


def pastes_table(main: Mapping[Condition, Records]) -> str:
    rows = []
    for condition, records in main.items():
        if condition.config == "baseline":
            continue
        pasted, trained = (by_quarter(records, key) for key in ("good", "good_trained"))
        cells = []
        for quarter in range(QUARTERS):
            cell, other = percent(pasted[quarter]), percent(trained[quarter])
            cells.append(cell if other == cell else f"{cell} ({other})")
        distinct = [r["distinct"][-1] for r in records.values() if r.get("distinct")]
        rows.append([condition.title, *cells, f"{np.mean(distinct):,.0f}" if distinct else "-"])
    header = [f"good, quarter {quarter}" for quarter in range(1, QUARTERS + 1)]
    return markdown_table(["pastes", *header, "different ones"], rows)


def ablation_table(runs: Mapping[Condition, Records]) -> str:
    """Variants of `gal`, which comes first if it is there."""
    base = next((r for condition, r in runs.items() if condition.name == "gal"), {})
    rows = []
    for condition, records in runs.items():
        is_base = condition.name == "gal"
        differences = [
            [] if is_base else difference(records, base, "segm", n) for n in ("AP", "APr")
        ]
        good = by_quarter(records, "good")[-1]
        distinct = [r["distinct"][-1] for r in records.values() if r.get("distinct")]
        rows.append(
            [
                condition.title,
                len(records),
                *(spread(last(records, "segm", name), 1) for name in ("AP", "APr")),
                *(signed(values) for values in differences),
                percent(good),
                f"{np.mean(distinct):,.0f}" if distinct else "-",
                "1" if is_base else spread(cpu_ratios(condition, records, base)),
            ]
        )
    header = ["variant", "seeds", "mask AP", "mask APr", "AP to ours", "APr to ours"]
    header += ["good among the pasted, last quarter", "different ones, last quarter", "CPU time"]
    return markdown_table(header, rows)


# -- Figures of a condition


def curve(records: Records, task: str, metric: str) -> np.ndarray:
    """(seeds, POINTS) of a metric over the training."""
    return np.array([record["ap"][task][metric] for record in records.values()], dtype=float)


def last(records: Records, task: str, metric: str) -> list[float]:
    """Of each seed, at the end of the training."""
    return [record["ap"][task][metric][-1] for record in records.values()]


def difference(records: Records, base: Records, task: str, metric: str) -> list[float]:
    """Of each seed that both have."""
    return [
        record["ap"][task][metric][-1] - base[seed]["ap"][task][metric][-1]
        for seed, record in records.items()
        if seed in base
    ]


def distance_share(records: Records, base: Records, oracle: Records, task: str, metric: str) -> str:
    """How much of the way from ``base`` to ``oracle`` is gone, over the seeds that all have."""
    seeds = records.keys() & base.keys() & oracle.keys()
    if not seeds or records is base:
        return "-"
    gone = difference({seed: records[seed] for seed in seeds}, base, task, metric)
    whole = difference({seed: oracle[seed] for seed in seeds}, base, task, metric)
    if not np.mean(whole) > 0:
        return "-"
    return f"{np.mean(gone) / np.mean(whole):.0%}"


def cpu_ratios(condition: Condition, records: Records, base: Records) -> list[float]:
    """CPU time of each seed against that of ``base``, where both are known on one device."""
    ratios = []
    for seed, record in records.items():
        other = base.get(seed)
        if other is None or record.get("device") != other.get("device"):
            continue
        seconds = [record["cpu_seconds"], record["filter_cpu_seconds"], other["cpu_seconds"]]
        if None in seconds:
            continue
        total = seconds[0] + seconds[1] + (seconds[2] if condition.needs_model else 0)
        ratios.append(total / seconds[2])
    return ratios


def by_quarter(records: Records, key: str) -> list[float]:
    """Mean over the seeds of a share that is known by window; NaN where it is not."""
    known = [record[key] for record in records.values() if record.get(key)]
    if not known:
        return [np.nan] * QUARTERS
    windows = np.array(known, dtype=float).reshape(len(known), QUARTERS, WINDOWS // QUARTERS)
    return [_mean(windows[:, quarter]) for quarter in range(QUARTERS)]


def signed(values: Sequence[float]) -> str:
    """Mean and standard deviation of differences, with a sign."""
    text = spread(values, 1)
    return text if text.startswith("-") else f"+{text}"


def percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else "-"


def _one(values: np.ndarray) -> str:
    return f"{values.mean():.1f}" if np.isfinite(values).all() else "-"


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


# -- Figure


def draw(main: Mapping[Condition, Records], steps: int, path: Path) -> None:
    """Mask AP, and the share of good ones among the pasted, over the training; bands: the seeds."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = np.arange(1, POINTS + 1) / POINTS * steps
    centres = (np.arange(WINDOWS) + 0.5) / WINDOWS * steps
    for number, (condition, records) in enumerate(main.items()):
        style = {
            "label": condition.title.strip("*"),
            "color": "black" if condition.name == "gal" else f"C{number}",
            "linewidth": 2.5 if condition.name == "gal" else 1.3,
            "linestyle": "--" if condition.name in ("none", "all", "oracle") else "-",
        }
        _band(left, ends, curve(records, "segm", "AP"), style)
        known = [record["good"] for record in records.values() if record.get("good")]
        if known:
            _band(right, centres, np.array(known, dtype=float), style)
    left.set(title="mask AP", xlabel="step")
    right.set(title="good ones among the pasted", xlabel="step", ylim=(0, 1.02))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92")
    figure.savefig(path, dpi=110)


def _band(axis, positions: np.ndarray, values: np.ndarray, style: Mapping[str, object]) -> None:
    """The mean of (seeds, points) values, and their range."""
    axis.plot(positions, values.mean(axis=0), **style)
    if len(values) > 1:
        axis.fill_between(
            positions,
            values.min(axis=0),
            values.max(axis=0),
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )
