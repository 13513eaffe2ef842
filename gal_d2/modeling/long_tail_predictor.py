"""Box predictor with sigmoid cross entropy and federated loss, for long-tailed classes.

detectron2 has these two only after 0.6. The keys (``MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE``,
``USE_FED_LOSS`` ...) and their meaning are the same; here they work with every version.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import nn

from gal_d2.errors import UserError


class LongTailOutputLayers(FastRCNNOutputLayers):
    """FastRCNNOutputLayers with optional sigmoid classification and federated loss.

    Federated loss (Zhou et al. 2021, "Probabilistic two-stage detection", and LVIS's own
    federated annotation): at each step only the classes that occur and a random sample of others
    are penalised, so that the many images without a rare class do not drown it.

    Args:
        use_sigmoid_ce: one sigmoid per class in place of a softmax with background.
        use_fed_loss: sample the classes; needs ``use_sigmoid_ce``.
        fed_loss_num_classes: how many classes a step's loss sees, positives included.
        fed_loss_cls_weights: (K,) float, the probability (unnormalised) to sample each class, or a
            function that gives it. It is called when a loss first needs it: a model that only
            predicts does not ask for the training set that the numbers come from.
        others: as in FastRCNNOutputLayers.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        use_sigmoid_ce: bool = False,
        use_fed_loss: bool = False,
        fed_loss_num_classes: int = 50,
        fed_loss_cls_weights: torch.Tensor | Callable[[], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, **kwargs)
        if use_fed_loss and not use_sigmoid_ce:
            raise UserError(
                "MODEL.ROI_BOX_HEAD.USE_FED_LOSS is on without USE_SIGMOID_CE: set both to True."
            )
        self.use_sigmoid_ce = use_sigmoid_ce
        self.use_fed_loss = use_fed_loss
        self.fed_loss_num_classes = fed_loss_num_classes
        self._fed_loss_cls_weights = fed_loss_cls_weights
        if use_sigmoid_ce:  # a prior of 1 %: the many negatives do not swamp the first steps
            nn.init.constant_(self.cls_score.bias, -math.log((1 - 0.01) / 0.01))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        box_head = cfg.MODEL.ROI_BOX_HEAD
        ret = super().from_config(cfg, input_shape)
        ret.update(
            use_sigmoid_ce=box_head.USE_SIGMOID_CE,
            use_fed_loss=box_head.USE_FED_LOSS,
            fed_loss_num_classes=box_head.FED_LOSS_NUM_CLASSES,
        )
        # What detectron2 after 0.6 would look up itself.
        ret.pop("get_fed_loss_cls_weights", None)
        if box_head.USE_FED_LOSS:
            ret["fed_loss_cls_weights"] = functools.partial(
                class_sampling_weights,
                cfg.DATASETS.TRAIN[0],
                box_head.FED_LOSS_FREQ_WEIGHT_POWER,
            )
        return ret

    @property
    def fed_loss_cls_weights(self) -> torch.Tensor:
        """(K,) float on the predictor's device: probability (unnormalised) to sample each class."""
        weights = self._fed_loss_cls_weights
        if callable(weights):
            weights = weights()
        self._fed_loss_cls_weights = weights = weights.to(self.cls_score.weight.device)
        return weights

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """As in FastRCNNOutputLayers: ``loss_cls`` and ``loss_box_reg``, scalars."""
        if not self.use_sigmoid_ce:
            return super().losses(predictions, proposals)
        logits, deltas = predictions
        gt_classes = cat([p.gt_classes for p in proposals], dim=0)
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals], dim=0)
        # An image without targets has no gt_boxes; its rows are background and not looked at.
        gt_boxes = cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals],
            dim=0,
        )
        losses = {
            "loss_cls": self.sigmoid_cross_entropy(logits, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def sigmoid_cross_entropy(self, logits: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
        """Binary cross entropy, summed over (sampled) classes and averaged over ROIs.

        Args:
            logits: (R, K + 1); the last column, background, is not used.
            gt_classes: (R,) int64 in [0, K], K meaning background.
        """
        if logits.numel() == 0:
            return logits.sum() * 0.0
        num_rois, num_classes = len(gt_classes), self.num_classes
        target = F.one_hot(gt_classes, num_classes + 1)[:, :num_classes].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits[:, :num_classes], target, reduction="none")
        if self.use_fed_loss:
            loss = loss[:, self.sample_classes(gt_classes)]
        return loss.sum() / num_rois

    def sample_classes(self, gt_classes: torch.Tensor) -> torch.Tensor:
        """The classes that a step's loss sees: those in ``gt_classes``, and random others.

        Args:
            gt_classes: (R,) int64 in [0, K], K meaning background.

        Returns:
            int64 class indices, without duplicates.
        """
        present = torch.unique(gt_classes)
        present = present[present < self.num_classes]
        weights = self.fed_loss_cls_weights.clone()
        weights[present] = 0
        num_others = min(self.fed_loss_num_classes - len(present), int((weights > 0).sum()))
        if num_others <= 0:
            return present
        others = torch.multinomial(weights, num_others, replacement=False)
        return torch.cat([present, others])

    def predict_probs(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[torch.Tensor, ...]:
        """Class probabilities per image, (Ri, K + 1); with sigmoids the last column is unused."""
        if not self.use_sigmoid_ce:
            return super().predict_probs(predictions, proposals)
        return predictions[0].sigmoid().split([len(p) for p in proposals], dim=0)


def class_sampling_weights(dataset_name: str, power: float) -> torch.Tensor:
    """(K,) float weights ``image_count ** power`` of a registered data set's classes.

    Raises:
        UserError: the image counts are not known.
    """
    counts = getattr(MetadataCatalog.get(dataset_name), "class_image_count", None)
    if counts is None:
        raise UserError(
            f"MODEL.ROI_BOX_HEAD.USE_FED_LOSS is on, but the data set '{dataset_name}' "
            "(DATASETS.TRAIN) has no image counts: give it in LVIS format, or turn the loss off."
        )
    by_id = sorted(counts, key=lambda category: category["id"])
    return torch.tensor([c["image_count"] for c in by_id], dtype=torch.float32) ** power
