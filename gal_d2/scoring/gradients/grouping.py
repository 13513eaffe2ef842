"""Rows that belong together, as a matrix: sums of them are products, in an order that is fixed."""

from __future__ import annotations

import torch
from torch import Tensor


def membership(keys: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which rows have the same key.

    Args:
        keys: (R,) integers.
        which: (R,) bool, rows that count; None: all.

    Returns:
        (U,) their keys in ascending order, and (U, R) float32: 1 where a row has the key.

    Example:
        >>> membership(torch.tensor([7, 3, 7]))
        (tensor([3, 7]), tensor([[0., 1., 0.], [1., 0., 1.]]))
    """
    which = torch.ones_like(keys, dtype=torch.bool) if which is None else which
    unique = keys[which].unique()
    return unique, ((keys == unique[:, None]) & which).float()
