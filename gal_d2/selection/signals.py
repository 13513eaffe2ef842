"""The signals that a posterior is kept of: what of a score says how good a cut-out is."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import Tensor

from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.roi_losses import HEAD_LOSS_REGISTRY, HeadLoss

_LEAST_LOSS = 1e-6
_SIGNAL = re.compile(r"(\w+)_(score|loss)")


def signal_column(contribution: Contribution, name: str) -> Tensor:
    """(N,) values of a signal; higher is better.

    Args:
        contribution: of N instances.
        name: "<head>_score" (cosine), "<head>_loss" (minus its logarithm, for losses are skewed),
            "score" (the combined one) or "phi" (the raw dot product).
    """
    if name in ("score", "phi"):
        return getattr(contribution, name)
    head, kind = _SIGNAL.fullmatch(name).groups()
    if kind == "score":
        return contribution.head_score[head]
    return -contribution.head_loss[head].clamp(min=_LEAST_LOSS).log()


def check_signals(names: Sequence[str], heads: Sequence[str]) -> None:
    """Check ``GAL.POSTERIOR.SIGNALS``.

    Raises:
        UserError: one is not a signal of these heads.
    """
    known = ["score", "phi", *(f"{head}_{kind}" for head in heads for kind in ("score", "loss"))]
    for name in names:
        if name not in known:
            raise UserError(
                f"GAL.POSTERIOR.SIGNALS names '{name}', but with GAL.SCORER.HEADS {list(heads)} "
                f"there are {', '.join(known)}: choose from these."
            )
    if not names:
        raise UserError("GAL.POSTERIOR.SIGNALS is empty: name at least one signal.")


def ceiling_of(signal: str) -> float:
    """Quality from which on more counts nothing in the value: 1 for a loss, 100 (never) else.

    A low loss of a mask is a mask that fits and a picture without noise; an even lower one is an
    easy object. The loss of a head that classifies tells classes apart, and has no such limit.
    """
    if is_alignment(signal):
        return 100.0
    return 100.0 if _head_loss(signal).classifies else 1.0


def neutral_value(signal: str) -> float:
    """Value of the signal above which a cut-out helps, and below which it harms.

    0 for a cosine or a dot product; that of :attr:`~gal_d2.scoring.roi_losses.HeadLoss.fair_loss`
    for a loss, and NaN where the head has none; minus infinity for the loss of a head that
    classifies, which is high for what is not learnt yet.
    """
    if is_alignment(signal):
        return 0.0
    loss = _head_loss(signal)
    return -math.inf if loss.classifies else -math.log(loss.fair_loss)


def is_alignment(signal: str) -> bool:
    """Whether it is a cosine or a dot product with the gradient of real objects."""
    return not signal.endswith("_loss")


def _head_loss(signal: str) -> type[HeadLoss]:
    """Whose loss the signal is; of a head that is not registered, only the defaults are known."""
    head = signal.removesuffix("_loss")
    return HEAD_LOSS_REGISTRY.get(head) if head in HEAD_LOSS_REGISTRY else HeadLoss
