"""What a person's verdict does to the posterior of a cut-out.

A verdict is stronger than any number of scores, which are noisy and see only what the detector has
learnt so far. In each signal, in standard deviations of single scores within the class, a cut-out
judged

- *good* has at least the quality :data:`GOOD_QUALITY`: a good one's mean, about. Better scores may
  still tell it from other good ones.
- *bad* has :data:`BAD_QUALITY`, below all that was not judged, whatever its scores.

Either is nearly sure, so that it is neither auditioned nor drawn to find out more. How much is said
does not matter: on the miniature, good qualities of 1, 1.5, 2 and 3 lead to the same share of good
cut-outs among the drawn ones.
"""

from __future__ import annotations

import numpy as np

from gal_d2.pool.verdicts import signs_of

GOOD_QUALITY, BAD_QUALITY = 1.0, -3.0
STD = 0.1

NOTHING_JUDGED = (np.empty(0, np.int64), np.empty(0, np.int8))


def with_verdicts(
    mean: np.ndarray,
    std: np.ndarray,
    pool_ids: np.ndarray,
    judged: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of qualities, given what was said of the cut-outs.

    Args:
        mean, std: (..., S), by scores alone.
        pool_ids: (...) int64.
        judged: pool ids (J,) int64 ascending and (J,) int8, 1 good and -1 bad.

    Returns:
        Two arrays (..., S); those that were given where nothing was judged.

    Example:
        >>> judged = np.array([4, 9]), np.array([1, -1], np.int8)
        >>> mean, std = np.array([[0.2], [1.5], [1.5]]), np.full((3, 1), 0.5)
        >>> mean, std = with_verdicts(mean, std, np.array([4, 5, 9]), judged)
        >>> mean.ravel().tolist(), std.ravel().tolist()
        ([1.0, 1.5, -3.0], [0.1, 0.5, 0.1])
    """
    if not len(judged[0]):
        return mean, std
    signs = signs_of(pool_ids, judged)[..., None]
    mean = np.where(signs > 0, np.maximum(mean, GOOD_QUALITY), mean)
    mean = np.where(signs < 0, BAD_QUALITY, mean)
    return mean, np.where(signs != 0, np.minimum(std, STD), std)
