"""ROIs to score pasted instances on that are proposals, not their ground-truth boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

Matcher = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(M targets, N boxes) IoU -> (N,) matched target, (N,) label: 1 foreground, 0 background, -1."""


def sample_proposals(
    proposals: Sequence[Instances],
    targets: Sequence[Instances],
    matcher: Matcher,
    *,
    most: int,
    append_gt: bool = True,
    generator: torch.Generator | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Of each target's foreground proposals, at most ``most`` at random.

    Args:
        proposals: per image, with ``proposal_boxes``.
        targets: per image, with ``gt_boxes``.
        matcher: of the ROI heads: whether and to which target a proposal belongs.
        most: ROIs of a target.
        append_gt: the ground-truth boxes are among the proposals, as in detectron2's training; a
            target then has at least one ROI.
        generator: of the choice, on the CPU.

    Returns:
        Per image, (P, 4) XYXY boxes and (P,) int64, the target that each belongs to: what
        ``ContributionScorer.score`` takes.
    """
    chosen = []
    for proposal, target in zip(proposals, targets, strict=True):
        boxes = proposal.proposal_boxes.tensor.detach()
        if append_gt:
            boxes = torch.cat([boxes, target.gt_boxes.tensor.to(boxes)])
        matched, labels = matcher(pairwise_iou(target.gt_boxes, Boxes(boxes)))
        foreground = (labels == 1).nonzero()[:, 0] if len(target) else labels[:0].long()
        # In random order, then by target: the first `most` of each are a random sample.
        order = torch.randperm(len(foreground), generator=generator).to(foreground.device)
        shuffled = foreground[order]
        shuffled = shuffled[matched[shuffled].argsort(stable=True)]
        owner = matched[shuffled]
        rank = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
        keep = rank < most
        chosen.append((boxes[shuffled[keep]], owner[keep]))
    return chosen
