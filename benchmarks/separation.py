"""How well scores and decisions separate good cut-outs from bad ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from gal_d2.testbeds.truth import GOOD


def auc(is_good: np.ndarray, score: np.ndarray) -> float:
    """Probability that a good instance scores above a bad one; NaN when all are of one kind.

    Rows without a score (NaN) are left out.
    """
    known = np.isfinite(score)
    is_good, score = is_good[known], score[known]
    if is_good.all() or not is_good.any():
        return np.nan
    return float(roc_auc_score(is_good, score))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation over the seeds."""
    values = np.array(values, dtype=float)
    if not np.isfinite(values).any():
        return "-"
    text = f"{np.nanmean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.nanstd(values, ddof=1):.{digits}f}"


def select(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows, (N,) bool or indices, of columns of N values."""
    return {name: values[rows] for name, values in columns.items()}


def acceptance(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares: of the good and the bad that were accepted, of bad ones before and after.

    Args:
        columns: "kind" and "accept" of N pasted instances.
    """
    good, accept = columns["kind"] == GOOD, columns["accept"].astype(bool)
    return {
        "good accepted": _mean(accept[good]),
        "bad accepted": _mean(accept[~good]),
        "bad of pasted": _mean(~good),
        "bad of accepted": _mean(~good[accept]),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else np.nan
