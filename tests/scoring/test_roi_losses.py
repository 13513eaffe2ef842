"""Regions that are sorted before a device is asked give what detectron2's own way gives."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from gal_d2.scoring.rois import RoiBatch, crop_masks

ROWS = [
    (0, [2, 3, 40, 44], 0, 0, -1),  # large: of the second level
    (0, [10, 12, 20, 25], 1, 0, -1),
    (0, [1, 20, 30, 62], 1, 1, 7),
    (2, [5, 5, 14.5, 11.25], 2, 1, 8),
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:2], ROWS[3:]], ids=["mixed", "sorted", "last"])
def test_pooled_features_are_those_of_the_pooler(rows, tiny):
    pooler = ROIPooler((4, 4), [1 / 4, 1 / 8], 0, "ROIAlignV2", 32, 3)
    boxes = [target.gt_boxes for target in tiny.targets(rows, num_images=3)]
    levels = list(tiny.features(num_images=3).values())
    rois = RoiBatch(boxes)
    assert torch.equal(rois.pool(pooler, levels), pooler(levels, boxes))
    assert len(rois._sorted) == 1
    larger = ROIPooler((7, 7), [1 / 4, 1 / 8], 0, "ROIAlignV2", 32, 3)
    assert torch.equal(rois.pool(larger, levels), larger(levels, boxes))
    assert len(rois._sorted) == 1  # they share what was sorted


def test_a_pooler_of_another_kind_is_asked_where_its_features_are():
    boxes, levels = [Boxes(torch.zeros(1, 4))], [torch.zeros(1, 2, 3, 3)]
    asked, given = RoiBatch(boxes).pool(lambda *what: what, levels)
    assert asked is levels and torch.equal(given[0].tensor, boxes[0].tensor)


def test_masks_are_cropped_as_detectron2_crops_them(tiny):
    targets = tiny.targets(ROWS, num_images=3)
    rois = RoiBatch([t.gt_boxes for t in targets], [t.gt_masks for t in targets])
    expected = torch.cat(
        [t.gt_masks.crop_and_resize(t.gt_boxes.tensor, 14) for t in targets if len(t)]
    )
    assert torch.equal(crop_masks(rois, 14, torch.device("cpu")), expected)
    assert 0 < expected.float().mean() < 1
