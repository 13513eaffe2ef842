"""Regions of images that heads are asked about, and what of features and masks lies in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from torch import Tensor, nn

from gal_d2.scoring.exchange import send


@dataclass(frozen=True)
class RoiBatch:
    """Regions to score, image by image.

    Attributes:
        boxes: per image, (M_i, 4) XYXY in pixels of the network's input; with boxes on the CPU the
            host never waits for a device. Feature maps and masks may be on another one.
        masks: per image, the M_i ground-truth masks (of the whole image); None where no head needs
            them.
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
        device = levels[0].device
        if not isinstance(pooler, ROIPooler):
            return pooler(levels, [Boxes(send(boxes.tensor, device)) for boxes in self.boxes])
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


def pool_boxes(
    pooler: nn.Module, names: Sequence[str], features: Mapping[str, Tensor], rois: RoiBatch
) -> Tensor:
    """(M, C, H, W): the named feature maps, without gradient, pooled at M regions."""
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
