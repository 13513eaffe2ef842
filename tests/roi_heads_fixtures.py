"""Small ROI heads on random feature maps, built the way detectron2 builds them."""

from __future__ import annotations

from types import SimpleNamespace

import gal_d2  # noqa: F401  (first: it prepares the process for detectron2)

# isort: split

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances

CHANNELS, STRIDES, IMAGE = 8, {"p2": 4, "p3": 8}, 64


def tiny_roi_heads(num_classes=5, seed=0, **overrides):
    """ROI heads with two feature levels. Overrides: config keys below MODEL, ``__`` for a dot."""
    cfg = get_cfg()
    model = cfg.MODEL
    model.MASK_ON = True
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_HEADS.IN_FEATURES = list(STRIDES)
    model.ROI_HEADS.NUM_CLASSES = num_classes
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    model.ROI_BOX_HEAD.NUM_FC = 2
    model.ROI_BOX_HEAD.FC_DIM = 24
    model.ROI_BOX_HEAD.CONV_DIM = 12
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 6
    model.ROI_MASK_HEAD.NUM_CONV = 2
    model.ROI_MASK_HEAD.CONV_DIM = 12
    for key, value in overrides.items():
        cfg.merge_from_list(["MODEL." + key.replace("__", "."), value])
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    heads = build_roi_heads(
        cfg, {name: ShapeSpec(channels=CHANNELS, stride=s) for name, s in STRIDES.items()}
    )
    # detectron2's initial predictors are almost constant; spread them.
    for name, parameter in heads.named_parameters():
        if "predictor" in name or "norm" in name or name.endswith("bias"):
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    for name, buffer in heads.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    torch.random.set_rng_state(state)
    return heads.train()


def random_features(num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(num_images, CHANNELS, IMAGE // s, IMAGE // s, generator=generator)
        for name, s in STRIDES.items()
    }


def make_targets(rows, num_images=2):
    """Instances from (image, box, class, source, pool id); a mask is the left half of its box."""
    targets = []
    for image in range(num_images):
        mine = [row for row in rows if row[0] == image]
        boxes = torch.tensor([row[1] for row in mine], dtype=torch.float32).reshape(-1, 4)
        masks = torch.zeros(len(mine), IMAGE, IMAGE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().int().tolist(), strict=True):
            mask[y0:y1, x0 : (x0 + x1 + 1) // 2] = True
        instances = Instances((IMAGE, IMAGE))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.tensor([row[2] for row in mine], dtype=torch.int64)
        instances.gt_masks = BitMasks(masks)
        instances.instance_source = torch.tensor([row[3] for row in mine], dtype=torch.int64)
        instances.pool_id = torch.tensor([row[4] for row in mine], dtype=torch.int64)
        targets.append(instances)
    return targets


FIVE = (
    (0, [4, 6, 30, 40], 0, 0, -1),
    (0, [20, 10, 60, 30], 1, 1, 101),
    (0, [1, 1, 12, 15], 4, 0, -1),
    (1, [10, 20, 50, 60], 2, 1, 102),
    (1, [8, 8, 24, 40], 0, 0, -1),
)


@pytest.fixture(scope="session")
def tiny():
    """Builders of small models and batches."""
    return SimpleNamespace(
        roi_heads=tiny_roi_heads, features=random_features, targets=make_targets, five=FIVE
    )
