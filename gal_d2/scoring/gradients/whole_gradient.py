"""The published recipe's reference: a momentum average of a whole model's gradient.

arXiv 2406.02435 compares the gradient on a batch of pasted objects with

    cache = m * cache + (1 - m) * gradient on real images

by their cosine, one for the whole batch. All vectors here are of every trainable weight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gal_d2.distributed import is_distributed

logger = logging.getLogger(__name__)


def flat_gradient(loss: Tensor, weights: Sequence[Tensor], *, scale: float = 1.0) -> Tensor:
    """The gradient of a loss by all weights, as one vector; nothing accumulates in ``.grad``.

    Args:
        loss: scalar with a graph.
        weights: P numbers in all; one that the loss does not depend on has gradient zero.
        scale: the loss is multiplied by it before, the gradient divided after the backward pass, so
            that small fp16 gradients are not lost.

    Returns:
        (P,) float32.
    """
    gradients = torch.autograd.grad(loss * scale, weights, allow_unused=True)
    flat = [
        torch.zeros(weight.numel(), device=weight.device) if g is None else g.flatten().float()
        for g, weight in zip(gradients, weights, strict=True)
    ]
    flat = torch.cat(flat)
    return flat if scale == 1 else flat.div_(scale)


def mean_gradient(total: Tensor, count: int) -> tuple[Tensor, int]:
    """The mean over the ROIs of all processes; a collective call.

    Args:
        total: (P,) float32, sum over this process's ROIs; it is overwritten.
        count: how many they are.

    Returns:
        (P,) the same on every process, and the number of ROIs of all of them.
    """
    if is_distributed():
        counts = torch.tensor(float(count), dtype=torch.float64, device=total.device)
        dist.all_reduce(total)
        dist.all_reduce(counts)
        count = int(counts)
    return total.div_(max(count, 1)), count


class MomentumGradient:
    """Running average of whole-model gradients.

    Args:
        momentum: m, weight of the old average.

    Attributes:
        value: (P,) float32; None before the first update.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        self.momentum = momentum
        self.value: Tensor | None = None

    def update(self, gradient: Tensor) -> None:
        """Take in a (P,) gradient; the first one is the average."""
        if self.value is None:
            self.value = gradient.clone()
        else:
            self.value.mul_(self.momentum).add_(gradient, alpha=1 - self.momentum)

    def compare(self, gradient: Tensor) -> tuple[float, float]:
        """Cosine and inner product with a (P,) gradient; NaN where either is zero or unknown."""
        if self.value is None:
            return math.nan, math.nan
        product = torch.dot(self.value, gradient).item()
        norms = self.value.norm().item() * gradient.norm().item()
        return (product / norms, product) if norms > 0 else (math.nan, math.nan)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.value is None else {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Tensor], weights: Sequence[Tensor]) -> bool:
        """Restore for a model with these weights; False, and a warning, if it was another one's."""
        value = state.get("value")
        size = sum(weight.numel() for weight in weights)
        if value is not None and len(value) != size:
            logger.warning(
                "The checkpoint's gradient on real images is of %d weights, this model has %d: it "
                "starts afresh.",
                len(value),
                size,
            )
            return False
        self.value = None if value is None else value.to(weights[0].device, copy=True)
        return True
