"""How well a score separates good cut-outs from bad ones."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score


def auc(is_good: np.ndarray, score: np.ndarray) -> float:
    """Probability that a good instance scores above a bad one; NaN when all are of one kind.

    Rows without a score (NaN) are left out.
    """
    known = np.isfinite(score)
    is_good, score = is_good[known], score[known]
    if is_good.all() or not is_good.any():
        return np.nan
    return float(roc_auc_score(is_good, score))
