"""ROI heads that ask a judge which pasted instances may train them.

Our own have the long-tail box predictor in the place of detectron2's. Heads of others keep all that
they have: :func:`let_ask` puts the question in front of their ``forward``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
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

from gal_d2.errors import UserError
from gal_d2.modeling.long_tail_predictor import LongTailOutputLayers

TargetFilter = Callable[[Mapping[str, Tensor], Sequence[Instances]], Sequence[Tensor] | None]
"""(feature maps, targets) -> per image (N,) bool on the CPU: True for a target that must not train
the heads. None: there is none."""


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


class JudgedROIHeads:
    """Mix-in: during training, proposals that match rejected targets are ignored.

    They are neither foreground nor background, and they take no place: ROIs are sampled from the
    other proposals, as many as ever. The RPN has already been trained on all targets by then.
    Whatever else ``forward`` is given goes on to the class that this is mixed into.

    Attributes:
        judge: asked once per training step; None accepts everything.
    """

    judge: TargetFilter | None = None
    # Some target of this forward pass has the class IGNORED.
    _ignores = False

    def forward(self, images, features, proposals, targets=None, *args, **kwargs):
        if self.training and self.judge is not None and targets is not None:
            rejected = self.judge(features, targets)
            if rejected is not None:
                kept = [ignoring(t, mask) for t, mask in zip(targets, rejected, strict=True)]
                self._ignores = any(new is not old for new, old in zip(kept, targets, strict=True))
                targets = kept
        if not self._ignores:
            return super().forward(images, features, proposals, targets, *args, **kwargs)
        try:
            with _guarded_losses(self):
                return super().forward(images, features, proposals, targets, *args, **kwargs)
        finally:
            self._ignores = False

    def label_and_sample_proposals(self, proposals, targets, *args, **kwargs):
        """detectron2's own samples no ROI for an ignored target; a class of its own may."""
        sampled = super().label_and_sample_proposals(proposals, targets, *args, **kwargs)
        return without_ignored(sampled) if self._ignores else sampled

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


def without_ignored(rois: Sequence[Instances]) -> list[Instances]:
    """Per image, the ROIs that are not labelled with an ignored target."""
    kept = []
    for of_image in rois:
        ignored = of_image.gt_classes == IGNORED
        kept.append(of_image[~ignored] if ignored.any() else of_image)
    return kept


@contextlib.contextmanager
def _guarded_losses(roi_heads: nn.Module) -> Iterator[None]:
    """Within the block, a box predictor refuses to compute a loss on ignored targets.

    Heads that match boxes in a way of their own may label some with a rejected object's class, -1,
    which one loss takes for the background and another for the last class.
    """
    predictors = [m for m in roi_heads.modules() if callable(getattr(type(m), "losses", None))]
    name = type(roi_heads).__name__

    def guarded(losses: Callable, *args, **kwargs):
        for argument in (*args, *kwargs.values()):
            for rois in argument if isinstance(argument, list | tuple) else ():
                labelled = isinstance(rois, Instances) and rois.has("gt_classes")
                if labelled and (rois.gt_classes == IGNORED).any():
                    raise UserError(
                        f"The ROI heads {name} label boxes with a rejected object: they match "
                        "elsewhere than in label_and_sample_proposals and _match_and_label_boxes, "
                        "where GAL-D2 takes such boxes out. Match them there, or reject nothing "
                        "(GAL.ACCEPT.POLICY always)."
                    )
        return losses(*args, **kwargs)

    for predictor in predictors:
        predictor.losses = functools.partial(guarded, predictor.losses)
    try:
        yield
    finally:
        for predictor in predictors:
            del predictor.losses  # the class's is seen again


class JudgedCascade(JudgedROIHeads):
    """The same for a cascade, whose later stages match their boxes anew."""

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
    def _match_and_label_boxes(self, proposals, stage, targets, *args, **kwargs):
        """After each stage boxes are matched anew: those that now match an ignored target go."""
        labelled = super()._match_and_label_boxes(proposals, stage, targets, *args, **kwargs)
        for boxes, target in zip(labelled, targets, strict=True):
            if len(target) and target.has("gt_index"):
                quality = pairwise_iou(target.gt_boxes, boxes.proposal_boxes)
                matched, _ = self.proposal_matchers[stage](quality)
                boxes.gt_index = target.gt_index[matched]
        return without_ignored(labelled) if self._ignores else labelled


def let_ask(roi_heads: nn.Module) -> None:
    """Have ROI heads of any class ask ``roi_heads.judge`` in training; changed in place.

    Their class becomes a subclass of what it was: nothing of theirs is replaced.

    Raises:
        UserError: ``forward`` takes other arguments than those of detectron2's ROI heads.
    """
    cls = type(roi_heads)
    if issubclass(cls, JudgedROIHeads):
        return
    expected = ["images", "features", "proposals", "targets"]
    parameters = inspect.signature(cls.forward).parameters
    given = list(parameters)[1:]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    if given[:4] != expected and not takes_any:
        raise UserError(
            f"The ROI heads {cls.__name__} have forward({', '.join(given)}): to be scored, its "
            f"first arguments must be those of detectron2's, {', '.join(expected)}."
        )
    roi_heads.__class__ = _judged_class(cls)


def can_classify(roi_heads: nn.Module | None) -> bool:
    """Whether :meth:`JudgedROIHeads.classify` goes the way that these heads go in training.

    It does where they have detectron2's own steps; those of others may take more arguments.
    """
    if not isinstance(roi_heads, JudgedROIHeads):
        return False
    steps = ["_forward_box"]
    base = StandardROIHeads
    if isinstance(roi_heads, JudgedCascade):
        base = CascadeROIHeads
        steps += ["_run_stage", "_create_proposals_from_boxes"]
    return isinstance(roi_heads, base) and all(
        getattr(type(roi_heads), step) is getattr(base, step) for step in steps
    )


@functools.cache
def _judged_class(cls: type[nn.Module]) -> type[nn.Module]:
    mix_in = JudgedCascade if hasattr(cls, "_match_and_label_boxes") else JudgedROIHeads
    # Under its own name: it is what errors and `print(model)` show.
    return type(cls.__name__, (mix_in, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


@ROI_HEADS_REGISTRY.register()
class GALROIHeads(JudgedROIHeads, StandardROIHeads):
    """StandardROIHeads with a judge, and a predictor that knows sigmoid and federated loss."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict) -> dict[str, Any]:
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = LongTailOutputLayers(cfg, ret["box_head"].output_shape)
        return ret


@ROI_HEADS_REGISTRY.register()
class GALCascadeROIHeads(JudgedCascade, CascadeROIHeads):
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
