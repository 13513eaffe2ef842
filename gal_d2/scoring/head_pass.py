"""One pass of each head over all ROIs of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from gal_d2.scoring.exchange import send_together
from gal_d2.scoring.gradients.averages import DirectionWeights
from gal_d2.scoring.gradients.directions import GradientCache
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients, sum_by_instance
from gal_d2.scoring.plan import Plan
from gal_d2.scoring.rois import RoiBatch
from gal_d2.scoring.rows import Rows


def ask_heads(
    plan: Plan,
    features: Mapping[str, Tensor],
    targets: Sequence[Instances],
    *,
    gradients: ProjectedGradients,
    cache: GradientCache,
) -> Rows:
    """Ask the heads what was planned; nothing here waits for the device.

    Args:
        plan: of these targets.
        features: the feature maps that the ROI heads get, by name.
        targets: per image; their masks are looked at where a head needs them.
        gradients: of the heads.
        cache: of the heads whose gradients are taken.
    """
    device = next(iter(features.values())).device
    if cache.device != device:  # detectron2 moves a model after it has built it
        cache.to(device)
    features = gradients.full_precision(features)
    table, n, own, extra = plan.table, len(plan.table), len(plan.owner), len(plan.as_class)
    one_roi_each = torch.equal(plan.owner, torch.arange(n))
    classes = table.gt_class.clamp(0, cache.num_classes - 1)
    rows = torch.cat([table.learnt.nonzero()[:, 0], n + torch.arange(extra)])
    every, compared = Regions.all_of(plan), Regions.compared_in(plan)
    owner, roi_class, as_class, region, class_there, rows, pasted, index, *local = send_together(
        [
            plan.owner,
            classes[plan.owner],
            plan.as_class,
            torch.cat([torch.arange(own), plan.region]),
            classes,
            rows,
            table.pasted.nonzero()[:, 0],
            compared.index,
            *every.local,
            *compared.local,
        ],
        device,
    )
    weights = [cache.direction_weights(head, classes) for head in cache.heads]
    weights = iter(send_together([t for w in weights for t in w.tensors()], device))
    loss_only = [head for head in gradients.heads if head not in cache.heads]
    is_partial = bool(loss_only) and len(compared.index) < own
    needed = gradients.need_masks(cache.heads if is_partial else None)
    rois = every.batch(targets, local[: len(targets)] if needed else None, device)
    if is_partial:
        needed = gradients.need_masks(loss_only)
        compared_rois = compared.batch(targets, local[len(targets) :] if needed else None, device)
    values, extra_norm, learnt = [], [], []
    probabilities = torch.zeros(0, cache.num_classes, device=device)
    for head in gradients.heads:
        contrast, backward = head in cache.contrast_heads, head in cache.heads
        if not backward and is_partial:
            result = gradients(head, features, compared_rois, roi_class[index], backward=False)
            result = result.spread(index, own)
        else:
            result = gradients(
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
        products = cache.products(head, class_there, direction, gradient[:n])
        values += [loss, norm[:n], *products]
        if contrast:
            extra_norm.append(norm[n:])
        learnt.append(gradient.index_select(0, rows if contrast else rows[: len(rows) - extra]))
    return Rows(
        torch.stack(values).view(len(gradients.heads), 5, n),
        torch.stack(extra_norm) if extra_norm else values[0][:0],
        probabilities,
        learnt,
    )


@dataclass(frozen=True)
class Regions:
    """Some of the M ROIs of a plan; on the CPU.

    Attributes:
        index: (R,) int64, which.
        boxes: by image, theirs.
        local: by image, (R_i,) int64, the target of each.
    """

    index: Tensor
    boxes: list[Boxes]
    local: list[Tensor]

    @classmethod
    def all_of(cls, plan: Plan) -> Regions:
        return cls(torch.arange(len(plan.owner)), plan.boxes, plan.local)

    @classmethod
    def compared_in(cls, plan: Plan) -> Regions:
        """Those that heads without gradients are asked about."""
        is_compared = plan.table.compared[plan.owner]
        by_image = is_compared.split([len(local) for local in plan.local])
        return cls(
            is_compared.nonzero()[:, 0],
            [boxes[here] for boxes, here in zip(plan.boxes, by_image, strict=True)],
            [local[here] for local, here in zip(plan.local, by_image, strict=True)],
        )

    def batch(
        self, targets: Sequence[Instances], local: Sequence[Tensor] | None, device: torch.device
    ) -> RoiBatch:
        """As heads want them.

        Args:
            targets: per image.
            local: as in ``self``, on the device; None: no head needs masks.
            device: that the masks shall be on.
        """
        if local is None:
            return RoiBatch(self.boxes)
        masks = []
        for target, here, there in zip(targets, self.local, local, strict=True):
            if target.gt_masks.device == device:
                masks.append(target.gt_masks[there])
            else:
                masks.append(target.gt_masks[here].to(device, non_blocking=True))
        return RoiBatch(self.boxes, masks)
