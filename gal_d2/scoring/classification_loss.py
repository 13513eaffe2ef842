"""The classification loss of each ROI under a box predictor, ours, detectron2's or another's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gal_d2.errors import UserError


def classification_loss(logits: Tensor, classes: Tensor, predictor: nn.Module) -> Tensor:
    """The loss of each ROI in a box predictor; see
    :class:`~gal_d2.scoring.roi_losses.BoxLoss` for which.

    Args:
        logits: (R, K + 1) float32.
        classes: (R,) int64 in [0, K], K meaning background.
        predictor: FastRCNNOutputLayers, the long-tail one, or one of a user.

    Returns:
        (R,) float32, in nats.

    Raises:
        UserError: its federated loss keeps the classes' weights where nobody knows.
    """
    own = getattr(predictor, "roi_losses", None)
    if own is not None:
        return own(logits, classes)
    if not getattr(predictor, "use_sigmoid_ce", False):
        return F.cross_entropy(logits, classes, reduction="none")
    num_classes = logits.shape[1] - 1
    logits = logits[:, :num_classes]
    target = F.one_hot(classes, num_classes + 1)[:, :num_classes].to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if getattr(predictor, "use_fed_loss", False):
        loss = loss * torch.maximum(target, federated_class_weights(predictor).to(logits))
    return loss.sum(1)


# Where a predictor keeps the weights of the classes, and how many of them a step's loss sees:
# ours and detectron2's after 0.6; CenterNet2's and Detic's.
_FEDERATED = (
    ("fed_loss_cls_weights", "fed_loss_num_classes"),
    ("freq_weight", "fed_loss_num_cat"),
)


def federated_class_weights(predictor: nn.Module) -> Tensor:
    """(C,) probability that federated loss draws a class as negative.

    As if it drew as many classes as its loss sees *with* replacement, in proportion to their
    weights.

    Raises:
        UserError: the predictor keeps neither under a known name.
    """
    for weights, number in _FEDERATED:
        frequency = getattr(predictor, weights, None)
        if frequency is not None and hasattr(predictor, number):
            frequency = frequency.float().reshape(-1)[: predictor.num_classes]
            return 1 - (1 - frequency / frequency.sum()) ** getattr(predictor, number)
    names = " or ".join(f"{weights} and {number}" for weights, number in _FEDERATED)
    raise UserError(
        f"The box predictor {type(predictor).__name__} has use_fed_loss but no {names}: give it a "
        "method roi_losses(logits, gt_classes) with the loss of each ROI (docs/your_model.md)."
    )
