"""A judge's rejections leave no trace in any head's sample."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

import gal_d2.modeling  # noqa: F401
from gal_d2.config import add_gal_config
from gal_d2.modeling.roi_heads import ignoring

NUM_CLASSES, SIZE = 5, 64
GT_BOXES = torch.tensor([[2.0, 2.0, 26.0, 26.0], [34.0, 34.0, 60.0, 62.0], [2.0, 36.0, 24.0, 60.0]])


def make_roi_heads(name: str):
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = "Cascade" in name
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    torch.manual_seed(0)
    return build_roi_heads(cfg, {"p2": ShapeSpec(channels=8, stride=4)}).train()


def make_target() -> Instances:
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, GT_BOXES.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return Instances(
        (SIZE, SIZE),
        gt_boxes=Boxes(GT_BOXES),
        gt_classes=torch.tensor([0, 1, 2]),
        gt_masks=BitMasks(masks),
    )


def make_proposals(seed: int = 0) -> Instances:
    """Boxes around each object, well or badly matched, and some anywhere."""
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.randn(10, 3, 4, generator=generator) * 3
    boxes = (GT_BOXES + jitter).reshape(-1, 4)
    corners = torch.rand(20, 2, generator=generator) * 40
    boxes = torch.cat([boxes, torch.cat([corners, corners + 20], dim=1)]).clamp(0, SIZE)
    return Instances(
        (SIZE, SIZE), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes))
    )


def run(roi_heads, rejected: list[bool], monkeypatch):
    """The losses, and the proposals that each box predictor's loss was computed on."""
    seen = []
    original = FastRCNNOutputLayers.losses

    def losses(self, predictions, proposals):
        seen.append(proposals[0])
        return original(self, predictions, proposals)

    monkeypatch.setattr(FastRCNNOutputLayers, "losses", losses)
    roi_heads.judge = lambda features, targets: [torch.tensor(rejected)]
    images = ImageList(torch.zeros(1, 3, SIZE, SIZE), [(SIZE, SIZE)])
    features = {"p2": torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))}
    with EventStorage():
        torch.manual_seed(2)
        _, result = roi_heads(images, features, [make_proposals()], [make_target()])
    return result, seen


@pytest.mark.parametrize("name", ["GALROIHeads", "GALCascadeROIHeads"])
def test_rejected_objects_are_neither_foreground_nor_background(name, monkeypatch):
    roi_heads = make_roi_heads(name)
    losses, seen = run(roi_heads, [False, True, False], monkeypatch)
    thresholds = [0.5, 0.6, 0.7] if "Cascade" in name else [0.5]
    assert len(seen) == len(thresholds)
    for proposals, threshold in zip(seen, thresholds, strict=True):
        assert not {1, -1} & set(proposals.gt_classes.tolist())
        overlap = pairwise_iou(proposals.proposal_boxes, Boxes(GT_BOXES[1:2]))
        assert (overlap < threshold).all()  # what matched it is gone, not relabelled
        assert {0, 2} <= set(proposals.gt_classes.tolist())
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", ["GALROIHeads", "GALCascadeROIHeads"])
def test_accepting_all_is_the_same_as_no_judge(name, monkeypatch):
    roi_heads = make_roi_heads(name)
    judged, _ = run(roi_heads, [False] * 3, monkeypatch)
    roi_heads.judge = None
    images = ImageList(torch.zeros(1, 3, SIZE, SIZE), [(SIZE, SIZE)])
    features = {"p2": torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))}
    with EventStorage():
        torch.manual_seed(2)
        _, plain = roi_heads(images, features, [make_proposals()], [make_target()])
    assert {k: v.item() for k, v in judged.items()} == {k: v.item() for k, v in plain.items()}


def test_rejecting_all_still_gives_losses_to_backpropagate(monkeypatch):
    roi_heads = make_roi_heads("GALROIHeads")
    losses, (proposals,) = run(roi_heads, [True] * 3, monkeypatch)
    assert (proposals.gt_classes == NUM_CLASSES).all()
    sum(losses.values()).backward()
    assert losses["loss_mask"].item() == 0


@pytest.mark.parametrize("name", ["GALROIHeads", "GALCascadeROIHeads"])
def test_places_of_rejected_objects_go_to_others(name, monkeypatch):
    """As many foreground ROIs train, however many objects were rejected."""
    roi_heads = make_roi_heads(name)
    roi_heads.batch_size_per_image, roi_heads.positive_fraction = 8, 0.25
    for rejected in ([False] * 3, [False, True, False], [True, True, False]):
        _, seen = run(roi_heads, rejected, monkeypatch)
        classes = seen[0].gt_classes
        assert len(classes) == 8
        assert (classes != NUM_CLASSES).sum() == 2, rejected


def test_targets_are_not_changed():
    target = make_target()
    before = target.gt_classes.clone()
    ignored = ignoring(target, torch.tensor([True, False, False]))
    assert ignored.gt_classes.tolist() == [-1, *before[1:].tolist()]
    assert torch.equal(target.gt_classes, before)
    assert ignoring(target, torch.zeros(3, dtype=torch.bool)) is target


@pytest.mark.parametrize("name", ["GALROIHeads", "GALCascadeROIHeads"])
def test_classified_rois_know_their_target(name):
    roi_heads = make_roi_heads(name)
    empty = make_target()[:0]
    targets, proposals = [make_target(), empty], [make_proposals(), make_proposals(1)]
    features = {"p2": torch.randn(2, 8, 16, 16, requires_grad=True)}
    with EventStorage():
        stages = roi_heads.classify(features, proposals, targets, seeds=[5, 6])
        first = {"p2": features["p2"][:1]}
        again = roi_heads.classify(first, proposals[:1], targets[:1], seeds=[5])
    thresholds = [0.5, 0.6, 0.7] if "Cascade" in name else [0.5]
    assert len(stages) == len(thresholds)
    for rois, alone in zip(stages, again, strict=True):
        assert set(rois.image.tolist()) == {0, 1}
        foreground = rois.target >= 0
        assert (rois.gt_classes[~foreground] == NUM_CLASSES).all()
        assert torch.equal(rois.gt_classes[foreground], rois.target[foreground])  # classes 0, 1, 2
        assert (rois.image[foreground] == 0).all() and set(rois.target.tolist()) == {-1, 0, 1, 2}
        # The first image's sample does not depend on the second's being there.
        assert torch.equal(rois.gt_classes[rois.image == 0], alone.gt_classes)
        torch.testing.assert_close(rois.logits[rois.image == 0], alone.logits)
    stages[-1].logits.sum().backward()
    assert features["p2"].grad.abs().sum() > 0
    assert not targets[0].has("gt_index")
