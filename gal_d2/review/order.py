"""Which cut-outs a person should look at first: those whose verdict changes most what is pasted.

A verdict on cut-out i of a category is worth what it adds to the share of good ones among the
category's pastes. Let q_i be its share of the category's pastes now, Q the share of one that is as
good as can be, p_i the probability that it is good, and g the share of good ones among the pastes.
"Bad" (probability 1 - p_i) frees its q_i for others, of which g are good; "good" (p_i) raises it to
Q in the place of others, of which 1 - g are bad:

    gain_i = (1 - p_i) q_i g  +  p_i (Q - q_i) (1 - g)

The draw is taken to be as narrow as ``GAL.POOL.BEST`` says, though it widens where most cut-outs
help: there, verdicts are worth less in all of a category's cut-outs. A verdict in a category with
few cut-outs weighs more by itself, for each of them is pasted more often. How often a category is
drawn is not asked; where frequency groups are known, rare ones count double, as what reviews are
for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtri

from gal_d2.pool.verdicts import signs_of
from gal_d2.review.beliefs import Beliefs
from gal_d2.review.calibration import Calibration, calibrate
from gal_d2.selection.draw import value_of
from gal_d2.selection.sampler import DrawRule
from gal_d2.selection.verdict_evidence import with_verdicts

_POINTS = 24  # values looked at of each cut-out's distribution
_RARE, _COMMON = 2.0, 1.5  # weight of frequency groups; frequent: 1


@dataclass(frozen=True)
class Outlook:
    """Of N cut-outs of a pool, what a review looks at.

    Attributes:
        share: (N,) of its category's pastes; they add up to 1 in each category.
        good: (N,) probability that it is good; 0 or 1 where it was judged.
        gain: (N,) what a verdict is expected to be worth, see the module; 0 where it was judged.
        calibration: learnt from the verdicts.
    """

    share: np.ndarray
    good: np.ndarray
    gain: np.ndarray
    calibration: Calibration


def outlook(
    beliefs: Beliefs,
    judged: tuple[np.ndarray, np.ndarray],
    known: dict[int, tuple[bytes, np.ndarray, float]] | None = None,
) -> Outlook:
    """Look at a pool.

    Args:
        beliefs: of N cut-outs.
        judged: what people said, as :func:`gal_d2.pool.verdicts.settled` gives it.
        known: shares of categories from an earlier call with the same beliefs, which this one goes
            on to use and fills: the costly part, and a verdict changes one category only.
    """
    known = {} if known is None else known
    ids, value = beliefs.pool_ids, beliefs.value
    signs = signs_of(ids, judged)
    said = signs != 0
    calibration = calibrate(value[said], beliefs.category_ids[said], signs[said] > 0)
    mean, std = with_verdicts(beliefs.mean, beliefs.std, ids, judged)
    share, good, gain = (np.zeros(len(ids)) for _ in range(3))
    order = np.argsort(beliefs.category_ids, kind="stable")
    categories, first = np.unique(beliefs.category_ids[order], return_index=True)
    for category, rows in zip(categories.tolist(), np.split(order, first[1:]), strict=True):
        said_of = signs[rows].tobytes()
        if category not in known or known[category][0] != said_of:
            options = (beliefs.weights, beliefs.ceilings, beliefs.rule)
            known[category] = (said_of, *draw_shares(mean[rows], std[rows], *options))
        _, share[rows], most = known[category]
        p = calibration.probability(value[rows], category)
        p = good[rows] = np.where(signs[rows] > 0, 1.0, np.where(signs[rows] < 0, 0.0, p))
        is_good = float(share[rows] @ p)
        gain[rows] = (1 - p) * share[rows] * is_good
        gain[rows] += p * np.maximum(most - share[rows], 0) * (1 - is_good)
        gain[rows] *= {"r": _RARE, "c": _COMMON}.get(beliefs.frequency.get(category), 1.0)
    gain[said] = 0.0
    return Outlook(share, good, gain, calibration)


def draw_shares(
    mean: np.ndarray,
    std: np.ndarray,
    weights: np.ndarray,
    ceilings: np.ndarray,
    rule: DrawRule,
) -> tuple[np.ndarray, float]:
    """How often each cut-out of a category is drawn by its posterior.

    A cut-out with the drawn value v is among the best b of K candidates if at most b - 1 of the
    other K - 1, drawn from all cut-outs, have a higher one. That is averaged over v; the values are
    the same in each call, so that the result is a function of the arguments.

    Args:
        mean, std: (n, S) of the category's cut-outs.
        weights, ceilings: (S,) of the value.
        rule: K, b and the temperature.

    Returns:
        (n,) shares that add up to 1, and the share of one that is better than all.
    """
    number, signals = mean.shape
    noise = _normal_points(signals)  # (P, S)
    value = value_of(
        mean[:, None] + rule.temperature * std[:, None] * noise, weights, ceilings
    ).ravel()  # (n P,)
    order = np.argsort(value, kind="stable")
    # The share of values above each, and half of those that are equal.
    ranked = value[order]
    below = np.searchsorted(ranked, value, "left") + np.searchsorted(ranked, value, "right")
    above = 1 - below / (2 * len(value))
    chosen = bdtr(rule.best - 1, rule.candidates - 1, above).reshape(number, -1).mean(1)
    return chosen / chosen.sum(), float(1 / chosen.sum())


def _normal_points(signals: int) -> np.ndarray:
    """(P, S) points that stand for independent normal numbers: quantiles, mixed by lattices."""
    grid = (np.arange(_POINTS) + 0.5) / _POINTS
    columns = [ndtri(grid if s == 0 else _shuffled(grid, s)) for s in range(signals)]
    return np.stack(columns, axis=1)


def _shuffled(grid: np.ndarray, number: int) -> np.ndarray:
    # Multipliers without a common factor with P: each quantile once, far from the columns before.
    multipliers = [m for m in range(5, _POINTS) if np.gcd(m, _POINTS) == 1]
    return grid[np.arange(_POINTS) * multipliers[(number - 1) % len(multipliers)] % _POINTS]
