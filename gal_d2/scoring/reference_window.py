"""The most recent values of every class, and quantiles of them: what "usual" means for a class."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gal_d2.distributed import gather_columns

logger = logging.getLogger(__name__)


def _mix(values: Tensor) -> Tensor:
    """A pseudo-random key below 2**32 that depends on nothing but the float32 value."""
    return (values.view(torch.int32).long() * 0x9E3779B1) & 0xFFFFFFFF


def _quantiles_of_sorted(rows: Tensor, counts: Tensor, qs: Sequence[float]) -> Tensor:
    """Linearly interpolated quantiles of the first ``counts`` entries of ascending rows.

    Args:
        rows: (N, M) float32, each row ascending in its first ``counts`` entries.
        counts: (N,) int64.
        qs: Q of them, in [0, 1].

    Returns:
        (Q, N) float32; NaN where the count is 0.
    """
    last = (counts - 1).clamp(min=0)
    position = torch.tensor(qs, dtype=torch.float64)[:, None] * last.double()
    below = position.floor().long()
    above = torch.minimum(below + 1, last)
    low = rows.gather(1, below.T).T.double()
    high = rows.gather(1, above.T).T.double()
    result = (low + (high - low) * (position - below)).float()
    return result.masked_fill(counts == 0, torch.nan)


class ReferenceWindow:
    """A ring buffer of the last ``size`` values of each class, on the CPU.

    A class with fewer than ``n_min`` values borrows: its quantile is a mean of its own and that of
    its group (the values of all classes of the group, pooled), with the weight of its own growing
    as count / n_min. A group that is thin itself borrows from all classes in the same way.

    Which values are forgotten first within one :meth:`add` depends on the values alone, not on
    their order: the window is the same however the rows were spread over processes.

    Args:
        groups: (C,) integers, the group of each class (0 rare, 1 common, 2 frequent, say).
        size: values kept per class.
        n_min: values from which on a class stands for itself; at most ``size``.

    Raises:
        ValueError: ``size`` or ``n_min`` is out of range, or ``groups`` is not a vector.
    """

    def __init__(self, groups: Tensor, *, size: int = 64, n_min: int = 16) -> None:
        groups = torch.as_tensor(groups)
        if groups.ndim != 1 or len(groups) == 0:
            raise ValueError(f"groups must be a vector by class, not of shape {groups.shape}.")
        if not 1 <= n_min <= size:
            raise ValueError(f"n_min must be in [1, size = {size}], not {n_min}.")
        self.groups = groups.long().cpu()
        self.size = size
        self.n_min = n_min
        self._values = torch.full((len(self.groups), size), torch.nan)
        self._total = torch.zeros(len(self.groups), dtype=torch.int64)
        # Sorted values of a group (None: of all) that quantiles have asked for since the last add.
        self._pools: dict[int | None, Tensor] = {}

    @property
    def num_classes(self) -> int:
        return len(self.groups)

    @property
    def is_full(self) -> Tensor:
        """(C,) bool, classes of which no more values can be kept."""
        return self._total >= self.size

    def count(self, classes: Tensor | None = None) -> Tensor:
        """How many values are kept: (N,) int64 for the given classes, or (C,) for all."""
        counts = self._total.clamp(max=self.size)
        return counts if classes is None else counts[torch.as_tensor(classes).long().cpu()]

    def add(self, classes: Tensor, values: Tensor) -> None:
        """Add the rows of all processes; a collective call, also for a process without rows.

        Args:
            classes: (N,) int64, in [0, C).
            values: (N,) float. NaN and infinite ones are left out.
        """
        self.add_gathered(*gather_columns(classes.long(), values.float()))

    def add_gathered(self, classes: Tensor, values: Tensor) -> None:
        """The same for rows that every process has already; no communication."""
        classes, values = classes.detach().long().cpu(), values.detach().float().cpu()
        known = values.isfinite()
        classes, values = classes[known], values[known]
        if len(classes) == 0:
            return
        self._pools.clear()
        if classes.min() < 0 or classes.max() >= self.num_classes:
            raise ValueError(f"classes must lie in [0, {self.num_classes}).")
        # Sorting by value itself would forget a step's low values before its high ones.
        order = torch.argsort((classes << 32) + _mix(values), stable=True)
        classes, values = classes[order], values[order]
        added = torch.bincount(classes, minlength=self.num_classes)
        index_in_class = torch.arange(len(classes)) - (added.cumsum(0) - added)[classes]
        kept = index_in_class >= added[classes] - self.size
        slots = (self._total[classes] + index_in_class) % self.size
        self._values[classes[kept], slots[kept]] = values[kept]
        self._total += added

    def quantile(self, classes: Tensor, q: float) -> Tensor:
        """Quantile of the recent values of each given class, borrowed where it is thin.

        Args:
            classes: (N,) int64.
            q: in [0, 1].

        Returns:
            (N,) float32 on the CPU; NaN where all classes together hold fewer than ``n_min``.
        """
        return self.quantiles(classes, (q,))[0]

    def quantiles(self, classes: Tensor, qs: Sequence[float]) -> Tensor:
        """Several of them, for little more than one: (Q, N)."""
        classes = torch.as_tensor(classes).detach().long().cpu()
        counts = self.count(classes)
        result = _quantiles_of_sorted(self._values[classes].sort(dim=1).values, counts, qs)
        thin = counts < self.n_min
        if thin.any():
            share = counts[thin] / self.n_min
            own = result[:, thin].nan_to_num()  # its share is 0 where it has no value
            backing = self._backing_quantiles(classes[thin], qs)
            result[:, thin] = share * own + (1 - share) * backing
        return result

    def _backing_quantiles(self, classes: Tensor, qs: Sequence[float]) -> Tensor:
        """(Q, N) quantiles of each class's group, the group backed by all classes."""
        groups = self.groups[classes]
        result = torch.full((len(qs), len(classes)), torch.nan)
        for group in groups.unique().tolist():
            pooled, count = self._pooled_quantiles(group, qs)
            if count < self.n_min:
                everything, total = self._pooled_quantiles(None, qs)
                if total < self.n_min:
                    return torch.full_like(result, torch.nan)
                share = count / self.n_min
                pooled = share * pooled.nan_to_num() + (1 - share) * everything
            result[:, groups == group] = pooled.float()[:, None]
        return result

    def _pooled_quantiles(self, group: int | None, qs: Sequence[float]) -> tuple[Tensor, int]:
        """(Q,) float64 quantiles of the values of all classes of a group (None: of all groups), and
        how many values there are."""
        if group not in self._pools:
            values = self._values if group is None else self._values[self.groups == group]
            # NumPy's sort is several times as fast as torch's, and pools are large.
            self._pools[group] = torch.from_numpy(np.sort(values[values.isfinite()].numpy()))
        pool = self._pools[group]
        if len(pool) == 0:
            return torch.full((len(qs),), torch.nan, dtype=torch.float64), 0
        count = torch.tensor([len(pool)])
        return _quantiles_of_sorted(pool[None], count, qs)[:, 0].double(), len(pool)

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self._values.clone(), "total": self._total.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore; a state of other classes or another size is refused with a warning."""
        values = state.get("values")
        if values is None or values.shape != self._values.shape or "total" not in state:
            found = "none" if values is None else tuple(values.shape)
            logger.warning(
                "The checkpoint's window of recent values has shape %s (classes, size), this run "
                "needs %s: it starts empty.",
                found,
                tuple(self._values.shape),
            )
            return
        self._pools.clear()
        self._values.copy_(values)
        self._total.copy_(state["total"])
