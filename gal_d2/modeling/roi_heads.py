"""ROI heads that ask a judge which pasted instances may train them.

The long-tail box predictor takes the place of detectron2's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor, nn

from gal_d2.modeling.long_tail_predictor import LongTailOutputLayers

Judge = Callable[
    [Mapping[str, Tensor], Sequence[Instances], Sequence[Instances]], Sequence[Tensor] | None
]
"""(feature maps, targets, the RPN's proposals) -> per image (N,) bool on the CPU: True for a target
that must not train the heads. None: there is none."""


@dataclass(frozen=True)
class ClassifiedRois:
    """What a stage of the box head says of R sampled ROIs, image by image.

    Attributes:
        predictor: of the stage.
        logits: (R, K + 1).
        gt_classes: (R,) int64 in [0, K], K meaning background.
        image: (R,) int64, position of the image in the batch.
        target: (R,) int64, the target of that image that the ROI is matched to; -1: background.
    """

    predictor: nn.Module
    logits: Tensor
    gt_classes: Tensor
    image: Tensor
    target: Tensor


IGNORED = -1
"""Class of a target that no ROI may be sampled for; detectron2's sampling leaves it out."""


class _JudgedROIHeads:
    """Mix-in: during training, proposals that match rejected targets are ignored.

    They are neither foreground nor background, and they take no place: ROIs are sampled from the
    other proposals, as many as ever. The RPN has already been trained on all targets by then.

    Attributes:
        judge: asked once per training step; None accepts everything.
    """

    judge: Judge | None = None

    def forward(self, images, features, proposals, targets=None):
        if self.training and self.judge is not None:
            rejected = self.judge(features, targets, proposals)
            if rejected is not None:
                targets = [ignoring(t, mask) for t, mask in zip(targets, rejected, strict=True)]
        return super().forward(images, features, proposals, targets)

    def classify(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Instances],
        targets: Sequence[Instances],
        seeds: Sequence[int],
    ) -> list[ClassifiedRois]:
        """Classify ROIs that are sampled as for training; gradients reach ``features``.

        Args:
            features: feature maps by name.
            proposals: per image, of the RPN.
            targets: per image; they are not changed.
            seeds: per image, of its sample of ROIs, so that this does not depend on which images
                share a batch. torch's global generators are left seeded.

        Returns:
            One entry a stage: one, or as many as the cascade has.
        """
        targets = [_with_index(target) for target in targets]
        sampled = []
        for proposal, target, seed in zip(proposals, targets, seeds, strict=True):
            torch.manual_seed(seed)
            sampled += self.label_and_sample_proposals([proposal], [target])
        levels = [features[name] for name in self.box_in_features]
        return [
            ClassifiedRois(
                predictor,
                logits,
                gt_classes=torch.cat([p.gt_classes for p in rois]),
                image=torch.cat([torch.full_like(p.gt_classes, i) for i, p in enumerate(rois)]),
                target=torch.cat([_matched_target(p, self.num_classes) for p in rois]),
            )
            for predictor, logits, rois in self._stages(levels, sampled, targets)
        ]

    def _stages(
        self, levels: list[Tensor], sampled: list[Instances], targets: list[Instances]
    ) -> Iterator[tuple[nn.Module, Tensor, list[Instances]]]:
        """Predictor, logits and ROIs of each stage."""
        pooled = self.box_pooler(levels, [p.proposal_boxes for p in sampled])
        yield self.box_predictor, self.box_predictor(self.box_head(pooled))[0], sampled


def _with_index(target: Instances) -> Instances:
    """The same target, with a field that label_and_sample_proposals hands on to the proposals."""
    target = Instances(target.image_size, **target.get_fields())
    target.gt_index = torch.arange(len(target), device=target.gt_classes.device)
    return target


def _matched_target(rois: Instances, num_classes: int) -> Tensor:
    if not rois.has("gt_index"):  # an image without targets
        return torch.full_like(rois.gt_classes, -1)
    return rois.gt_index.masked_fill(rois.gt_classes == num_classes, -1)


def ignoring(target: Instances, rejected: Tensor) -> Instances:
    """The same target with the class ``IGNORED`` where ``rejected`` (N,) bool is True."""
    if not rejected.any():
        return target
    target = Instances(target.image_size, **target.get_fields())
    rejected = rejected.to(target.gt_classes.device, non_blocking=True)
    target.gt_classes = target.gt_classes.masked_fill(rejected, IGNORED)
    return target


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

    def _stages(self, levels, sampled, targets):
        sizes = [p.image_size for p in sampled]
        boxes = None
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                sampled = self._create_proposals_from_boxes(boxes, sizes)
                sampled = self._match_and_label_boxes(sampled, stage, targets)
            predictions = self._run_stage(levels, sampled, stage)
            boxes = predictor.predict_boxes(predictions, sampled)
            yield predictor, predictions[0], sampled

    @torch.no_grad()
    def _match_and_label_boxes(self, proposals, stage, targets):
        """After each stage boxes are matched anew: those that now match an ignored target go."""
        labelled = super()._match_and_label_boxes(proposals, stage, targets)
        kept = []
        for boxes, target in zip(labelled, targets, strict=True):
            if len(target) and target.has("gt_index"):
                quality = pairwise_iou(target.gt_boxes, boxes.proposal_boxes)
                matched, _ = self.proposal_matchers[stage](quality)
                boxes.gt_index = target.gt_index[matched]
            ignored = boxes.gt_classes == IGNORED
            kept.append(boxes[~ignored] if ignored.any() else boxes)
        return kept
