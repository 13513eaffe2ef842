"""One pass of each head over all ROIs of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    compared, compared_boxes, compared_local = compared_regions(plan)
    owner, roi_class, as_class, region, class_there, rows, pasted, compared, *there = send_together(
        [
            plan.owner,
            classes[plan.owner],
            plan.as_class,
            torch.cat([torch.arange(own), plan.region]),
            classes,
            rows,
            table.pasted.nonzero()[:, 0],
            compared,
            *plan.local,
            *compared_local,
        ],
        device,
    )
    weights = [cache.direction_weights(head, classes) for head in cache.heads]
    weights = iter(send_together([t for w in weights for t in w.tensors()], device))
    rois, compared_rois = RoiBatch(plan.boxes), RoiBatch(compared_boxes)
    if gradients.need_masks(cache.heads):
        rois = RoiBatch(plan.boxes, masks_of(targets, plan.local, there[: len(targets)], device))
    if gradients.need_masks([head for head in gradients.heads if head not in cache.heads]):
        masks = masks_of(targets, compared_local, there[len(targets) :], device)
        compared_rois = RoiBatch(compared_boxes, masks)
    values, extra_norm, learnt = [], [], []
    probabilities = torch.zeros(0, cache.num_classes, device=device)
    for head in gradients.heads:
        contrast, backward = head in cache.contrast_heads, head in cache.heads
        if backward:
            result = gradients(
                head,
                features,
                rois,
                torch.cat([roi_class, as_class]) if contrast and extra else roi_class,
                region if contrast and extra else None,
            )
        else:
            result = gradients(head, features, compared_rois, roi_class[compared], backward=False)
            result = result.spread(compared, own)
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


def compared_regions(plan: Plan) -> tuple[Tensor, list[Boxes], list[Tensor]]:
    """The ROIs that heads without gradients are asked about.

    Returns:
        (R,) int64, which of the plan's they are; and by image their boxes and their targets, as
        :attr:`Plan.boxes` and :attr:`Plan.local`.
    """
    is_compared = plan.table.compared[plan.owner]
    by_image = is_compared.split([len(local) for local in plan.local])
    return (
        is_compared.nonzero()[:, 0],
        [boxes[here] for boxes, here in zip(plan.boxes, by_image, strict=True)],
        [local[here] for local, here in zip(plan.local, by_image, strict=True)],
    )


def masks_of(
    targets: Sequence[Instances],
    local: Sequence[Tensor],
    there: Sequence[Tensor],
    device: torch.device,
) -> list:
    """Per image, the masks of ROIs' targets.

    Args:
        targets: per image.
        local: per image, the target of each ROI; on the CPU.
        there: the same, on the device.
        device: that the masks shall be on.
    """
    masks = []
    for target, on_host, on_device in zip(targets, local, there, strict=True):
        if target.gt_masks.device == device:
            masks.append(target.gt_masks[on_device])
        else:
            masks.append(target.gt_masks[on_host].to(device, non_blocking=True))
    return masks
