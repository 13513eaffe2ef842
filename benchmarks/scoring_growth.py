"""The section `growth` of benchmarks/scoring.py: cost against instances and classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

import gal_d2.modeling  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from measuring import alternate, print_table
from scoring_problem import BATCH, NUM_REAL, Sizes, build_heads, fill, make_targets

from gal_d2.scoring.scorer import ContributionScorer

MAX_EXPONENT = 1.0


def scoring_call(sizes: Sizes, num_pasted: int, num_classes: int) -> Callable[[], object]:
    """A call of ``step`` of a scorer with full state, on a batch."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    heads, features = build_heads(sizes, num_classes)
    scorer = ContributionScorer(heads, class_groups=torch.arange(num_classes) % 3, partner_every=1)
    fill(scorer, torch.Generator().manual_seed(0))
    pasted = [num_pasted // BATCH + (i < num_pasted % BATCH) for i in range(BATCH)]
    targets = [make_targets(rng, sizes.image, NUM_REAL, n, num_classes) for n in pasted]
    return lambda: scorer.step(features, targets)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of the power law y = a x^b that fits best, in logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def report_growth(sizes: Sizes, output: Path) -> bool:
    typical = BATCH * sizes.pastes
    series = {
        "pasted instances": {n: scoring_call(sizes, n, sizes.classes) for n in sizes.growth_pasted},
        "classes": {c: scoring_call(sizes, typical, c) for c in sizes.growth_classes},
    }
    print(
        f"One call of the scorer, {BATCH * NUM_REAL} real instances, {sizes.classes} classes and "
        f"{typical} pasted ones where not varied; median of {sizes.repeats} rounds.\n"
    )
    points, rows, linear = {}, [], True
    for name, calls in series.items():
        seconds = {x: np.median(s) for x, s in alternate(calls, sizes.repeats).items()}
        x, y = list(seconds), list(seconds.values())
        points[name] = (x, y)
        # Fixed cost hides growth at the small end; the large end shows what it comes to.
        overall, tail = exponent(x, y), exponent(x[-2:], y[-2:])
        linear &= max(overall, tail) <= MAX_EXPONENT
        rows += [[name, n, f"{s / y[0]:.2f}", "", ""] for n, s in seconds.items()]
        rows[-1][-2:] = [f"{overall:.2f}", f"{tail:.2f}"]
    print_table(["varied", "number", "time, ratio", "exponent", "of the last two"], rows)
    draw_growth(points, output)
    print(f"Plot: {output}", file=sys.stderr)
    return linear


def draw_growth(points: Mapping[str, tuple[list, list]], output: Path) -> None:
    """One panel per series: measured points, and their fitted power law beside exact linearity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, (x, y)) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        y = np.asarray(y) / y[0]
        power, offset = np.polyfit(np.log(x), np.log(y), 1)
        line = np.geomspace(min(x), max(x), 50)
        axes.plot(line, np.exp(offset) * line**power, label=f"fit: exponent {power:.2f}")
        axes.plot(line, y[0] * line / x[0], "--", color="grey", label="linear: exponent 1")
        axes.plot(x, y, "o", color="black", label="measured")
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="time of one scoring, ratio")
        axes.set_xticks(x, [str(n) for n in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
