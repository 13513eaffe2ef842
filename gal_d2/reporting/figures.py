"""The charts of a report, as Plotly figures: dicts of "data" and "layout"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gal_d2.reporting.belief import PoolBelief, edges_of, histogram
from gal_d2.reporting.generator import KEPT
from gal_d2.reporting.markup import plain
from gal_d2.reporting.run import GROUPS, METRICS, TASKS, Run
from gal_d2.reporting.time_use import PARTS, TimeUse

RUN_COLORS = ("#1f6feb", "#e8710a", "#1e8c46", "#8250df", "#b3261e", "#57606a")
"""The first is the run that the report is about."""
GROUP_COLORS = {"r": "#d62828", "c": "#e8a317", "f": "#3a6ea5"}
_PART_COLORS = dict(zip(PARTS, ("#9aa4b2", "#e8710a", "#1f6feb", "#1e8c46"), strict=True))
_GRID = "#e6e8eb"
_LEGEND = {"orientation": "h", "x": 0, "traceorder": "normal"}
_BELOW = {**_LEGEND, "y": -0.2, "yanchor": "top"}
_ABOVE = {**_LEGEND, "y": 1.02, "yanchor": "bottom"}


def run_color(number: int) -> str:
    """Of the n-th run of a report, from 0."""
    return RUN_COLORS[number % len(RUN_COLORS)]


def layout(**more: object) -> dict:
    """What all charts have in common."""
    return {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#24292f"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
        "hoverlabel": {"namelength": -1},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#b6bcc4", "activecolor": "#1f6feb"},
        "legend": _BELOW,
        **more,
    }


def axis(title: str = "", **more: object) -> dict:
    """An axis with a grid and its title."""
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "gridcolor": _GRID,
        "zerolinecolor": "#b6bcc4",
        "linecolor": "#b6bcc4",
        "automargin": True,
        **more,
    }


def precision(runs: Sequence[Run]) -> dict | None:
    """AP over training: a row for boxes and masks, a column for each group; None without values."""
    data: list[dict] = []
    axes: dict = {}
    titles = []
    width = 1 / len(METRICS)
    named: set[int] = set()
    for row, (task, word) in enumerate(TASKS.items()):
        for column, metric in enumerate(METRICS):
            place = row * len(METRICS) + column + 1
            suffix = "" if place == 1 else str(place)
            left = column * width
            bottom, top = (0.0, 0.40) if row else (0.58, 0.98)
            domain = [left + 0.02, left + width - 0.02]
            below = "step" if row else ""
            axes[f"xaxis{suffix}"] = axis(
                below, domain=domain, anchor=f"y{suffix}", rangemode="tozero"
            )
            axes[f"yaxis{suffix}"] = axis(
                "per cent" if column == 0 else "", domain=[bottom, top], anchor=f"x{suffix}"
            )
            titles.append(_caption(f"{word} {metric}", sum(domain) / 2, top))
            for number, run in enumerate(runs):
                series = run.metrics.get(f"{task}/{metric}")
                if not series:
                    continue
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        "x": series.steps.tolist(),
                        "y": np.round(series.values, 2).tolist(),
                        "name": plain(run.name),
                        "legendgroup": str(number),
                        "showlegend": number not in named,
                        "line": {"color": run_color(number), "width": 3 if number == 0 else 2},
                        "marker": {"size": 6},
                        "xaxis": f"x{suffix}",
                        "yaxis": f"y{suffix}",
                        "hovertemplate": "%{y:.1f} at step %{x:,}",
                    }
                )
                named.add(number)
    if not data:
        return None
    data.sort(key=lambda trace: int(trace["legendgroup"]))
    legend = {**_BELOW, "y": -0.14}
    return {"data": data, "layout": layout(**axes, annotations=titles, legend=legend)}


def _caption(text: str, x: float, y: float) -> dict:
    """The title of one panel of several."""
    return {
        **{"text": f"<b>{plain(text)}</b>", "x": x, "y": y, "xref": "paper", "yref": "paper"},
        **{"xanchor": "center", "yanchor": "bottom", "showarrow": False},
    }


def beliefs(belief: PoolBelief, groups: Mapping[int, str]) -> dict:
    """Expected values of the cut-outs, stacked by frequency group."""
    edges = edges_of(belief)
    group = np.array([groups.get(int(i), "") for i in belief.category_id])
    data = []
    for key, word in (*GROUPS.items(), ("", "unknown group")):
        mine = group == key
        if mine.any():
            data.append(_bars(edges, histogram(belief.value[mine], edges), word, key))
    shapes = [_line_at_zero()]
    return {
        "data": data,
        "layout": layout(
            barmode="stack",
            bargap=0.04,
            xaxis=axis("expected value, standard deviations of the category's scores"),
            yaxis=axis("cut-outs"),
            shapes=shapes,
        ),
    }


def _bars(edges: np.ndarray, counts: np.ndarray, name: str, group: str) -> dict:
    return {
        "type": "bar",
        "x": np.round((edges[:-1] + edges[1:]) / 2, 3).tolist(),
        "y": counts.tolist(),
        "name": name,
        "marker": {"color": GROUP_COLORS.get(group, "#9aa4b2")},
        "hovertemplate": f"%{{y:,}} {name} cut-outs about %{{x:.2f}}<extra></extra>",
    }


def _line_at_zero() -> dict:
    line = {"color": "#57606a", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def uncertainties(belief: PoolBelief) -> dict:
    """How sure the values are."""
    high = float(belief.std.max())
    counts, edges = np.histogram(belief.std, 24, (0.0, high if high > 0 else 1.0))
    bars = _bars(edges, counts, "", "")
    bars |= {"marker": {"color": "#6b7b8f"}, "showlegend": False}
    bars["hovertemplate"] = "%{y:,} cut-outs about %{x:.2f}<extra></extra>"
    axes = {
        "xaxis": axis("standard deviation of the value", rangemode="tozero"),
        "yaxis": axis("cut-outs"),
    }
    return {"data": [bars], "layout": layout(bargap=0.04, **axes)}


def separations(values: Sequence[float]) -> dict:
    """How many categories are told apart how far."""
    counts, edges = np.histogram(values, 20, (0.0, 1.0))
    bars = _bars(edges, counts, "", "")
    bars |= {"marker": {"color": "#3a6ea5"}, "showlegend": False}
    bars["hovertemplate"] = "%{y:,} categories about %{x:.2f}<extra></extra>"
    axes = {
        "xaxis": axis("separation", range=[0, 1]),
        "yaxis": axis("categories", rangemode="tozero"),
    }
    return {"data": [bars], "layout": layout(bargap=0.04, **axes)}


def quarters(
    series: Sequence[tuple[int, str, Sequence[float | None]]], title: str, share: bool
) -> dict:
    """A line for each run over the four quarters of its training.

    Args:
        series: the run's number in the report, its name and its four values.
        title: of the values.
        share: they are shares, not counts.
    """
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": ["1st quarter", "2nd", "3rd", "4th"],
            "y": list(values),
            "name": plain(name),
            "line": {"color": run_color(number), "width": 3 if number == 0 else 2},
            "marker": {"size": 7},
        }
        for number, name, values in series
    ]
    extra = {"tickformat": ".0%"} if share else {"tickformat": ",d"}
    axes = {"xaxis": axis(), "yaxis": axis(title, rangemode="tozero", **extra)}
    return {"data": data, "layout": layout(**axes, showlegend=len(data) > 1)}


def time_over_training(use: TimeUse) -> dict:
    """Seconds of a step by part, stacked."""
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "stackgroup": "parts",
            "x": use.steps.tolist(),
            "y": np.round(use.seconds[part], 4).tolist(),
            "name": part,
            "line": {"color": _PART_COLORS[part], "width": 0.5},
            "hovertemplate": "%{y:.3f} s",
        }
        for part in PARTS
        if use.total[part] > 0
    ]
    axes = {"xaxis": axis("step"), "yaxis": axis("seconds a step", rangemode="tozero")}
    return {"data": data, "layout": layout(hovermode="x unified", **axes)}


def time_by_run(runs: Sequence[tuple[str, TimeUse]]) -> dict:
    """Hours by part, a bar for each run."""
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [plain(name) for name, _ in runs],
            "x": [round(use.total[part] / 3600, 4) for _, use in runs],
            "name": part,
            "marker": {"color": _PART_COLORS[part]},
            "hovertemplate": "%{x:.2f} h",
        }
        for part in PARTS
        if any(use.total[part] > 0 for _, use in runs)
    ]
    axes = {"xaxis": axis("hours"), "yaxis": axis(autorange="reversed")}
    return {"data": data, "layout": layout(barmode="stack", bargap=0.35, legend=_ABOVE, **axes)}


def outcomes(rows: Sequence[tuple[str, Mapping[str, int]]], reasons: Sequence[str]) -> dict:
    """What became of the images drawn, a bar for each row."""
    colors = ("#9aa4b2", "#c98b2b", "#b05c5c", "#7a6ba8", "#5c8fb0", "#8f8f5c")
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [plain(name) for name, _ in rows],
            "x": [counts.get(reason, 0) for _, counts in rows],
            "name": plain(reason if reason == KEPT else f"dropped: {reason}"),
            "marker": {"color": "#1e8c46" if reason == KEPT else colors[n % len(colors)]},
            "hovertemplate": "%{x:,} images",
        }
        for n, reason in enumerate(reasons)
    ]
    axes = {"xaxis": axis("images drawn"), "yaxis": axis(autorange="reversed")}
    return {"data": data, "layout": layout(barmode="stack", bargap=0.25, legend=_ABOVE, **axes)}
