"""What benchmarks/scoring.py has scored: a model, targets and a scorer with full state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gal_d2.modeling  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances

from gal_d2.copy_paste.fields import InstanceSource
from gal_d2.scoring.gradients.cache_rows import REAL, CacheRows
from gal_d2.scoring.scorer import ContributionScorer
from gal_d2.setup.configuration import load_config

REPOSITORY = Path(__file__).resolve().parent.parent
BATCH = 2  # of the sections heads and growth
NUM_REAL = 8  # of an image, in all sections
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
QUICK_MODEL = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "2"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
)


@dataclass(frozen=True)
class Sizes:
    """What is measured; :data:`QUICK` is only good for seeing that it runs."""

    image: int = 320  # pixels
    batch: int = BATCH  # images of a training step
    device: str = "cpu"  # of the training step, and the type that it computes in
    dtype: torch.dtype = torch.float32
    classes: int = 80
    pastes: int = 10  # of an image
    rounds: int = 7  # of the training step
    repeats: int = 5  # of everything else
    instances: Sequence[int] = (8, 32, 128)
    growth_pasted: Sequence[int] = (5, 10, 20, 40, 80)  # of a batch
    growth_classes: Sequence[int] = (10, 30, 100, 300, 1203)
    model: Sequence[str] = field(default=())  # config options
    profile: bool = False  # say what the last step was busy with


FULL = Sizes()
QUICK = Sizes(
    image=96,
    classes=10,
    pastes=3,
    rounds=2,
    repeats=2,
    instances=(2, 4),
    growth_pasted=(2, 4, 8),
    growth_classes=(5, 10, 20),
    model=QUICK_MODEL,
)


def build_config(sizes: Sizes, num_classes: int, *options: str) -> CfgNode:
    """Mask R-CNN R50-FPN with random weights; ``options`` as on a command line."""
    return load_config(
        str(REPOSITORY / "configs" / "Base-RCNN-FPN.yaml"),
        [
            *("MODEL.DEVICE", sizes.device, "MODEL.WEIGHTS", ""),
            # Without the statistics of pretrained weights raw pixels would overflow.
            *("MODEL.PIXEL_STD", "[57.375,57.12,58.395]"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes)),
            *sizes.model,
            *options,
        ],
    )


def make_targets(
    rng: np.random.Generator, size: int, num_real: int, num_pasted: int, num_classes: int
) -> Instances:
    """Objects of random place, size and class, each with a mask that fills half of its box."""
    n = num_real + num_pasted
    corner = rng.uniform(0, 0.7 * size, (n, 2))
    side = rng.uniform(size / 16, size / 3, (n, 2))
    boxes = torch.tensor(np.hstack([corner, np.minimum(corner + side, size - 1)])).float()
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0 : (x0 + x1) // 2 + 1] = True
    targets = Instances((size, size))
    targets.gt_boxes = Boxes(boxes)
    targets.gt_classes = torch.tensor(rng.integers(0, num_classes, n))
    targets.gt_masks = BitMasks(masks)
    targets.instance_source = torch.tensor([0] * num_real + [1] * num_pasted)
    targets.pool_id = torch.where(
        targets.instance_source == InstanceSource.PASTED, torch.arange(n), -1
    )
    return targets


def fill(scorer: ContributionScorer, generator: torch.Generator) -> None:
    """Bring a scorer to the state of late training, when scoring costs most.

    Each class then has a direction, partners to be contrasted with, and a full window.
    """
    cache, count = scorer.cache, scorer.num_classes
    every, cache.partner_every = cache.partner_every, 1
    classes = torch.arange(count)
    rows = {
        head: CacheRows(
            torch.randn(count, sum(parts), generator=generator),
            classes,
            torch.full((count,), REAL),
        )
        for head, parts in cache.layer_sizes.items()
    }
    probabilities = torch.randn(count, count, generator=generator).softmax(1)
    for _ in range(2):
        cache.update(rows, (classes, probabilities))
    cache.partner_every = every
    for window in scorer.reference.values():
        repeated = classes.repeat(window.size)
        window.add(repeated, torch.rand(len(repeated), generator=generator))


def build_heads(sizes: Sizes, num_classes: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """ROI heads and the feature maps of a batch for them."""
    cfg = build_config(sizes, num_classes)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    shapes = {name: ShapeSpec(channels=channels, stride=s) for name, s in STRIDES.items()}
    features = {
        name: torch.randn(BATCH, channels, -(-sizes.image // s), -(-sizes.image // s))
        for name, s in STRIDES.items()
    }
    return build_roi_heads(cfg, shapes).train(), features
