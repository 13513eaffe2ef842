"""Tries whether the scorer can take the heads of a model apart, before anything is trained.

Heads of others compute as they like. What the scorer assumes about them is tried on two regions of
noise: that a head runs on pooled features, that its layers are called with their own weights, and
that its loss is the one that it is taken for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from gal_d2.errors import UserError
from gal_d2.scoring.classification_loss import classification_loss
from gal_d2.scoring.gradients.layer_capture import LayerCapture
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.roi_losses import HeadLoss, frozen_statistics
from gal_d2.scoring.rois import RoiBatch

logger = logging.getLogger(__name__)

# Of an image of this many pixels a side; as XYXY.
SIDE = 128
_BOXES = ((16.0, 16.0, 112.0, 112.0), (8.0, 24.0, 72.0, 104.0))
_TOLERANCE = 1e-3


def rehearse(gradients: ProjectedGradients, features: Mapping[str, Tensor]) -> None:
    """Try each head on two regions of one image; nothing of the model changes.

    Warns of layers that go without a score, and of a classification loss that is another one than
    the scorer takes it for.

    Args:
        gradients: of the model's heads.
        features: the feature maps of an image of ``SIDE`` x ``SIDE`` pixels, by name.

    Raises:
        UserError: a head cannot be taken apart; names its class and says why.
    """
    device = next(iter(features.values())).device
    boxes = torch.tensor(_BOXES, device=device)
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool, device=device)
    masks[:, 32:96, 32:64] = True
    rois = RoiBatch([Boxes(boxes)], [BitMasks(masks)])
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for name, loss in gradients.head_losses.items():
            _rehearse_head(name, loss, features, rois)


def _rehearse_head(
    name: str, loss: HeadLoss, features: Mapping[str, Tensor], rois: RoiBatch
) -> None:
    roi_heads, layers = loss.roi_heads, loss.layers()
    device = next(iter(features.values())).device
    classes = torch.tensor([0, roi_heads.num_classes - 1], device=device)
    classes_of = ", ".join(type(module).__name__ for module in loss.modules().values())
    label = f"The head '{name}' of {type(roi_heads).__name__} ({classes_of})"
    try:
        with frozen_statistics(list(loss.modules().values())):
            with torch.no_grad():
                pooled = loss.pool(features, rois)
            with torch.enable_grad(), LayerCapture(layers) as capture:
                losses, probabilities = loss.losses(
                    pooled, classes, rois, torch.arange(len(classes), device=device)
                )
    except UserError:
        raise
    except Exception as error:  # of code that is not ours
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{label} cannot be scored: {type(error).__name__}, {reason:.300}. Leave it out of "
            "GAL.SCORER.HEADS, or register a head loss for it (docs/your_model.md)."
        ) from error
    if losses.shape != classes.shape or not losses.requires_grad:
        raise UserError(
            f"{label} gives a loss of shape {tuple(losses.shape)} for {len(classes)} ROIs, or one "
            "without a gradient: it must give one number for each, not a mean."
        )
    expected = (len(classes), roi_heads.num_classes)
    if probabilities is not None and probabilities.shape != expected:
        raise UserError(
            f"{label} gives probabilities of shape {tuple(probabilities.shape)}, not {expected}, "
            "(ROIs, classes without the background): register a head loss for it "
            "(docs/your_model.md)."
        )
    called = {call.layer for call in capture.calls}
    silent = [
        f"{key} ({type(layer).__name__})" for key, layer in layers.items() if key not in called
    ]
    if not called:
        raise UserError(
            f"{label} calls none of its layers with its own weight ({', '.join(silent)}): leave it "
            "out of GAL.SCORER.HEADS."
        )
    if silent:
        logger.warning(
            "%s: the scorer leaves out %s, whose weight is not what is computed with.",
            label,
            ", ".join(silent),
        )
    for predictor in _predictors(loss):
        _compare_losses(predictor, pooled.new_tensor(_BOXES), roi_heads.num_classes)


def _predictors(loss: HeadLoss) -> list[nn.Module]:
    predictor = loss.modules().get("box_predictor")
    if predictor is None:
        return []
    return list(predictor) if isinstance(predictor, nn.ModuleList) else [predictor]


def _compare_losses(predictor: nn.Module, boxes: Tensor, num_classes: int) -> None:
    """Warn if the classification loss that the predictor trains on is not the one of its scores."""
    own = getattr(type(predictor), "losses", None)
    if own is FastRCNNOutputLayers.losses or getattr(predictor, "use_fed_loss", False):
        return  # as known; a federated loss draws classes at random
    logits = torch.randn(len(boxes), num_classes + 1, device=boxes.device)
    classes = torch.tensor([0, num_classes], device=boxes.device)  # the last is the background
    rois = Instances((SIDE, SIDE), proposal_boxes=Boxes(boxes), gt_boxes=Boxes(boxes))
    rois.gt_classes = classes
    rows = getattr(predictor, "bbox_pred", None)
    try:
        deltas = boxes.new_zeros(len(boxes), _num_deltas(rows, num_classes))
        with EventStorage(), torch.no_grad():
            trained = float(predictor.losses((logits, deltas), [rois])["loss_cls"])
    except Exception:  # it takes more than detectron2's; its loss cannot be looked at from here
        trained = float("nan")
    weight = getattr(predictor, "loss_weight", 1.0)
    weight = weight.get("loss_cls", 1.0) if isinstance(weight, Mapping) else float(weight)
    scored = weight * float(classification_loss(logits, classes, predictor).mean())
    if not abs(trained - scored) <= _TOLERANCE * abs(scored):
        logger.warning(
            "Scores take the classification loss of %s to be %s cross entropy, and it is another "
            "one, or could not be compared: give it a method roi_losses(logits, gt_classes) with "
            "the loss of each ROI (docs/your_model.md).",
            type(predictor).__name__,
            "sigmoid" if getattr(predictor, "use_sigmoid_ce", False) else "softmax",
        )


def _num_deltas(bbox_pred: nn.Module | None, num_classes: int) -> int:
    """Columns of the box deltas; the last linear layer has as many."""
    linear = [m for m in (bbox_pred.modules() if bbox_pred else ()) if isinstance(m, nn.Linear)]
    return linear[-1].out_features if linear else 4 * num_classes
