"""Choosing among cut-outs by what is known about them: the posterior's formulas, on arrays.

What is known of a cut-out is, for each signal, the sum W of the weights of its scores and their
weighted mean M, each score relative to its class (:mod:`gal_d2.selection.posterior` collects them).
A score of step t has weight t + 1 at most, so at step T there are n = W / (T + 1) full scores. With
n0 the number of scores that the prior is worth, the cut-out's quality in that signal is

    Normal(mean = n M / (n + n0), variance = n0 / ((1 + n0) (n + n0)))

in standard deviations of single scores within the class: one never scored has mean 0 and the
variance of the class's cut-outs.
"""

from __future__ import annotations

import numpy as np

_HELPING_LITTLE, _HELPING_ALL = 0.6, 0.9  # shares of cut-outs that help, see widened()


def posterior_moments(
    weight: np.ndarray, mean: np.ndarray, step: int, prior_count: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each quality.

    Args:
        weight: W, any shape; 0 for one never scored.
        mean: M, of the same shape; ignored where the weight is 0.
        step: T.
        prior_count: n0, above 0.

    Example:
        >>> mean, std = posterior_moments(np.array([0.0, 10.0]), np.array([0.0, 1.0]), 9, 1.0)
        >>> mean.tolist(), std.round(3).tolist()
        ([0.0, 0.5], [0.707, 0.5])
    """
    count = weight / (step + 1)
    shrunk = count * np.where(weight > 0, mean, 0.0) / (count + prior_count)
    return shrunk, np.sqrt(prior_count / ((1 + prior_count) * (count + prior_count)))


def value_of(quality: np.ndarray, weights: np.ndarray, ceilings: np.ndarray) -> np.ndarray:
    """What qualities in S signals are worth together: sum of w_s min(quality_s, ceiling_s).

    With a ceiling, being better than good enough counts nothing: the lowest loss of all belongs to
    the easiest cut-out, not to the one that teaches most.

    Args:
        quality: (..., S).
        weights: (S,).
        ceilings: (S,); inf: none.

    Returns:
        (...).
    """
    return (np.minimum(quality, ceilings) * weights).sum(-1)


def value_moments(
    mean: np.ndarray, std: np.ndarray, weights: np.ndarray, ceilings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Expected values of cut-outs and their standard deviations.

    The deviations leave out that a signal counts up to its ceiling only.

    Args:
        mean, std: (..., S) of the quality in each signal.
        weights, ceilings: (S,), see :func:`value_of`.

    Returns:
        Two arrays of shape (...).
    """
    return value_of(mean, weights, ceilings), np.sqrt(np.square(std * weights).sum(-1))


def separation(value: np.ndarray, std: np.ndarray) -> float:
    """How far cut-outs are told apart: the known share of the variance of their values.

    By the law of total variance a value varies by what is expected of the cut-outs, Var(value), and
    by what is not known of each, E[std^2].

    Args:
        value: (N,) expected values.
        std: (N,) their standard deviations.

    Returns:
        In [0, 1]; 0 where nothing is known, 1 where each value is known. NaN for fewer than two.

    Example:
        >>> separation(np.array([-1.0, 1.0]), np.array([0.5, 0.5]))
        0.8
    """
    if len(value) < 2:
        return float("nan")
    known, unknown = float(np.var(value)), float(np.mean(np.square(std)))
    return known / (known + unknown) if known + unknown > 0 else float("nan")


def widened(best: int, candidates: int, helping: np.ndarray) -> np.ndarray:
    """How many of K candidates are good enough: more than ``best`` where most cut-outs help.

    Where nothing is wrong with the cut-outs, choosing among them only loses variety. Up to a share
    of 0.6 that helps it is ``best``, from 0.9 on it is K, and in between it grows linearly. Good
    cut-outs do not all help, nor do all bad ones harm: of the miniature's pools 0.5 to 0.68 help
    where 40 % are good, and 0.7 to 0.92 where all are.

    Args:
        best: b, at least 1.
        candidates: K.
        helping: (...) shares; NaN where they are not known.

    Returns:
        (...) int64, from b to K.

    Example:
        >>> widened(3, 12, np.array([np.nan, 0.5, 0.75, 0.95])).tolist()
        [3, 3, 6, 12]
    """
    share = (np.nan_to_num(helping, nan=0.0) - _HELPING_LITTLE) / (_HELPING_ALL - _HELPING_LITTLE)
    return np.clip(np.rint(candidates * share), best, candidates).astype(np.int64)


def choose_from_best(
    value: np.ndarray, best: int | np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """For each of N rows, one of its ``best`` highest values, uniformly: (N,) column numbers.

    Args:
        value: (N, K).
        best: at least 1, for all rows or (N,) int; more than K: all.
        rng: draws N numbers.

    Example:
        >>> choose_from_best(np.array([[0.1, 0.9, 0.5]]), 1, np.random.default_rng(0)).tolist()
        [1]
    """
    rows, candidates = value.shape
    rank = rng.integers(np.minimum(best, candidates), size=rows)
    order = np.argsort(-value, axis=1, kind="stable")
    return order[np.arange(rows), rank]
