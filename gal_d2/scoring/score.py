"""The score of a pasted instance: the formula.

For an instance of class c with the loss l_h in head h and its projected gradient g_h,

    phi   = sum over heads of  <m(c, h), g_h>
    score = sum over heads of  w_h cos(d(c, h), g_h) - v_h z_h
    z_h   = (l_h - median) / spread,  at least 0 and at most 5

- m(c, h), the mean raw gradient of real instances of c: phi is the first-order change of the loss
  on them, and is only recorded.
- d(c, h), the direction of c: :mod:`gal_d2.scoring.gradients.directions`. Its cosine with g_h shows
  an object that is not what it claims to be, in the box head.
- median and spread (half the distance of the 16th and 84th percentile, a standard deviation were
  they normal) of the losses of recent real instances of c: a loss above what is usual shows an
  image of poor quality, in the mask head. An easy instance is no better than a usual one.
- w_h and v_h: ``GAL.SCORER.SCORE_WEIGHTS`` and ``LOSS_WEIGHTS``.

A figure that cannot be known is NaN: of an instance without an ROI, with a loss or a gradient that
is not finite, or of a class of which nothing real has been seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

USUAL = (0.16, 0.5, 0.84)
"""The percentiles that a loss is compared with."""
# A loss further above the usual than this says no more; the unit is that of a standard deviation.
_MAX_EXCESS = 5.0
_LEAST_NORM = 1e-12


@dataclass(frozen=True)
class HeadValues:
    """What a head says of N instances; (N,) float32 each, on the CPU.

    Attributes:
        loss: l.
        norm: of g. Of a head without gradients this and what follows are the loss once more.
        along: <direction, g>, the direction not normalised.
        direction_norm: of that direction.
        raw: <sum of real gradients, g>, which is <m, g> but for a factor by class.
    """

    loss: Tensor
    norm: Tensor
    along: Tensor
    direction_norm: Tensor
    raw: Tensor


@dataclass(frozen=True)
class Scores:
    """Of N instances, (N,) float32 each: phi, the score, and by head its cosine and its loss."""

    phi: Tensor
    score: Tensor
    head_score: dict[str, Tensor]
    head_loss: dict[str, Tensor]


def score_instances(
    values: Mapping[str, HeadValues],
    has_roi: Tensor,
    raw_factor: Mapping[str, Tensor],
    usual: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    score_weights: Mapping[str, float],
    loss_weights: Mapping[str, float],
) -> Scores:
    """Apply the formula to N instances.

    Args:
        values: by head.
        has_roi: (N,) bool.
        raw_factor: by head with gradients, (N,) float32, what ``raw`` is to be multiplied with;
            NaN for a class never seen.
        usual: by head with a weight in ``loss_weights``, three (N,) float32, the percentiles
            :data:`USUAL` of real instances' losses of the class.
        score_weights, loss_weights: w and v by head.
    """
    phi, score = torch.zeros(len(has_roi)), torch.zeros(len(has_roi))
    head_score, head_loss = {}, {}
    for head, of_head in values.items():
        missing = ~has_roi | ~of_head.loss.isfinite() | ~of_head.norm.isfinite()
        head_loss[head] = of_head.loss.masked_fill(missing, torch.nan)
        if head not in raw_factor:
            head_score[head] = torch.full_like(of_head.loss, torch.nan)
            continue
        factor = raw_factor[head].masked_fill(missing, torch.nan)
        phi += of_head.raw * factor
        head_score[head] = cosine(of_head).masked_fill(
            factor.isnan() | (of_head.direction_norm < _LEAST_NORM), torch.nan
        )
    for head, weight in score_weights.items():
        score += weight * head_score[head]
    for head, weight in loss_weights.items():
        if weight:
            score -= weight * excess(head_loss[head], *usual[head])
    return Scores(phi, score, head_score, head_loss)


def cosine(values: HeadValues) -> Tensor:
    """(N,) cos(d, g)."""
    return values.along / (values.direction_norm * values.norm).clamp(min=_LEAST_NORM)


def excess(loss: Tensor, low: Tensor, median: Tensor, high: Tensor) -> Tensor:
    """(N,) z: by how many spreads the loss exceeds the median; 0 below it.

    Args:
        loss: (N,) float32.
        low, median, high: (N,) float32, see :data:`USUAL`.
    """
    # A class whose few instances happen to agree is no reason to divide by almost nothing.
    spread = torch.maximum((high - low) / 2, 0.05 * median.abs()).clamp(min=1e-6)
    return ((loss - median) / spread).clamp(0, _MAX_EXCESS)
