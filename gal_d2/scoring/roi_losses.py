"""The heads of detectron2's ROI heads, by name, with one loss per ROI.

detectron2's own losses average over ROIs; here nothing is averaged over them, and no ROI sees
another. Loss weights of the model are left out. A head is run on pooled features that carry no
gradient.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from torch import Tensor, nn
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.scoring.exchange import send
from gal_d2.scoring.layer_capture import can_select_channels, find_layers


@dataclass(frozen=True)
class RoiBatch:
    """Regions to score, image by image.

    Attributes:
        boxes: per image, (M_i, 4) XYXY in pixels of the network's input; with boxes on the CPU the
            host never waits for a device.
        masks: per image, the M_i ground-truth masks (of the whole image); only the mask head
            needs them.
    """

    boxes: list[Boxes]
    masks: list[BitMasks | PolygonMasks] | None = None
    _sorted: dict[tuple, _SortedRois] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return sum(len(boxes) for boxes in self.boxes)

    def pool(self, pooler: nn.Module, levels: list[Tensor]) -> Tensor:
        """(M, C, H, W) features of the regions, as the pooler has them.

        detectron2's pooler asks its device which boxes belong to which level; this sorts them
        before. Heads that pool from the same levels share that.
        """
        if not isinstance(pooler, ROIPooler):
            return pooler(levels, self.boxes)
        device = levels[0].device
        key = pooler.min_level, pooler.max_level, pooler.canonical_level, device
        key += (pooler.canonical_box_size,)
        if key not in self._sorted:
            self._sorted[key] = self._sort(pooler, device)
        rois = self._sorted[key]
        pooled = torch.cat(
            [
                pool(level, boxes)
                for pool, level, boxes in zip(
                    pooler.level_poolers, levels, rois.boxes.split(rois.counts), strict=True
                )
                if len(boxes)
            ]
        )
        return pooled if rois.place is None else pooled.index_select(0, rois.place)

    def _sort(self, pooler: ROIPooler, device: torch.device) -> _SortedRois:
        boxes = torch.cat([b.tensor for b in self.boxes])
        images = [boxes.new_full((len(b), 1), i) for i, b in enumerate(self.boxes)]
        rois = torch.cat([torch.cat(images), boxes], dim=1)
        level = assign_boxes_to_levels(
            self.boxes,
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        order = level.argsort(stable=True)
        counts = torch.bincount(level, minlength=len(pooler.level_poolers)).tolist()
        is_sorted = bool((level[1:] >= level[:-1]).all())
        place = None if is_sorted else send(order.argsort(), device)
        return _SortedRois(send(rois[order], device), counts, place)


@dataclass(frozen=True)
class _SortedRois:
    """Regions by level: (M, 5) image and XYXY, how many in each, and (M,) where each one is now
    (None: where it was)."""

    boxes: Tensor
    counts: list[int]
    place: Tensor | None


class HeadLoss(ABC):
    """A head with a loss per ROI. ``name`` is what ``GAL.SCORER.HEADS`` calls it."""

    name: str

    def __init__(self, roi_heads: nn.Module) -> None:
        self.roi_heads = roi_heads

    @classmethod
    @abstractmethod
    def available(cls, roi_heads: nn.Module) -> bool:
        """Does the model have this head?"""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The modules of the head, by their name in ``roi_heads``."""

    @abstractmethod
    def layers(self) -> dict[str, nn.Module]:
        """The layers whose gradient counts, by their name in ``roi_heads``."""

    def class_channels(self) -> str | None:
        """Name of a layer of which the loss sees only the output channel of a row's class."""
        return None

    @abstractmethod
    def feature_names(self) -> Sequence[str]:
        """The feature maps that it pools from."""

    @abstractmethod
    def pool(self, features: Mapping[str, Tensor], rois: RoiBatch) -> Tensor:
        """(M, C, H, W) features of the regions."""

    @abstractmethod
    def losses(
        self, pooled: Tensor, classes: Tensor, rois: RoiBatch, index: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The loss of R rows; a row is a region under a class.

        Args:
            pooled: (R, C, H, W), features of region ``index[r]``.
            classes: (R,) int64 in [0, num_classes).
            rois: all M regions.
            index: (R,) int64, the region of each row; None: row r is of region r.

        Returns:
            (R,) float32 loss in nats; and (R, num_classes) probabilities of the classes, or None
            if the head does not classify.
        """


def _layers_below(modules: Mapping[str, nn.Module], skip: tuple[str, ...] = ()):
    layers = {}
    for prefix, module in modules.items():
        for name, layer in find_layers(module, skip).items():
            layers[f"{prefix}.{name}" if name else prefix] = layer
    return layers


def _pool(pooler, names: Sequence[str], features: Mapping[str, Tensor], rois: RoiBatch) -> Tensor:
    # Half-precision feature maps would make the pooler round the boxes to half precision too.
    return rois.pool(pooler, [features[name].detach().float() for name in names])


def crop_masks(rois: RoiBatch, size: int, device: torch.device) -> Tensor:
    """(M, size, size) bool: of each region, what of it its mask covers.

    As ``BitMasks.crop_and_resize``, with one copy of boxes to the device for all images.
    """
    if not all(isinstance(masks, BitMasks) for masks in rois.masks):
        parts = [
            masks.crop_and_resize(boxes.tensor, size)
            for masks, boxes in zip(rois.masks, rois.boxes, strict=True)
            if len(boxes)
        ]
        return torch.cat(parts).to(device)
    first = torch.cat([torch.arange(len(boxes)) for boxes in rois.boxes])
    boxes = torch.cat([boxes.tensor for boxes in rois.boxes])
    boxes = send(torch.cat([first.to(boxes)[:, None], boxes], dim=1), device)
    align = ROIAlign((size, size), 1.0, 0, aligned=True)
    parts = [
        align(masks.tensor.float()[:, None], of_image)[:, 0]
        for masks, of_image in zip(
            rois.masks, boxes.split([len(b) for b in rois.boxes]), strict=True
        )
        if len(of_image)
    ]
    return torch.cat(parts) >= 0.5


class MaskLoss(HeadLoss):
    """Binary cross entropy, mean over the pixels of the ROI, of the channel of the class.

    A class-agnostic head has one channel: then the loss does not depend on the class.
    """

    name = "mask"

    @classmethod
    def available(cls, roi_heads: nn.Module) -> bool:
        head = getattr(roi_heads, "mask_head", None)
        return hasattr(head, "layers") and getattr(roi_heads, "mask_pooler", None) is not None

    def modules(self) -> dict[str, nn.Module]:
        return {"mask_head": self.roi_heads.mask_head}

    def layers(self) -> dict[str, nn.Module]:
        return _layers_below(self.modules())

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
        return _pool(self.roi_heads.mask_pooler, self.feature_names(), features, rois)

    def losses(self, pooled, classes, rois, index):
        # One channel: the head is class-agnostic, or only that of the class was computed.
        logits = self.roi_heads.mask_head.layers(pooled).float()
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        else:
            logits = logits[torch.arange(len(logits), device=logits.device), classes]
        targets = crop_masks(rois, logits.shape[-1], logits.device)
        if index is not None:
            targets = targets.index_select(0, index)
        loss = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
        return loss.flatten(1).mean(1), None


class BoxLoss(HeadLoss):
    """Classification loss of the box head; for a cascade the sum over the stages.

    Softmax cross entropy, or binary cross entropy summed over the classes where the predictor has
    ``use_sigmoid_ce``. Federated loss draws the classes that count as negative at random; a score
    must not depend on a draw, so each class has its probability of being drawn as weight (that
    loss's expectation, up to drawing without replacement).

    Box regression is left out: its target at a ground-truth box is zero, whatever the object is.
    All stages of a cascade see the ground-truth box.
    """

    name = "box"
    _REGRESSION = ("bbox_pred",)

    @classmethod
    def available(cls, roi_heads: nn.Module) -> bool:
        return all(hasattr(roi_heads, a) for a in ("box_pooler", "box_head", "box_predictor"))

    def _stages(self) -> list[tuple[nn.Module, nn.Module]]:
        head, predictor = self.roi_heads.box_head, self.roi_heads.box_predictor
        if isinstance(predictor, nn.ModuleList):
            return list(zip(head, predictor, strict=True))
        return [(head, predictor)]

    def modules(self) -> dict[str, nn.Module]:
        return {"box_head": self.roi_heads.box_head, "box_predictor": self.roi_heads.box_predictor}

    def layers(self) -> dict[str, nn.Module]:
        return _layers_below(self.modules(), skip=self._REGRESSION)

    def feature_names(self) -> Sequence[str]:
        return self.roi_heads.box_in_features

    def pool(self, features: Mapping[str, Tensor], rois: RoiBatch) -> Tensor:
        return _pool(self.roi_heads.box_pooler, self.feature_names(), features, rois)

    def losses(self, pooled, classes, rois, index):
        losses, probabilities = [], []
        for head, predictor in self._stages():
            predictions = predictor(head(pooled))
            logits = predictions if isinstance(predictions, Tensor) else predictions[0]
            logits = logits.float()
            losses.append(classification_loss(logits, classes, predictor))
            is_sigmoid = getattr(predictor, "use_sigmoid_ce", False)
            stage = logits.detach().sigmoid() if is_sigmoid else logits.detach().softmax(1)
            probabilities.append(stage[:, : self.roi_heads.num_classes])
        if len(losses) == 1:
            return losses[0], probabilities[0]
        return torch.stack(losses).sum(0), torch.stack(probabilities).mean(0)


def classification_loss(logits: Tensor, classes: Tensor, predictor: nn.Module) -> Tensor:
    """The loss of each ROI in a box predictor; see :class:`BoxLoss` for which.

    Args:
        logits: (R, K + 1) float32.
        classes: (R,) int64 in [0, K], K meaning background.
        predictor: FastRCNNOutputLayers or the long-tail one.

    Returns:
        (R,) float32, in nats.
    """
    if not getattr(predictor, "use_sigmoid_ce", False):
        return F.cross_entropy(logits, classes, reduction="none")
    num_classes = logits.shape[1] - 1
    logits = logits[:, :num_classes]
    target = F.one_hot(classes, num_classes + 1)[:, :num_classes].to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if getattr(predictor, "use_fed_loss", False):
        loss = loss * torch.maximum(target, federated_class_weights(predictor).to(logits))
    return loss.sum(1)


def federated_class_weights(predictor: nn.Module) -> Tensor:
    """(C,) probability that federated loss draws a class as negative.

    As if it drew ``fed_loss_num_classes`` times *with* replacement, in proportion to
    ``fed_loss_cls_weights``.
    """
    frequency = predictor.fed_loss_cls_weights.float()
    share = frequency[: predictor.num_classes] / frequency[: predictor.num_classes].sum()
    return 1 - (1 - share) ** predictor.fed_loss_num_classes


HEAD_LOSSES: dict[str, type[HeadLoss]] = {cls.name: cls for cls in (BoxLoss, MaskLoss)}


def build_head_losses(roi_heads: nn.Module, names: Sequence[str]) -> dict[str, HeadLoss]:
    """The named heads of a model.

    Raises:
        UserError: no name, the same name twice, or a name that this model does not have.
    """
    known = [name for name, cls in HEAD_LOSSES.items() if cls.available(roi_heads)]
    listed = ", ".join(known) or "none"
    if not names:
        raise UserError(f"GAL.SCORER.HEADS is empty: name at least one of {listed}.")
    for name in names:
        if name not in known:
            raise UserError(
                f"GAL.SCORER.HEADS names '{name}', but the heads of {type(roi_heads).__name__} "
                f"that can be scored are: {listed}."
            )
    if len(set(names)) != len(names):
        raise UserError(f"GAL.SCORER.HEADS names a head twice: {list(names)}; name each once.")
    return {name: HEAD_LOSSES[name](roi_heads) for name in names}


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
