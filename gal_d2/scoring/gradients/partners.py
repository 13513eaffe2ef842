"""Which classes each class is contrasted with, and which real instances are relabelled for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# A newcomer takes a partner's slot only if candidates resemble it this much more: the slot's
# average is lost with the partner.
_HYSTERESIS = 1.5


def choose_partners(
    ids: Tensor, mass: Tensor, seen: Tensor, partners: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Give the slots of each class to the classes that its candidates resemble most.

    Only a class of which real instances have been seen can be a partner. A partner that stays keeps
    its slot.

    Args:
        ids, mass: (C, M) each, classes that candidates of each class resemble (-1: none), and how
            much.
        seen: (C,) bool.
        partners: (C, S) int64, changed in place.

    Yields:
        A class with a change, and its slots that are free or have a new partner.
    """
    num_partners = partners.shape[1]
    mass = mass * ((ids >= 0) & seen[ids.clamp(min=0)])
    incumbent = (ids[:, :, None] == partners[:, None, :]).any(2)
    rank = mass * torch.where(incumbent, _HYSTERESIS, 1.0)
    top = rank.sort(dim=1, descending=True, stable=True)
    chosen = ids.gather(1, top.indices)[:, :num_partners]
    chosen = chosen.masked_fill(top.values[:, :num_partners] == 0, -1)
    missing = num_partners - chosen.shape[1]
    chosen = F.pad(chosen, (0, missing), value=-1)

    stays = (partners[:, :, None] == chosen[:, None, :]).any(2) & (partners >= 0)
    enters = ~(chosen[:, :, None] == partners[:, None, :]).any(2) & (chosen >= 0)
    changed = enters.any(1) | ((partners >= 0) & ~stays).any(1)
    for c in changed.nonzero()[:, 0].tolist():
        partners[c, ~stays[c]] = -1
        free = (partners[c] < 0).nonzero()[:, 0]
        new = chosen[c, enters[c]]
        partners[c, free[: len(new)]] = new
        yield c, free


def choose_relabelled(
    classes: Tensor, partners: Tensor, counts: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which real instances to relabel as what, the thinnest slots first.

    Args:
        classes: (R,) int64, true classes of the real instances at hand.
        partners: (C, S) int64, the class in each slot, -1 in an empty one.
        counts: (C, S) int64, instances that each slot has seen.
        limit: at most so many rows.

    Returns:
        Three (K,) int64 tensors: row in ``classes``, the class to relabel it as, and the slot of
        that class that it belongs to.
    """
    keys = partners.flatten()
    filled = (keys >= 0).nonzero()[:, 0]
    row, position = (classes[:, None] == keys[filled][None, :]).nonzero().unbind(1)
    key = filled[position]
    order = counts.flatten()[key].argsort(stable=True)[:limit]
    row, key = row[order], key[order]
    return row, key // partners.shape[1], key % partners.shape[1]
