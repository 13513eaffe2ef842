"""Momentum averages of gradients: how they move, and how far they are to be trusted."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gal_d2.scoring.exchange import send, send_together


@dataclass(frozen=True)
class DirectionWeights:
    """How the directions of N rows are made of the averages, with G frequency groups.

    Attributes:
        own: (N, 1 + S) weights of the class's average and of its slots' (without contrast (N, 1)).
        group: (N, G) weight of each group's prior.
        prior: (G, C) weights of the classes' averages in the groups' priors.
    """

    own: Tensor
    group: Tensor
    prior: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.own, self.group, self.prior]


def effective_count(count: Tensor, momentum: float) -> Tensor:
    """How many equally weighted samples a momentum average of ``count`` is worth (Kish).

    At most (1 + momentum) / (1 - momentum). float64.
    """
    power = momentum ** count.double()
    return (1 - power) / (1 + power) * (1 + momentum) / (1 - momentum)


def unbias(counts: Tensor, momentum: float) -> Tensor:
    """Factor that corrects averages which started at zero; 0 where nothing has come in yet."""
    weight = 1 - momentum ** counts.double()
    return torch.where(counts > 0, 1 / weight, 0.0).float()


def reliability(counts: Tensor, momentum: float, shrinkage: float) -> Tensor:
    """n / (n + shrinkage), n being what ``counts`` instances are worth; (...,) float32."""
    n = effective_count(counts, momentum)
    return torch.where(n > 0, n / (n + shrinkage), 0.0).float()


def prior_weights(
    counts: Tensor, groups: Tensor, num_groups: int, *, momentum: float, shrinkage: float
) -> Tensor:
    """(G, C) weights of the classes' averages in what a class of each group is shrunk to.

    Args:
        counts: (C,) int64, instances in each average.
        groups: (C,) int64 in [0, num_groups).
        num_groups: G.
        momentum, shrinkage: of the averages.
    """
    seen = (counts > 0).float()
    members = F.one_hot(groups, num_groups).T * seen
    in_group = members.sum(1, keepdim=True)
    share = in_group / (in_group + shrinkage) if shrinkage else in_group.sign()
    mean = share * members / in_group.clamp(min=1) + (1 - share) * seen / seen.sum().clamp(min=1)
    return mean * unbias(counts, momentum)


def move_averages(
    buffer: Tensor,
    places: Tensor,
    mean: Tensor,
    counts: Tensor,
    rows: Tensor,
    momentum: float,
) -> None:
    """Let the averages at U places follow the means of their new rows.

    Args:
        buffer: (..., D) on the device.
        places: (U,) int64, with weights ``mean`` (U, R) of the rows and their number
            ``counts`` (U,): on the CPU.
        rows: (R, D) on the device.
        momentum: weight of the old average per instance.
    """
    decay = (momentum ** counts.double()).float()[:, None]
    decay, mean = send_together([decay, (1 - decay) * mean], buffer.device)
    places = send(places, buffer.device)
    old = buffer.index_select(0, places).float()
    # index_add on a GPU adds in whatever order its threads arrive; a product does not.
    buffer.index_copy_(0, places, torch.addmm(old * decay, mean, rows).to(buffer.dtype))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(N,) products of the rows of two (N, D)."""
    return torch.bmm(a[:, None], b[:, :, None]).flatten()


def full_precision(method):
    """Products of gradients must not be rounded when a caller is under autocast."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return wrapper
