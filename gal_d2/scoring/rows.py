"""What the heads say of a batch's instances, on a device, on the way, and on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gal_d2.scoring.exchange import as_floats, as_integers
from gal_d2.scoring.gradients.cache_rows import REAL, CacheRows
from gal_d2.scoring.plan import InstanceTable, Plan


@dataclass(frozen=True)
class Rows:
    """What H heads say of a plan's instances; on the device.

    Attributes:
        values: (H, 5, N): the loss (a sum over ROIs), the norm of the gradient, its product with
            the direction, the direction's norm, and its product with the sum of real gradients.
            Of a head without gradients, five times the loss; NaN where it was not asked.
        extra_norm: (heads with a contrast, K), of relabelled instances.
        probabilities: (P, C) of the pasted instances, sums over ROIs; without a classifier (0, C).
        learnt: by head with gradients, (R + K, D) of those that are learnt from, then of relabelled
            ones.
    """

    values: Tensor
    extra_norm: Tensor
    probabilities: Tensor
    learnt: list[Tensor]


@dataclass(frozen=True)
class Part:
    """What of one process's rows all processes know; on the CPU. As in Plan and Rows."""

    table: InstanceTable
    as_class: Tensor
    slot: Tensor
    values: Tensor
    extra_norm: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class RowFormat:
    """How rows travel between processes: counts, integers, then floats, in one vector.

    Attributes:
        heads: names of all heads.
        contrast_heads: of those with relabelled instances.
        sizes: D by head with gradients, the lengths of their gradients.
        num_classes: C.
    """

    heads: tuple[str, ...]
    contrast_heads: tuple[str, ...]
    sizes: Mapping[str, int]
    num_classes: int

    @staticmethod
    def known(table: InstanceTable, learning: Plan, num_probabilities: int) -> Tensor:
        """What a process knows before its device has computed anything, as floats."""
        counts = [len(table), len(learning.as_class), num_probabilities]
        columns = [torch.tensor(counts), table.pack(), learning.as_class, learning.slot]
        return as_floats(torch.cat(columns))

    def unpack(self, part: Tensor) -> Part:
        """What a process sent."""
        n, extra, pasted = as_integers(part[:6]).tolist()
        numbers = 2 * (InstanceTable.WIDTH * n + 2 * extra)
        integers = as_integers(part[6 : 6 + numbers])
        table, as_class, slot = integers.split([InstanceTable.WIDTH * n, extra, extra])
        heads, contrasts = len(self.heads), len(self.contrast_heads)
        values, extra_norm, probabilities = part[6 + numbers :].split(
            [heads * 5 * n, contrasts * extra, pasted * self.num_classes]
        )
        return Part(
            InstanceTable.unpack(table),
            as_class,
            slot,
            values.view(heads, 5, n),
            extra_norm.view(contrasts, extra),
            probabilities.view(pasted, self.num_classes),
        )

    def by_head(self, part: Part, rows: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        """(R, D) gradients by head that has some, of one process."""
        if not isinstance(rows, Tensor):
            return rows
        sizes = list(self.sizes.values())
        real = int(part.table.learnt.sum())
        counts = [real + len(part.slot) * (head in self.contrast_heads) for head in self.sizes]
        split = rows.split([c * size for c, size in zip(counts, sizes, strict=True)])
        return [block.view(-1, size) for block, size in zip(split, sizes, strict=True)]

    def cache_rows(
        self, parts: Sequence[Part], large: Sequence[Tensor | Sequence[Tensor]]
    ) -> dict[str, CacheRows]:
        """By head with gradients, what all processes learn from.

        Args:
            parts: by process.
            large: by process, its gradients as they came.
        """
        blocks = [self.by_head(part, rows) for part, rows in zip(parts, large, strict=True)]
        cache_rows = {}
        for number, head in enumerate(self.sizes):
            h = self.heads.index(head)
            classes, slots, norms = [], [], []
            for part in parts:
                learnt = part.table.learnt
                classes.append(part.table.gt_class[learnt])
                slots.append(torch.full_like(classes[-1], REAL))
                norms.append(part.values[h, 1][learnt])
                if head in self.contrast_heads:
                    classes.append(part.as_class)
                    slots.append(part.slot)
                    norms.append(part.extra_norm[self.contrast_heads.index(head)])
            gradients = [block[number] for block in blocks]
            cache_rows[head] = CacheRows(
                gradients[0] if len(gradients) == 1 else torch.cat(gradients),
                *(torch.cat(columns) for columns in (classes, slots, norms)),
            )
        return cache_rows


def candidates(parts: list[Part]) -> tuple[Tensor, Tensor] | None:
    """(P,) classes and (P, C) class probabilities of the pasted instances."""
    classes, probabilities = [], []
    for part in parts:
        if len(part.probabilities):
            pasted = part.table[part.table.pasted]
            classes.append(pasted.gt_class)
            probabilities.append(part.probabilities / pasted.num_rois[:, None])
    return (torch.cat(classes), torch.cat(probabilities)) if classes else None
