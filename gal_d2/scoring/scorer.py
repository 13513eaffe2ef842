"""Scores pasted instances against what real instances of their class teach, as a detector trains.

The facade of :mod:`gal_d2.scoring`: for an instance with projected gradient g under its class c,

    phi   = sum over heads of <mean raw gradient of real instances of c, g>
    score = sum over heads of w_h cos(d(c, h), g_h) - v_h z(loss_h)

with d the cached direction (:mod:`gal_d2.scoring.gradients.directions`) and z by how much the loss
exceeds what is usual among recent real instances of c, 0 where it does not: an easy instance is no
better than a usual one. An object that is not what it claims to be shows in the cosine of the box
head, an image of poor quality in the loss of the mask head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from gal_d2.copy_paste.fields import NO_POOL_ID, InstanceSource
from gal_d2.copy_paste.masks import visible_area
from gal_d2.distributed import is_distributed
from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.exchange import (
    Exchange,
    HostCopy,
    PackedExchange,
    as_floats,
    as_integers,
    send_together,
)
from gal_d2.scoring.gradients.directions import REAL, CacheRows, DirectionWeights, GradientCache
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients, sum_by_instance
from gal_d2.scoring.non_finite import NonFiniteReport
from gal_d2.scoring.reference_window import ReferenceWindow
from gal_d2.scoring.rois import RoiBatch

# A loss further above the usual than this says no more; the unit is that of a standard deviation.
_MAX_EXCESS = 5.0
_LEAST_NORM = 1e-12


def loss_key(head: str) -> str:
    """Key of the window of real instances' losses of a head."""
    return f"loss/{head}"


@dataclass(frozen=True)
class _Table:
    """N instances, on the CPU; of a batch image by image."""

    image: Tensor
    gt_class: Tensor
    pasted: Tensor
    pool_id: Tensor
    num_rois: Tensor
    area: Tensor  # of the pasted ones; NaN for the others
    learnt: Tensor  # whether it is a real one to learn from

    WIDTH: ClassVar[int] = 7

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Tensor | slice) -> _Table:
        return _Table(*(column[rows] for column in self._columns()))

    def _columns(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    @classmethod
    def cat(cls, tables: Sequence[_Table]) -> _Table:
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
    def unpack(cls, packed: Tensor) -> _Table:
        columns = list(packed.view(cls.WIDTH, -1))
        columns[5] = columns[5].contiguous().view(torch.float64).float()
        columns[2], columns[6] = columns[2].bool(), columns[6].bool()
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

    table: _Table
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


@dataclass(frozen=True)
class _Rows:
    """What H heads say of a plan's instances; on the device.

    Attributes:
        values: (H, 5, N): the loss (a sum over ROIs), the norm of the gradient, its product with
            the direction, the direction's norm, and its product with the sum of real gradients.
            Of a head without gradients, five times the loss.
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
class _Part:
    """What of one process's rows all processes know; on the CPU. As in Plan and _Rows."""

    table: _Table
    as_class: Tensor
    slot: Tensor
    values: Tensor
    extra_norm: Tensor
    probabilities: Tensor


@dataclass(frozen=True)
class Begun:
    """A step that a device is computing; :meth:`ContributionScorer.finish` takes it.

    Attributes:
        plans: of the batch, and of the probe if there is one; ``image_ids``: theirs.
        exchange: of their rows.
    """

    plans: list[Plan]
    image_ids: list[Sequence | None]
    exchange: Exchange


@dataclass(frozen=True)
class RealBatch:
    """Images with real instances to learn from; arguments of :meth:`ContributionScorer.update`."""

    features: Mapping[str, Tensor]
    targets: Sequence[Instances]
    image_ids: Sequence | None = None


class ContributionScorer:
    """Scores the pasted instances of a batch and learns from its real ones.

    Every instance is scored on one ROI, its ground-truth box. The heads' training state is left as
    it is, and nothing here belongs to the model's parameters, buffers or ``state_dict``.

    :meth:`step` and :meth:`update` exchange rows between processes: each process calls them at each
    step, also with a batch without instances.

    Args:
        roi_heads: ``StandardROIHeads`` or a subclass such as ``CascadeROIHeads``.
        heads: what to score on: ``"box"``, ``"mask"``, or what a user registered
            (:mod:`gal_d2.scoring.roi_losses`).
        gradient_heads: those of them whose gradients are taken; None: all. Another has a loss, but
            no cosine and no part in phi.
        score_weights: w, weight of each head's cosine; a head that is not named has 0. None: 1 for
            the box head, or for the only head.
        loss_weights: v, weight of each head's excess loss. None: 0.1 for the box head, 0.2 for the
            mask head.
        projection: k, rows of each layer's two random matrices; None for full gradients.
        seed: of the random matrices.
        bias: also the gradients of biases.
        class_groups: (C,) frequency group of each class, 0 rare, 1 common, 2 frequent; None: one
            group.
        momentum, shrinkage, num_partners, partner_every, by_layer: of the
            :class:`~gal_d2.scoring.gradients.directions.GradientCache`.
        contrast_heads: heads with a contrast. None: those that classify, of ours the box head,
            whose rows are cheap.
        max_real_per_class: real instances of a class that a process learns from in a step.
        max_counterfactuals: relabelled real instances in a step and process.
        reference_size: recent real instances kept per class, to compare with.
        reference_min: instances from which on a class is compared with its own alone.

    Raises:
        UserError: a head that the model does not have, or an option out of range.
    """

    def __init__(
        self,
        roi_heads: nn.Module,
        *,
        heads: Sequence[str] = ("box", "mask"),
        gradient_heads: Sequence[str] | None = None,
        score_weights: Mapping[str, float] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        projection: int | None = 16,
        seed: int = 0,
        bias: bool = False,
        class_groups: Tensor | None = None,
        momentum: float = 0.98,
        shrinkage: float = 2.0,
        num_partners: int = 4,
        partner_every: int = 50,
        by_layer: bool = False,
        contrast_heads: Sequence[str] | None = None,
        max_real_per_class: int = 4,
        max_counterfactuals: int = 64,
        reference_size: int = 64,
        reference_min: int = 16,
    ) -> None:
        self.gradients = ProjectedGradients(roi_heads, heads, k=projection, seed=seed, bias=bias)
        self.num_classes = roi_heads.num_classes
        wanted = self.heads if gradient_heads is None else gradient_heads
        self.gradient_heads = tuple(head for head in self.heads if head in wanted)
        self.score_weights = self._weights("SCORE_WEIGHTS", score_weights, {"box": 1.0})
        if score_weights is None and len(self.heads) == 1:
            self.score_weights = {self.heads[0]: 1.0}
        self.loss_weights = self._weights("LOSS_WEIGHTS", loss_weights, {"box": 0.1, "mask": 0.2})
        if max_real_per_class < 1:
            raise ValueError(f"max_real_per_class is {max_real_per_class}: set it to at least 1.")
        self.max_real_per_class, self.max_counterfactuals = max_real_per_class, max_counterfactuals
        if contrast_heads is None:
            contrast_heads = [
                head for head in self.gradients.classifying_heads if head in self.gradient_heads
            ]
        for name, named in (
            ("contrast_heads", contrast_heads),
            ("score_weights", self.score_weights),
        ):
            unknown = [head for head in named if head not in self.gradient_heads]
            if unknown:
                raise ValueError(f"{name} has {unknown}, gradient_heads are {self.gradient_heads}")
        if class_groups is None:
            class_groups = torch.zeros(self.num_classes, dtype=torch.int64)
        layouts = self.gradients.layouts
        self.cache = GradientCache(
            {
                head: [part.stop - part.start for part in layout.slices.values()]
                for head, layout in layouts.items()
                if head in self.gradient_heads
            },
            self.num_classes,
            class_groups=class_groups,
            momentum=momentum,
            shrinkage=shrinkage,
            num_partners=num_partners,
            contrast_heads=contrast_heads,
            partner_every=partner_every,
            by_layer=by_layer,
            signature=self.gradients.signature(),
            device=next(roi_heads.parameters()).device,
        )
        self._contrast_heads = tuple(h for h in self.heads if h in self.cache.contrast_heads)
        self.reference = {
            key: ReferenceWindow(class_groups, size=reference_size, n_min=reference_min)
            for key in map(loss_key, self.heads)
        }
        self._exchange = PackedExchange()
        self.non_finite = NonFiniteReport()

    @property
    def heads(self) -> tuple[str, ...]:
        return self.gradients.heads

    def _known(self, key: str, heads: Sequence[str]) -> Sequence[str]:
        for head in heads:
            if head not in self.heads:
                raise UserError(
                    f"GAL.SCORER.{key} names '{head}', but GAL.SCORER.HEADS has "
                    f"{', '.join(self.heads)}: name one of these."
                )
        return heads

    def _weights(self, key: str, weights: Mapping[str, float] | None, default: dict) -> dict:
        if weights is None:
            return {head: weight for head, weight in default.items() if head in self.heads}
        self._known(key, list(weights))
        return {head: float(weight) for head, weight in weights.items() if weight != 0}

    # -- What a training step calls

    def step(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
        *,
        probe: RealBatch | None = None,
    ) -> Contribution:
        """Score the pasted instances, then learn from the real ones, in one pass of each head.

        A collective call. The scores do not see this batch's real instances: the state of the step
        before is what pasted and real ones alike are compared with.

        Args:
            features: the feature maps that the ROI heads get, by name; gradients never reach them.
            targets: per image, on any device; ``gt_boxes``, ``gt_classes``, ``gt_masks`` (for the
                mask head), ``instance_source`` (``InstanceSource``; all real without it) and
                ``pool_id``.
            image_ids: per image, its name in warnings; its position in the batch without it.
            probe: other images to learn from in place of this batch's, in a pass of their own.

        Returns:
            A row per pasted instance, image by image, in the order of the targets; on the CPU.
        """
        plan = self.plan(targets, learn=probe is None)
        contribution, _ = self.finish(self.begin(plan, features, targets, image_ids, probe))
        return contribution

    def score(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
        *,
        which: str = "pasted",
    ) -> Contribution:
        """Score without learning; no communication. Arguments as for :meth:`step`.

        Args:
            which: ``"pasted"``, ``"real"`` or ``"all"``.
        """
        plan = self.plan(targets, learn=False, which=which)
        rows = self._run(plan, features, targets)
        values = HostCopy(rows.values).get()
        self._report(plan.table, values, image_ids)
        return self._contribution(plan.table, values)[plan.wanted]

    def update(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
    ) -> None:
        """Learn from the real instances without scoring; a collective call."""
        plan = self.plan(targets, learn=True, which="none")
        self.finish(self.begin(plan, features, targets, image_ids))

    # -- A step in three parts, so that nobody waits

    def plan(
        self,
        targets: Sequence[Instances],
        *,
        learn: bool,
        which: str = "pasted",
    ) -> Plan:
        """Say what is to be done with a batch.

        Args:
            targets: as for :meth:`step`, on the CPU; for those on a device the host waits.
            learn: whether its real instances are learnt from.
            which: as for :meth:`score`; ``"none"`` scores nothing.
        """
        table, boxes = self._table(targets)
        wanted = {
            "pasted": table.pasted,
            "real": ~table.pasted,
            "all": torch.ones_like(table.pasted),
            "none": torch.zeros_like(table.pasted),
        }[which]
        if learn:
            table.learnt[self._choose_real(table)] = True
        target = (wanted | table.learnt).nonzero()[:, 0]
        place = torch.full((len(table),), -1, dtype=torch.int64)
        place[target] = torch.arange(len(target))
        rois, owner, local = self._rois(table, boxes, place)
        table = table[target]

        real = table.learnt.nonzero()[:, 0]
        row, as_class, slot = self.cache.counterfactuals(
            table.gt_class[real], self.max_counterfactuals
        )
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

    def begin(
        self,
        plan: Plan,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
        probe: RealBatch | None = None,
    ) -> Begun:
        """Have the device compute what was planned; a collective call.

        Args:
            plan: of this batch, made after the step before was finished.
            features, targets, image_ids, probe: as for :meth:`step`.
        """
        plans, rows = [plan], [self._run(plan, features, targets)]
        if probe is not None:
            plans.append(self.plan(probe.targets, learn=True, which="none"))
            rows.append(self._run(plans[1], probe.features, probe.targets))
        table, learning = _Table.cat([p.table for p in plans]), plans[-1]
        counts = [len(table), len(learning.as_class), len(rows[0].probabilities)]
        known = [torch.tensor(counts), table.pack(), learning.as_class, learning.slot]
        values = torch.cat([r.values for r in rows], dim=2) if probe else rows[0].values
        return Begun(
            plans,
            [image_ids, probe.image_ids if probe else None],
            self._exchange.start(
                as_floats(torch.cat(known)),
                [values, rows[-1].extra_norm, rows[0].probabilities],
                rows[-1].learnt,
            ),
        )

    def finish(self, begun: Begun) -> tuple[Contribution, Contribution]:
        """Wait for what was begun, and learn from it; a collective call.

        Returns:
            As :meth:`step`; and the rows of the pasted instances of all processes, rank by rank.
        """
        small, large = begun.exchange.get()
        parts = [self._unpack(part) for part in small]
        table = _Table.cat([part.table for part in parts])
        values = torch.cat([part.values for part in parts], dim=2)
        rank = dist.get_rank() if is_distributed() else 0
        first = start = sum(len(part.table) for part in parts[:rank])
        for plan, image_ids in zip(begun.plans, begun.image_ids, strict=False):
            own = slice(start, start + len(plan.table))
            self._report(table[own], values[:, :, own], image_ids)
            start = own.stop
        contribution = self._contribution(table, values)
        if begun.plans[-1].learn:
            self._learn(parts, large, table, contribution)
        plan = begun.plans[0]
        own = contribution[first : first + len(plan.table)]
        return own[plan.wanted], contribution[table.pasted]

    # -- From targets to a plan

    def _table(self, targets: Sequence[Instances]) -> tuple[_Table, list[Tensor]]:
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
            usable &= (classes >= 0) & (classes < self.num_classes)
            columns.append(
                _Table(
                    image=nothing + image,
                    gt_class=classes,
                    pasted=pasted,
                    pool_id=pool_id.long(),
                    num_rois=usable.long(),
                    area=visible_area(target, pasted),
                    learnt=torch.zeros(n, dtype=torch.bool),
                )
            )
            boxes.append(box)
        return _Table.cat(columns), boxes

    def _choose_real(self, table: _Table) -> Tensor:
        """At most ``max_real_per_class`` real instances of each class, spread over the batch."""
        real = ((table.num_rois > 0) & ~table.pasted).nonzero()[:, 0].numpy()
        classes = table.gt_class.numpy()[real]
        chosen = [real[:0]]
        for c in np.unique(classes):
            mine, most = real[classes == c], self.max_real_per_class
            chosen.append(mine[np.arange(most) * len(mine) // most] if len(mine) > most else mine)
        return torch.from_numpy(np.sort(np.concatenate(chosen)))

    def _rois(
        self, table: _Table, boxes: list[Tensor], place: Tensor
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

    # -- From a plan to the heads

    def _run(
        self, plan: Plan, features: Mapping[str, Tensor], targets: Sequence[Instances]
    ) -> _Rows:
        """Ask the heads; nothing here waits for the device."""
        device = next(iter(features.values())).device
        if self.cache.device != device:  # detectron2 moves a model after it has built it
            self.cache.to(device)
        features = self.gradients.full_precision(features)
        table, n, own, extra = plan.table, len(plan.table), len(plan.owner), len(plan.as_class)
        one_roi_each = torch.equal(plan.owner, torch.arange(n))
        classes = table.gt_class.clamp(0, self.num_classes - 1)
        rows = torch.cat([table.learnt.nonzero()[:, 0], n + torch.arange(extra)])
        owner, roi_class, as_class, region, class_there, rows, pasted, *local = send_together(
            [
                plan.owner,
                classes[plan.owner],
                plan.as_class,
                torch.cat([torch.arange(own), plan.region]),
                classes,
                rows,
                table.pasted.nonzero()[:, 0],
                *plan.local,
            ],
            device,
        )
        weights = [self.cache.direction_weights(head, classes) for head in self.gradient_heads]
        weights = iter(send_together([t for w in weights for t in w.tensors()], device))
        rois = RoiBatch(plan.boxes, self._masks(plan, targets, local, device))
        values, extra_norm, learnt = [], [], []
        probabilities = torch.zeros(0, self.num_classes, device=device)
        for head in self.heads:
            contrast, backward = head in self._contrast_heads, head in self.gradient_heads
            result = self.gradients(
                head,
                features,
                rois,
                torch.cat([roi_class, as_class]) if contrast and extra else roi_class,
                region if contrast and extra else None,
                backward=backward,
            )
            gradient, loss, share = result.gradient, result.loss[:own], result.probabilities
            if not one_roi_each:
                loss = sum_by_instance(loss, owner, n)
                share = None if share is None else sum_by_instance(share[:own], owner, n)
                if backward:
                    summed = sum_by_instance(gradient[:own], owner, n)
                    gradient = torch.cat([summed, gradient[own:]])
            if share is not None:
                probabilities = share.index_select(0, pasted)
            if not backward:
                values += [loss] * 5
                continue
            norm = torch.linalg.vector_norm(gradient, dim=1)
            direction = DirectionWeights(next(weights), next(weights), next(weights))
            products = self.cache.products(head, class_there, direction, gradient[:n])
            values += [loss, norm[:n], *products]
            if contrast:
                extra_norm.append(norm[n:])
            learnt.append(gradient.index_select(0, rows if contrast else rows[: len(rows) - extra]))
        return _Rows(
            torch.stack(values).view(len(self.heads), 5, n),
            torch.stack(extra_norm) if extra_norm else values[0][:0],
            probabilities,
            learnt,
        )

    def _masks(
        self,
        plan: Plan,
        targets: Sequence[Instances],
        local: list[Tensor],
        device: torch.device,
    ) -> list | None:
        """Per image, the masks of the ROIs' targets; None where no head asks for them."""
        if not self.gradients.need_masks:
            return None
        masks = []
        for target, here, there in zip(targets, plan.local, local, strict=True):
            if target.gt_masks.device == device:
                masks.append(target.gt_masks[there])
            else:
                masks.append(target.gt_masks[here].to(device, non_blocking=True))
        return masks

    # -- From what the heads say to scores; on the CPU

    def _unpack(self, part: Tensor) -> _Part:
        """What a process sent."""
        n, extra, pasted = as_integers(part[:6]).tolist()
        numbers = 2 * (_Table.WIDTH * n + 2 * extra)
        integers = as_integers(part[6 : 6 + numbers])
        table, as_class, slot = integers.split([_Table.WIDTH * n, extra, extra])
        heads, contrasts = len(self.heads), len(self._contrast_heads)
        values, extra_norm, probabilities = part[6 + numbers :].split(
            [heads * 5 * n, contrasts * extra, pasted * self.num_classes]
        )
        return _Part(
            _Table.unpack(table),
            as_class,
            slot,
            values.view(heads, 5, n),
            extra_norm.view(contrasts, extra),
            probabilities.view(pasted, self.num_classes),
        )

    def _report(self, table: _Table, values: Tensor, image_ids: Sequence | None) -> None:
        """Name what is not finite."""
        images = table.image.tolist()
        names = images if image_ids is None else [image_ids[image] for image in images]
        for head, (loss, norm, *_) in zip(self.heads, values, strict=True):
            bad_loss = (table.num_rois > 0) & ~loss.isfinite()
            bad_gradient = (table.num_rois > 0) & ~norm.isfinite() & ~bad_loss
            for what, bad in (("loss", bad_loss), ("gradient", bad_gradient)):
                self.non_finite.add(f"{what} of the {head} head", bad, names, table.pool_id)

    def _contribution(self, table: _Table, values: Tensor) -> Contribution:
        classes = table.gt_class.clamp(0, self.num_classes - 1)
        phi, score = torch.zeros(len(table)), torch.zeros(len(table))
        head_score, head_loss = {}, {}
        for head, (loss, norm, along, direction_norm, raw) in zip(self.heads, values, strict=True):
            missing = (table.num_rois == 0) | ~loss.isfinite() | ~norm.isfinite()
            head_loss[head] = (loss / table.num_rois).masked_fill(missing, torch.nan)
            if head not in self.gradient_heads:
                head_score[head] = torch.full_like(loss, torch.nan)
                continue
            raw_factor = self.cache.raw_factor(head, classes).masked_fill(missing, torch.nan)
            phi += raw * raw_factor
            cosine = along / (direction_norm * norm).clamp(min=_LEAST_NORM)
            head_score[head] = cosine.masked_fill(
                raw_factor.isnan() | (direction_norm < _LEAST_NORM), torch.nan
            )
        for head, weight in self.score_weights.items():
            score += weight * head_score[head]
        for head, weight in self.loss_weights.items():
            if weight:
                score -= weight * self._excess(head, classes, head_loss[head])
        return Contribution(
            pool_id=table.pool_id,
            image_index=table.image,
            gt_class=table.gt_class,
            phi=phi,
            score=score,
            head_score=head_score,
            head_loss=head_loss,
            num_rois=table.num_rois,
            area=table.area,
        )

    def _excess(self, head: str, classes: Tensor, loss: Tensor) -> Tensor:
        """(N,) loss above the median of recent real instances of the class, over half the distance
        of their 16th and 84th percentile (a standard deviation, were they normal); 0 below it."""
        low, median, high = self.reference[loss_key(head)].quantiles(classes, (0.16, 0.5, 0.84))
        # A class whose few instances happen to agree is no reason to divide by almost nothing.
        spread = torch.maximum((high - low) / 2, 0.05 * median.abs()).clamp(min=1e-6)
        return ((loss - median) / spread).clamp(0, _MAX_EXCESS)

    # -- Learning

    def _learn(
        self, parts: list[_Part], large: list, table: _Table, contribution: Contribution
    ) -> None:
        """Let directions, windows and confusions follow what all processes found."""
        blocks = [self._by_head(part, rows) for part, rows in zip(parts, large, strict=True)]
        cache_rows = {}
        for number, head in enumerate(self.gradient_heads):
            h = self.heads.index(head)
            classes, slots, norms = [], [], []
            for part in parts:
                learnt = part.table.learnt
                classes.append(part.table.gt_class[learnt])
                slots.append(torch.full_like(classes[-1], REAL))
                norms.append(part.values[h, 1][learnt])
                if head in self._contrast_heads:
                    classes.append(part.as_class)
                    slots.append(part.slot)
                    norms.append(part.extra_norm[self._contrast_heads.index(head)])
            gradients = [block[number] for block in blocks]
            cache_rows[head] = CacheRows(
                gradients[0] if len(gradients) == 1 else torch.cat(gradients),
                *(torch.cat(columns) for columns in (classes, slots, norms)),
            )
        self.cache.update(cache_rows, self._candidates(parts))
        of_real = contribution[table.learnt]
        for head, loss in of_real.head_loss.items():
            self.reference[loss_key(head)].add_gathered(of_real.gt_class, loss)

    @staticmethod
    def _candidates(parts: list[_Part]) -> tuple[Tensor, Tensor] | None:
        """(P,) classes and (P, C) class probabilities of the pasted instances."""
        classes, probabilities = [], []
        for part in parts:
            if len(part.probabilities):
                pasted = part.table[part.table.pasted]
                classes.append(pasted.gt_class)
                probabilities.append(part.probabilities / pasted.num_rois[:, None])
        return (torch.cat(classes), torch.cat(probabilities)) if classes else None

    def _by_head(self, part: _Part, rows: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
        """(R, D) gradients by head that has some, of one process."""
        if not isinstance(rows, Tensor):
            return rows
        sizes = [self.gradients.layouts[head].size for head in self.gradient_heads]
        real = int(part.table.learnt.sum())
        counts = [
            real + len(part.slot) * (head in self._contrast_heads) for head in self.gradient_heads
        ]
        split = rows.split([c * size for c, size in zip(counts, sizes, strict=True)])
        return [block.view(-1, size) for block, size in zip(split, sizes, strict=True)]

    # -- Checkpoints

    def state_dict(self) -> dict:
        return {
            "cache": self.cache.state_dict(),
            "reference": {key: window.state_dict() for key, window in self.reference.items()},
        }

    def load_state_dict(self, state: Mapping | None) -> bool:
        """Restore; True if it could be. Otherwise says why in one sentence and starts fresh."""
        state = state or {}
        if not self.cache.load_state_dict(state.get("cache")):
            return False
        for key, window in self.reference.items():
            window.load_state_dict(state["reference"].get(key, {}))
        return True
