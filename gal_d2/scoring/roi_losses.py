"""The heads of detectron2's ROI heads, by name, with one loss per ROI.

detectron2's own losses average over ROIs; here nothing is averaged over them, and no ROI sees
another. Loss weights of the model are left out. A head is run on pooled features that carry no
gradient.

A further head is a class of a user's file, decorated with :func:`register_head_loss`;
docs/your_model.md has one.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.scoring.classification_loss import classification_loss
from gal_d2.scoring.gradients.layer_capture import can_select_channels, find_layers
from gal_d2.scoring.rois import RoiBatch, crop_masks, pool_boxes

HEAD_LOSS_REGISTRY = Registry("HEAD_LOSS")
HEAD_LOSS_REGISTRY.__doc__ = "Subclasses of :class:`HeadLoss` by the name in ``GAL.SCORER.HEADS``."


class HeadLoss(ABC):
    """A head with a loss per ROI.

    Attributes:
        name: what ``GAL.SCORER.HEADS`` calls it.
        classifies: whether its loss tells classes apart; then its direction is contrasted with
            those of similar classes.
        needs_masks: whether it looks at :attr:`RoiBatch.masks`, which cost something to select.
        fair_loss: of a head that does not classify, up to which a cut-out fits what real objects
            taught it; NaN: not known, and then the draw stays as narrow as ``GAL.POOL.BEST``.
    """

    name: str
    classifies: bool = False
    needs_masks: bool = False
    fair_loss: float = math.nan

    def __init__(self, roi_heads: nn.Module) -> None:
        self.roi_heads = roi_heads

    @classmethod
    @abstractmethod
    def obstacle(cls, roi_heads: nn.Module) -> str | None:
        """Why the head of this model cannot be scored, as part of a sentence; None if it can."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The modules of the head, by their name in ``roi_heads``."""

    @abstractmethod
    def layers(self) -> dict[str, nn.Module]:
        """The layers whose gradient counts, by their name in ``roi_heads``."""

    def class_channels(self) -> str | None:
        """Name of a layer of which the loss sees only the output channel of a row's class."""
        return None

    def feature_names(self) -> Sequence[str]:
        """The feature maps that it pools from; none: it may ask for any."""
        return ()

    @abstractmethod
    def pool(self, features: Mapping[str, Tensor], rois: RoiBatch) -> Tensor:
        """(M, C, H, W) features of the regions."""

    @abstractmethod
    def losses(
        self, pooled: Tensor, classes: Tensor, rois: RoiBatch, index: Tensor | slice
    ) -> tuple[Tensor, Tensor | None]:
        """The loss of R rows; a row is a region under a class.

        Args:
            pooled: (R, C, H, W), features of region ``index[r]``.
            classes: (R,) int64 in [0, num_classes).
            rois: all M regions.
            index: (R,) int64, the region of each row, or a slice of all: row r is of region r.

        Returns:
            (R,) float32 loss in nats; and (R, num_classes) probabilities of the classes, or None
            if the head does not classify.
        """


def register_head_loss(cls: type[HeadLoss]) -> type[HeadLoss]:
    """Class decorator: make a head known under its ``name``."""
    HEAD_LOSS_REGISTRY._do_register(cls.name, cls)
    return cls


def layers_below(
    modules: Mapping[str, nn.Module], skip: tuple[str, ...] = ()
) -> dict[str, nn.Module]:
    """The layers of modules that gradients can be taken of, by their name in ``roi_heads``.

    Args:
        modules: by their name in ``roi_heads``.
        skip: child names; what is in or below a child of such a name is left out.
    """
    layers = {}
    for prefix, module in modules.items():
        for name, layer in find_layers(module, skip).items():
            layers[f"{prefix}.{name}" if name else prefix] = layer
    return layers


@register_head_loss
class MaskLoss(HeadLoss):
    """Binary cross entropy, mean over the pixels of the ROI, of the channel of the class.

    A class-agnostic head has one channel: then the loss does not depend on the class.
    """

    name = "mask"
    needs_masks = True
    fair_loss = 0.45  # knowing nothing costs ln 2 = 0.69

    @classmethod
    def obstacle(cls, roi_heads: nn.Module) -> str | None:
        head = getattr(roi_heads, "mask_head", None)
        if head is None:
            return "there is no mask_head (MODEL.MASK_ON)"
        if not callable(getattr(head, "layers", None)):
            return (
                f"its mask head {type(head).__name__} has no method `layers`, pooled features -> "
                "logits"
            )
        if getattr(roi_heads, "mask_pooler", None) is None:
            return f"its mask head {type(head).__name__} pools features itself"
        return None

    def modules(self) -> dict[str, nn.Module]:
        return {"mask_head": self.roi_heads.mask_head}

    def layers(self) -> dict[str, nn.Module]:
        return layers_below(self.modules())

    def class_channels(self) -> str | None:
        head = self.roi_heads.mask_head
        # A subclass may do more with the channels than to pick one.
        if getattr(type(head), "layers", None) is not MaskRCNNConvUpsampleHead.layers:
            return None
        name, last = list(head.named_children())[-1]
        if can_select_channels(last) and last.out_channels == self.roi_heads.num_classes > 1:
            return f"mask_head.{name}"
        return None

    def feature_names(self) -> Sequence[str]:
        return self.roi_heads.mask_in_features

    def pool(self, features: Mapping[str, Tensor], rois: RoiBatch) -> Tensor:
        return pool_boxes(self.roi_heads.mask_pooler, self.feature_names(), features, rois)

    def losses(self, pooled, classes, rois, index):
        # One channel: the head is class-agnostic, or only that of the class was computed.
        logits = self.roi_heads.mask_head.layers(pooled).float()
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        else:
            logits = logits[torch.arange(len(logits), device=logits.device), classes]
        targets = crop_masks(rois, logits.shape[-1], logits.device)
        targets = targets[index]
        loss = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
        return loss.flatten(1).mean(1), None


@register_head_loss
class BoxLoss(HeadLoss):
    """Classification loss of the box head; for a cascade the sum over the stages.

    Softmax cross entropy, or binary cross entropy summed over the classes where the predictor has
    ``use_sigmoid_ce``. Federated loss draws the classes that count as negative at random; a score
    must not depend on a draw, so each class has its probability of being drawn as weight (that
    loss's expectation, up to drawing without replacement).

    Box regression is left out: its target at a ground-truth box is zero, whatever the object is.
    All stages of a cascade see the ground-truth box. Where several predictors share one head, their
    losses add up, too.

    A predictor may supply its loss: a method ``roi_losses(logits, gt_classes) -> (R,)``, with
    logits the first (or only) output of its ``forward`` and (R,) int64 classes in [0, K], K meaning
    background. No ROI's loss may depend on another ROI or on a random draw.
    """

    name = "box"
    classifies = True
    _REGRESSION = ("bbox_pred",)

    @classmethod
    def obstacle(cls, roi_heads: nn.Module) -> str | None:
        missing = [
            a for a in ("box_pooler", "box_head", "box_predictor") if not hasattr(roi_heads, a)
        ]
        return f"there is no {' and no '.join(missing)}" if missing else None

    def _stages(self) -> list[tuple[nn.Module, nn.Module]]:
        head, predictor = self.roi_heads.box_head, self.roi_heads.box_predictor
        if not isinstance(predictor, nn.ModuleList):
            return [(head, predictor)]
        heads = head if isinstance(head, nn.ModuleList) else [head] * len(predictor)
        return list(zip(heads, predictor, strict=True))

    def modules(self) -> dict[str, nn.Module]:
        return {"box_head": self.roi_heads.box_head, "box_predictor": self.roi_heads.box_predictor}

    def layers(self) -> dict[str, nn.Module]:
        return layers_below(self.modules(), skip=self._REGRESSION)

    def feature_names(self) -> Sequence[str]:
        return self.roi_heads.box_in_features

    def pool(self, features: Mapping[str, Tensor], rois: RoiBatch) -> Tensor:
        return pool_boxes(self.roi_heads.box_pooler, self.feature_names(), features, rois)

    def losses(self, pooled, classes, rois, index):
        losses, probabilities = [], []
        for head, predictor in self._stages():
            predictions = predictor(head(pooled))
            logits = predictions if isinstance(predictions, Tensor) else predictions[0]
            logits = logits.float()
            if logits.shape[1] != self.roi_heads.num_classes + 1:
                raise UserError(
                    f"The box predictor {type(predictor).__name__} gives {logits.shape[1]} logits "
                    f"for {self.roi_heads.num_classes} classes: give one for each and one for the "
                    "background, or register a head loss (docs/your_model.md)."
                )
            losses.append(classification_loss(logits, classes, predictor))
            is_sigmoid = getattr(predictor, "use_sigmoid_ce", False)
            stage = logits.detach().sigmoid() if is_sigmoid else logits.detach().softmax(1)
            probabilities.append(stage[:, : self.roi_heads.num_classes])
        if len(losses) == 1:
            return losses[0], probabilities[0]
        return torch.stack(losses).sum(0), torch.stack(probabilities).mean(0)


def build_head_losses(roi_heads: nn.Module, names: Sequence[str]) -> dict[str, HeadLoss]:
    """The named heads of a model.

    Raises:
        UserError: no name, the same name twice, or a name that this model does not have.
    """
    obstacles = {name: cls.obstacle(roi_heads) for name, cls in sorted(HEAD_LOSS_REGISTRY)}
    listed = ", ".join(name for name, why in obstacles.items() if why is None) or "none"
    if not names:
        raise UserError(f"GAL.SCORER.HEADS is empty: name at least one of {listed}.")
    for name in names:
        why = obstacles.get(name, "no head loss of that name is registered")
        if why is not None:
            raise UserError(
                f"GAL.SCORER.HEADS names '{name}', but {why}. The heads of "
                f"{type(roi_heads).__name__} that can be scored are: {listed}. Leave it out, with "
                "its entries in SCORE_WEIGHTS and LOSS_WEIGHTS, or register a head loss "
                "(docs/your_model.md)."
            )
    if len(set(names)) != len(names):
        raise UserError(f"GAL.SCORER.HEADS names a head twice: {list(names)}; name each once.")
    return {name: HEAD_LOSS_REGISTRY.get(name)(roi_heads) for name in names}


@contextlib.contextmanager
def frozen_statistics(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, norms use and keep their running statistics and dropout is off."""
    flags = [(child, child.training) for module in modules for child in module.modules()]
    try:
        for child, _ in flags:
            child.training = False
        yield
    finally:
        for child, training in flags:
            child.training = training
