"""What is to be done with a batch, said on the CPU before a device is asked for anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from gal_d2.copy_paste.fields import NO_POOL_ID, InstanceSource
from gal_d2.copy_paste.masks import visible_area


@dataclass(frozen=True)
class InstanceTable:
    """N instances, on the CPU; of a batch image by image."""

    image: Tensor
    gt_class: Tensor
    pasted: Tensor
    pool_id: Tensor
    num_rois: Tensor
    area: Tensor  # of the pasted ones; NaN for the others
    learnt: Tensor  # whether it is a real one to learn from
    compared: Tensor  # whether its losses count: heads without gradients are asked about no other

    WIDTH: ClassVar[int] = 8

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Tensor | slice) -> InstanceTable:
        return InstanceTable(*(column[rows] for column in self._columns()))

    def _columns(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    @classmethod
    def cat(cls, tables: Sequence[InstanceTable]) -> InstanceTable:
        if len(tables) == 1:
            return tables[0]
        columns = zip(*(table._columns() for table in tables), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def pack(self) -> Tensor:
        """(WIDTH * N,) int64, as it travels."""
        columns = [*self._columns()]
        columns[5] = self.area.double().view(torch.int64)
        return torch.cat([column.long() for column in columns])

    @classmethod
    def unpack(cls, packed: Tensor) -> InstanceTable:
        columns = list(packed.view(cls.WIDTH, -1))
        columns[5] = columns[5].contiguous().view(torch.float64).float()
        for flag in (2, 6, 7):
            columns[flag] = columns[flag].bool()
        return cls(*columns)


@dataclass(frozen=True)
class Plan:
    """What is to be done with a batch, on the CPU and before a device is asked for anything.

    Attributes:
        table: the N instances that were asked for or are learnt from; one that cannot be scored
            has no ROI.
        target: (N,) int64, which of all targets each one is.
        num_targets: targets by image.
        wanted: (N,) bool, those that were asked for.
        boxes: by image, the ROIs.
        owner: (M,) int64, the instance of each ROI.
        local: by image, (M_i,) int64, the target of each ROI.
        region, as_class, slot: (K,) int64: an ROI that is relabelled, as what, and the slot of
            that class that it belongs to.
        learn: whether there may be something to learn from, on any process.
    """

    table: InstanceTable
    target: Tensor
    num_targets: list[int]
    wanted: Tensor
    boxes: list[Boxes]
    owner: Tensor
    local: list[Tensor]
    region: Tensor
    as_class: Tensor
    slot: Tensor
    learn: bool

    def is_of(self, targets: Sequence[Instances]) -> bool:
        """Whether it was made for these targets, as far as their numbers tell."""
        return self.num_targets == [len(target) for target in targets]

    def by_target(self, values: Tensor) -> list[Tensor]:
        """Per image, a bool for each target: ``values`` of the wanted ones, False of the others."""
        flat = torch.zeros(sum(self.num_targets), dtype=torch.bool)
        flat[self.target[self.wanted]] = values
        return list(flat.split(self.num_targets))


def plan_batch(
    targets: Sequence[Instances],
    *,
    num_classes: int,
    learn: bool,
    which: str,
    max_real_per_class: int,
    is_known: Tensor,
    relabel: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
) -> Plan:
    """Say what is to be done with a batch.

    Args:
        targets: on the CPU; for those on a device the host waits.
        num_classes: C.
        learn: whether its real instances are learnt from.
        which: are scored: "pasted", "real", "all" or "none".
        max_real_per_class: real instances of a class that are learnt from.
        is_known: (C,) bool, classes whose usual loss is known: one instance a step keeps it up to
            date.
        relabel: which of real instances of (R,) classes to relabel as what, for which slot
            (:meth:`~gal_d2.scoring.gradients.directions.GradientCache.counterfactuals`).
    """
    table, boxes = read_targets(targets, num_classes)
    wanted = {
        "pasted": table.pasted,
        "real": ~table.pasted,
        "all": torch.ones_like(table.pasted),
        "none": torch.zeros_like(table.pasted),
    }[which]
    if learn:
        table.learnt[choose_real(table, max_real_per_class)] = True
        table.compared[choose_real(table, 1)] = True
        unknown = ~is_known[table.gt_class.clamp(0, num_classes - 1)]
        table.compared[table.learnt & unknown] = True
    table.compared[wanted] = True
    target = (wanted | table.learnt).nonzero()[:, 0]
    place = torch.full((len(table),), -1, dtype=torch.int64)
    place[target] = torch.arange(len(target))
    rois, owner, local = rois_of(table, boxes, place)
    table = table[target]

    real = table.learnt.nonzero()[:, 0]
    row, as_class, slot = relabel(table.gt_class[real])
    region_of = torch.zeros(len(target), dtype=torch.int64)
    region_of[owner] = torch.arange(len(owner))
    return Plan(
        table=table,
        target=target,
        num_targets=[len(box) for box in boxes],
        wanted=wanted[target],
        boxes=rois,
        owner=owner,
        local=local,
        region=region_of[real][row],
        as_class=as_class,
        slot=slot,
        learn=learn,
    )


def read_targets(
    targets: Sequence[Instances], num_classes: int
) -> tuple[InstanceTable, list[Tensor]]:
    """All targets, with an ROI each that can have one; and their boxes, by image."""
    columns, boxes = [], []
    for image, target in enumerate(targets):
        n = len(target)
        nothing = torch.zeros(n, dtype=torch.int64)
        classes = target.gt_classes.cpu().long()
        box = target.gt_boxes.tensor.detach().cpu()
        source = target.instance_source.cpu() if target.has("instance_source") else nothing
        pool_id = target.pool_id.cpu() if target.has("pool_id") else nothing + NO_POOL_ID
        pasted = source == InstanceSource.PASTED
        usable = box.isfinite().all(1) & (box[:, 2:] > box[:, :2]).all(1)
        usable &= (classes >= 0) & (classes < num_classes)
        columns.append(
            InstanceTable(
                image=nothing + image,
                gt_class=classes,
                pasted=pasted,
                pool_id=pool_id.long(),
                num_rois=usable.long(),
                area=visible_area(target, pasted),
                learnt=torch.zeros(n, dtype=torch.bool),
                compared=torch.zeros(n, dtype=torch.bool),
            )
        )
        boxes.append(box)
    return InstanceTable.cat(columns), boxes


def choose_real(table: InstanceTable, most: int) -> Tensor:
    """(R,) rows of at most ``most`` real instances of each class, spread over the batch."""
    real = ((table.num_rois > 0) & ~table.pasted).nonzero()[:, 0].numpy()
    classes = table.gt_class.numpy()[real]
    chosen = [real[:0]]
    for c in np.unique(classes):
        mine = real[classes == c]
        chosen.append(mine[np.arange(most) * len(mine) // most] if len(mine) > most else mine)
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def rois_of(
    table: InstanceTable, boxes: list[Tensor], place: Tensor
) -> tuple[list[Boxes], Tensor, list[Tensor]]:
    """ROIs of the targets that have a ``place`` (-1: none) in a plan: their boxes.

    Returns:
        By image the boxes; (M,) whose they are; and by image the target of each.
    """
    rois, owner, local = [], [], []
    has_roi = (place >= 0) & (table.num_rois > 0)
    first = 0
    for box in boxes:
        here = slice(first, first + len(box))
        first += len(box)
        index = has_roi[here].nonzero()[:, 0]
        rois.append(Boxes(box[index]))
        owner.append(place[here][index])
        local.append(index)
    return rois, torch.cat(owner), local
