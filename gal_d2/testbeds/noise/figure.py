"""Score distributions by noise scale (figure 2 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_BINS = 60
_TAIL = 1.0  # per cent of the scores that are cut off at either end


def save_score_distributions(
    scores: Mapping[str, np.ndarray], noise_scales: Sequence[float], path: str | Path, title: str
) -> Path:
    """One panel a score, one curve a noise scale, with a tick at its median.

    Args:
        scores: by name, (scales, N).
        noise_scales: (scales,), ascending.
        path: of the PNG; its folder is made.
        title: above all.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = 2
    rows = -(-len(scores) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.3 * rows + 0.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    colors = colormaps["viridis"](np.linspace(0.0, 0.88, len(noise_scales)))
    for axis, (name, values) in zip(axes, scores.items(), strict=False):
        low, high = np.percentile(values, [_TAIL, 100 - _TAIL])
        edges = np.linspace(low, high, _BINS + 1)
        centres = (edges[1:] + edges[:-1]) / 2
        for scale, row, color in zip(noise_scales, values, colors, strict=True):
            density = _smooth(np.histogram(row, edges)[0] / len(row))
            axis.plot(centres, density, color=color, label=f"{scale:g}", linewidth=1.5)
            axis.axvline(np.median(row), ymax=0.06, color=color, linewidth=2.5)
        axis.set_title(name, fontsize=10)
        axis.set_yticks([])
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
    for axis in axes[len(scores) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="noise", loc="outside right center", frameon=False, fontsize=8
    )
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("score (tick: median)", fontsize=9)
    figure.savefig(path, dpi=110)
    return path


def _smooth(density: np.ndarray) -> np.ndarray:
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    return np.convolve(np.pad(density, 2, mode="edge"), kernel, mode="valid")
