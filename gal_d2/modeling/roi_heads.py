"""ROI heads that ask a judge which pasted instances may train them.

The long-tail box predictor takes the place of detectron2's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from gal_d2.modeling.long_tail_predictor import LongTailOutputLayers

Judge = Callable[[Mapping[str, Tensor], Sequence[Instances]], Sequence[Tensor]]
"""(feature maps, targets) -> per image (N,) bool: True for a target that must not train heads."""


class _JudgedROIHeads:
    """Mix-in: during training, ROIs of rejected targets are removed before any head's loss.

    They never turn into background: a proposal that matches a rejected target is left out of the
    sample altogether. The RPN has already been trained on all targets by then.

    Attributes:
        judge: asked once per training step; None accepts everything.
    """

    judge: Judge | None = None

    def forward(self, images, features, proposals, targets=None):
        if self.training and self.judge is not None:
            for target, rejected in zip(targets, self.judge(features, targets), strict=True):
                # The prefix makes label_and_sample_proposals hand it on to the proposals.
                target.gt_rejected = rejected
        return super().forward(images, features, proposals, targets)

    def label_and_sample_proposals(self, proposals, targets):
        sampled = super().label_and_sample_proposals(proposals, targets)
        return [without_rejected(p, self.num_classes) for p in sampled]


def without_rejected(proposals: Instances, num_classes: int) -> Instances:
    """Drop the foreground proposals whose field ``gt_rejected`` is True.

    Args:
        proposals: one image's, with ``gt_classes`` (``num_classes``: background) and, if the
            image has targets, ``gt_rejected``.
        num_classes: of the foreground.

    Returns:
        A subset without the field ``gt_rejected``.
    """
    if not proposals.has("gt_rejected"):
        return proposals
    dropped = proposals.gt_rejected & (proposals.gt_classes != num_classes)
    proposals.remove("gt_rejected")
    return proposals[~dropped] if dropped.any() else proposals


@ROI_HEADS_REGISTRY.register()
class GALROIHeads(_JudgedROIHeads, StandardROIHeads):
    """StandardROIHeads with a judge, and a predictor that knows sigmoid and federated loss."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = LongTailOutputLayers(cfg, ret["box_head"].output_shape)
        return ret


@ROI_HEADS_REGISTRY.register()
class GALCascadeROIHeads(_JudgedROIHeads, CascadeROIHeads):
    """CascadeROIHeads with a judge and the same predictor, at every stage."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictors"] = [
            LongTailOutputLayers(
                cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
            )
            for head, weights in zip(
                ret["box_heads"], cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS, strict=True
            )
        ]
        return ret

    @torch.no_grad()
    def _match_and_label_boxes(self, proposals, stage, targets):
        """After each stage boxes are matched anew: those that now match a rejected target go."""
        labelled = super()._match_and_label_boxes(proposals, stage, targets)
        kept = []
        for boxes, target in zip(labelled, targets, strict=True):
            if len(target) and target.has("gt_rejected"):
                quality = pairwise_iou(target.gt_boxes, boxes.proposal_boxes)
                matched, _ = self.proposal_matchers[stage](quality)
                boxes.gt_rejected = target.gt_rejected[matched]
            kept.append(without_rejected(boxes, self.num_classes))
        return kept
