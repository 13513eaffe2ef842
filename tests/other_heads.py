"""Detectors as other projects write them: heads, predictors and a mask head that are not ours.

Written for the tests, after what such projects do: arguments of their own in ``forward``, their own
federated loss and names for it, masks that the head pools itself, several predictors, a classifier
that normalises its weight.
"""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY, ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

NUM_FEDERATED = 3


class FederatedPredictor(FastRCNNOutputLayers):
    """Sigmoids and a federated loss under names of its own; regresses in two layers."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, **kwargs) -> None:
        super().__init__(input_shape, **kwargs)
        self.use_sigmoid_ce = self.use_fed_loss = True
        self.register_buffer("freq_weight", torch.arange(1.0, self.num_classes + 1))
        self.fed_loss_num_cat = NUM_FEDERATED
        size = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        self.bbox_pred = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 4))
        nn.init.normal_(self.bbox_pred[-1].weight, std=0.001)

    def forward(self, x: Tensor, prompt: object = None):
        return super().forward(x)

    def losses(self, predictions, proposals, prompt: object = None):
        logits, deltas = predictions
        classes = cat([p.gt_classes for p in proposals])
        target = torch.zeros_like(logits)
        target[range(len(classes)), classes] = 1  # -1, a rejected object's, would be the background
        seen = torch.unique(classes)
        others = torch.multinomial(self.freq_weight, NUM_FEDERATED)
        seen = torch.unique(torch.cat([seen[seen < self.num_classes], others]))
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, seen].sum()
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        gt_boxes = cat([p.gt_boxes.tensor for p in proposals])
        return {
            "loss_cls": loss / max(len(classes), 1),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, classes),
        }

    def predict_probs(self, predictions, proposals):
        return predictions[0].sigmoid().split([len(p) for p in proposals])


@ROI_HEADS_REGISTRY.register()
class PromptedCascade(CascadeROIHeads):
    """A cascade whose steps take an argument more, with a predictor of its own at each stage."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        ret["box_predictors"] = [
            FederatedPredictor(cfg, head.output_shape, box2box_transform=Box2BoxTransform(w))
            for head, w in zip(ret["box_heads"], weights, strict=True)
        ]
        return ret

    def forward(self, images, features, proposals, targets=None, ann_type="none", prompt=None):
        self.prompts = (ann_type, prompt)
        if not self.training:
            return super().forward(images, features, proposals)
        proposals = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(features, proposals, targets, prompt=prompt)
        losses.update(self._forward_mask(features, proposals))
        return proposals, losses

    def _forward_box(self, features, proposals, targets=None, prompt=None):
        levels = [features[name] for name in self.box_in_features]
        sizes = [p.image_size for p in proposals]
        outputs, boxes = [], []
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                logits = [p.objectness_logits for p in proposals]
                proposals = self._create_proposals_from_boxes(boxes, sizes, logits)
                proposals = self._match_and_label_boxes(proposals, stage, targets)
            predictions = self._run_stage(levels, proposals, stage, prompt)
            boxes = self.box_predictor[stage].predict_boxes(predictions, proposals)
            outputs.append((self.box_predictor[stage], predictions, proposals))
        return {
            f"{name}_stage{stage}": loss
            for stage, (predictor, predictions, rois) in enumerate(outputs)
            for name, loss in predictor.losses(predictions, rois, prompt=prompt).items()
        }

    def _run_stage(self, features, proposals, stage, prompt=None):
        pooled = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        pooled = _ScaleGradient.apply(pooled, 1.0 / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](pooled), prompt)

    def _create_proposals_from_boxes(self, boxes, image_sizes, logits):
        proposals = []
        for box, size, logit in zip(boxes, image_sizes, logits, strict=True):
            box = Boxes(box.detach())
            box.clip(size)
            proposals.append(Instances(size, proposal_boxes=box, objectness_logits=logit))
        return proposals


@ROI_HEADS_REGISTRY.register()
class RematchingHeads(StandardROIHeads):
    """Its box loss is on boxes that it matches in a way of its own."""

    def forward(self, images, features, proposals, targets=None):
        sampled = self.label_and_sample_proposals(proposals, targets)
        for rois, target in zip(sampled, targets, strict=True):
            best = pairwise_iou(target.gt_boxes, rois.proposal_boxes).argmax(dim=0)
            rois.gt_classes = target.gt_classes[best]
        return sampled, self._forward_box(features, sampled)


class SumOfPredictors(nn.ModuleList):
    """Two predictors on the same features; their losses add up."""

    def forward(self, x: Tensor):
        return [predictor(x) for predictor in self]

    def losses(self, predictions, proposals):
        return {
            f"{name}_{k}": loss
            for k, predictor in enumerate(self)
            for name, loss in predictor.losses(predictions[k], proposals).items()
        }


@ROI_HEADS_REGISTRY.register()
class TwoPredictorHeads(StandardROIHeads):
    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        shape = ret["box_head"].output_shape
        ret["box_predictor"] = SumOfPredictors(
            [FastRCNNOutputLayers(cfg, shape), FederatedPredictor(cfg, shape)]
        )
        return ret


class FocalPredictor(FastRCNNOutputLayers):
    """A loss that the scorer cannot know; with ``roi_losses`` it is told."""

    def losses(self, predictions, proposals):
        classes = cat([p.gt_classes for p in proposals])
        losses = super().losses(predictions, proposals)
        return {**losses, "loss_cls": focal_losses(predictions[0], classes).mean()}


class TellingFocalPredictor(FocalPredictor):
    def roi_losses(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        return focal_losses(logits, gt_classes)


def focal_losses(logits: Tensor, classes: Tensor) -> Tensor:
    """(R,) softmax focal loss with gamma 2."""
    loss = F.cross_entropy(logits, classes, reduction="none")
    return (1 - (-loss).exp()) ** 2 * loss


class SecretiveFederatedPredictor(FastRCNNOutputLayers):
    """A federated loss whose weights nobody finds."""

    use_sigmoid_ce = use_fed_loss = True


class NormalisedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 20 * F.linear(F.normalize(x), F.normalize(self.weight))


class CosinePredictor(FastRCNNOutputLayers):
    """Computes with another weight than its parameter."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, **kwargs) -> None:
        super().__init__(input_shape, **kwargs)
        size = self.cls_score.in_features
        self.cls_score = NormalisedLinear(size, self.num_classes + 1, bias=False)


class WithoutBackground(FastRCNNOutputLayers):
    """One logit too few for what detectron2's predictors give."""

    def forward(self, x: Tensor):
        logits, deltas = super().forward(x)
        return logits[:, :-1], deltas


@ROI_MASK_HEAD_REGISTRY.register()
class PointMaskHead(nn.Module):
    """A mask head that gets the whole feature maps (``ROI_MASK_HEAD.POOLER_TYPE`` empty).

    It pools one level itself, predicts a coarse mask with fully connected layers, and refines it at
    points.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self.level = cfg.MODEL.ROI_HEADS.IN_FEATURES[0]
        shape = input_shape[self.level]
        self.pooler = ROIPooler(8, (1.0 / shape.stride,), 0, "ROIAlignV2")
        self.num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        self.reduce = nn.Conv2d(shape.channels, 8, kernel_size=2, stride=2)
        self.fc = nn.Linear(8 * 16, 16)
        self.coarse = nn.Linear(16, self.num_classes * 49)
        self.point = nn.Conv1d(shape.channels, self.num_classes, kernel_size=1)

    def coarse_logits(self, pooled: Tensor) -> Tensor:
        """(R, C, 8, 8) pooled features -> (R, num_classes, 7, 7)."""
        hidden = F.relu(self.fc(F.relu(self.reduce(pooled)).flatten(1)))
        return self.coarse(hidden).view(-1, self.num_classes, 7, 7)

    def forward(self, features: dict[str, Tensor], instances: list[Instances]):
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        logits = self.coarse_logits(self.pooler([features[self.level]], boxes))
        if not self.training:
            return instances
        return {"loss_mask": mask_rcnn_loss(logits, instances)}


def federated_probabilities(predictor: FederatedPredictor) -> Tensor:
    """(C,) that a class is among the drawn ones, as if drawn with replacement; written out."""
    weights = predictor.freq_weight.tolist()
    return torch.tensor(
        [1 - math.pow(1 - weight / sum(weights), NUM_FEDERATED) for weight in weights]
    )
