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
from gal_d2.modeling.roi_heads import without_rejected

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
    roi_heads.judge = lambda features, targets, proposals: [torch.tensor(rejected)]
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
        assert not proposals.has("gt_rejected")
        assert 1 not in proposals.gt_classes.tolist()
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


def test_background_rows_of_a_rejected_target_stay():
    """label_and_sample gives background rows the fields of their nearest target, too."""
    proposals = Instances(
        (SIZE, SIZE),
        gt_classes=torch.tensor([1, NUM_CLASSES, 2]),
        gt_rejected=torch.tensor([True, True, False]),
    )
    assert without_rejected(proposals, NUM_CLASSES).gt_classes.tolist() == [NUM_CLASSES, 2]
