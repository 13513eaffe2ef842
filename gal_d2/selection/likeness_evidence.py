"""What the posterior knows of a cut-out before any score: how much it looks like its category.

:mod:`gal_d2.judging.likeness` finds the logarithm of the probability that a cut-out shows its
category. To the posterior it is a further signal, the last one: its mean is that logarithm, and
nothing about it is uncertain. In the value it counts beside the scores, in nats: a log-probability
and a quality that tells two normal distributions apart add up.
"""

from __future__ import annotations

import numpy as np

LIKENESS = "likeness"

NOTHING_COMPARED = (np.empty(0, np.int64), np.empty(0, np.float32))
"""Pool ids (L,) int64 ascending, and (L,) float32 log-probabilities of their categories."""

Likenesses = tuple[np.ndarray, np.ndarray]


def merged(known: Likenesses, new: Likenesses) -> Likenesses:
    """Both together; of a cut-out that both have, what ``known`` says.

    Example:
        >>> known = np.array([2, 5]), np.array([-0.5, -1.0], np.float32)
        >>> ids, values = merged(known, (np.array([5, 3]), np.array([-9, -2], np.float32)))
        >>> ids.tolist(), values.tolist()
        ([2, 3, 5], [-0.5, -2.0, -1.0])
    """
    ids, first = np.unique(np.concatenate([known[0], new[0]]), return_index=True)
    return ids, np.concatenate([known[1], new[1]])[first]


def with_likeness(
    mean: np.ndarray, std: np.ndarray, pool_ids: np.ndarray, likeness: Likenesses
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of qualities, with the likeness as one more signal.

    Args:
        mean, std: (..., S), by scores alone.
        pool_ids: (...) int64.
        likeness: what is known; of others, and where it could not be told (NaN), it is 0: none of
            a category without real objects is less alike than another.

    Returns:
        Two arrays (..., S + 1).

    Example:
        >>> likeness = np.array([4]), np.array([-2.0], np.float32)
        >>> mean, std = with_likeness(np.ones((2, 1)), np.ones((2, 1)), np.array([4, 5]), likeness)
        >>> mean.tolist(), std.tolist()
        ([[1.0, -2.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]])
    """
    ids, values = likeness
    column = np.zeros((*pool_ids.shape, 1))
    if len(ids):
        place = np.searchsorted(ids, pool_ids).clip(max=len(ids) - 1)
        column[..., 0] = np.where(ids[place] == pool_ids, np.nan_to_num(values[place]), 0.0)
    return np.concatenate([mean, column], -1), np.concatenate([std, np.zeros_like(column)], -1)
