"""How probable it is that a cut-out is good, by its value and its category, learnt from verdicts.

A value (:meth:`gal_d2.selection.posterior.Posterior.value`) orders the cut-outs of a category, but
says neither how many of them are good nor from which value on they are. A logistic regression does,

    P(good | value v, category c) = sigmoid(a + b v + d_c)

with Gaussian priors, so that it is sensible from the first verdict on: b around 2 (what the
miniature's pool shows), a around 0, and the categories' deviations d_c around 0. Which cut-outs
were shown does not bias it, as long as they were chosen by value and category.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_SLOPE, _SLOPE_STD = 2.0, 1.0
_LEVEL_STD = 2.0
_CATEGORY_STD = 1.0
_ITERATIONS = 30
HOPELESS = 0.05
"""A cut-out less probably good than this is hopeless: one of twenty, at most, is good."""


@dataclass
class Calibration:
    """The regression; see the module.

    Attributes:
        level: a.
        slope: b, above 0.
        by_category: d_c by category id; 0 for one that is not there.
        verdicts: how many it was learnt from.
    """

    level: float = 0.0
    slope: float = _SLOPE
    by_category: dict[int, float] = field(default_factory=dict)
    verdicts: int = 0

    def probability(self, value: np.ndarray, category_id: int) -> np.ndarray:
        """(N,) probability that cut-outs (N,) of a category are good, by their values.

        Example:
            >>> Calibration().probability(np.array([0.0, 1.0]), 3).round(2).tolist()
            [0.5, 0.88]
        """
        return _sigmoid(self.level + self.slope * value + self.by_category.get(category_id, 0.0))

    def hopeless_below(self, category_id: int) -> float:
        """The value below which a cut-out of a category is hopeless."""
        limit = np.log(HOPELESS / (1 - HOPELESS))
        return float((limit - self.level - self.by_category.get(category_id, 0.0)) / self.slope)


def calibrate(value: np.ndarray, category_ids: np.ndarray, is_good: np.ndarray) -> Calibration:
    """Learn from N verdicts.

    Args:
        value: (N,) of the cut-outs, by their scores alone.
        category_ids: (N,) int64.
        is_good: (N,) bool, what was said.
    """
    if not len(value):
        return Calibration()
    categories, which = np.unique(category_ids, return_inverse=True)
    features = np.zeros((len(value), 2 + len(categories)))
    features[:, 0], features[:, 1] = 1.0, value
    features[np.arange(len(value)), 2 + which] = 1.0
    centre = np.zeros(features.shape[1])
    centre[1] = _SLOPE
    std = np.full(features.shape[1], _CATEGORY_STD)
    std[:2] = _LEVEL_STD, _SLOPE_STD
    precision = np.diag(std**-2)
    weights = centre.copy()
    for _ in range(_ITERATIONS):  # Newton's method, on a concave function
        p = _sigmoid(features @ weights)
        gradient = features.T @ (is_good - p) - precision @ (weights - centre)
        curvature = (features * (p * (1 - p))[:, None]).T @ features + precision
        step = np.linalg.solve(curvature, gradient)
        weights += step / max(1.0, np.abs(step).max())  # far from the top the full step overshoots
    by_category = dict(zip(categories.tolist(), weights[2:].tolist(), strict=True))
    # A slope of 0 or below would turn the order around, which few verdicts cannot justify.
    return Calibration(float(weights[0]), max(float(weights[1]), 0.1), by_category, len(value))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
