from __future__ import annotations

import gal_d2  # noqa: F401  (first: it prepares the process for detectron2)

# isort: split

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances

from gal_d2.scoring.proposals import sample_proposals

MATCHER = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
GT = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])


def make_image(gt: torch.Tensor, boxes: torch.Tensor) -> tuple[Instances, Instances]:
    proposals = Instances((64, 64), proposal_boxes=Boxes(boxes))
    return proposals, Instances((64, 64), gt_boxes=Boxes(gt))


def shifted(box: torch.Tensor, *pixels: float) -> torch.Tensor:
    return torch.stack([box + torch.tensor([p, 0, p, 0]) for p in pixels])


def test_foreground_of_each_target_and_its_own_box():
    # Shifts of 1 and 2 of 10 px overlap by 0.82 and 0.67, one of 6 by 0.25: background.
    boxes = torch.cat([shifted(GT[1], 2), shifted(GT[0], 1, 6, 2)])
    ((rois, owner),) = sample_proposals(*([x] for x in make_image(GT, boxes)), MATCHER, most=9)
    assert owner.tolist() == [0, 0, 0, 1, 1]
    assert sorted(rois[:3, 0].tolist()) == [0, 1, 2] and sorted(rois[3:, 0].tolist()) == [20, 22]
    ((rois, owner),) = sample_proposals(
        *([x] for x in make_image(GT, boxes)), MATCHER, most=9, append_gt=False
    )
    assert owner.tolist() == [0, 0, 1] and 0 not in rois[:, 0].tolist()


def test_no_more_than_asked_for_and_each_as_often():
    boxes = shifted(GT[1], 1, 2, 3, 4)
    proposals, target = make_image(GT[1:], boxes)
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(4)
    for _ in range(400):
        ((rois, owner),) = sample_proposals(
            [proposals], [target], MATCHER, most=2, append_gt=False, generator=generator
        )
        assert owner.tolist() == [0, 0] and rois[0, 0] != rois[1, 0]
        seen[(rois[:, 0] - 21).long()] += 1
    assert (seen - 200).abs().max() < 40


def test_images_without_targets_or_proposals():
    empty = torch.zeros(0, 4)
    without_targets = make_image(empty, GT)
    without_proposals = make_image(GT, empty)
    proposals, targets = zip(without_targets, without_proposals, strict=True)
    first, second = sample_proposals(proposals, targets, MATCHER, most=3)
    assert first[0].shape == (0, 4) and first[1].shape == (0,)
    assert second[1].tolist() == [0, 1] and torch.equal(second[0], GT)
