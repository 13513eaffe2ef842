"""What the directions are learnt from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

REAL = -1  # the slot of a real instance under its own class


@dataclass(frozen=True)
class CacheRows:
    """Gradients of one head that enter the cache; R rows.

    Attributes:
        gradient: (R, D) float32, not normalised.
        classes: (R,) int64, the class that the gradient was taken under.
        slots: (R,) int64, :data:`REAL`, or the slot of a relabelled instance's true class.
        norm: (R,) float32 on the CPU, of the gradients; None: not known there yet.
    """

    gradient: Tensor
    classes: Tensor
    slots: Tensor
    norm: Tensor | None = None
