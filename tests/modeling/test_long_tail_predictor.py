from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from gal_d2.config import add_gal_config
from gal_d2.errors import UserError
from gal_d2.modeling.long_tail_predictor import LongTailOutputLayers

NUM_CLASSES = 6


def make_predictor(**kwargs) -> LongTailOutputLayers:
    return LongTailOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=NUM_CLASSES,
        **kwargs,
    )


def make_proposals(classes: list[int]) -> list[Instances]:
    boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(len(classes), 1))
    return [
        Instances((16, 16), proposal_boxes=boxes, gt_boxes=boxes, gt_classes=torch.tensor(classes))
    ]


def test_sigmoid_loss_is_the_sum_over_classes_and_the_mean_over_rois():
    predictor = make_predictor(use_sigmoid_ce=True)
    logits = torch.zeros(2, NUM_CLASSES + 1)
    loss = predictor.sigmoid_cross_entropy(logits, torch.tensor([1, NUM_CLASSES]))
    assert loss.item() == pytest.approx(NUM_CLASSES * math.log(2))  # each term is log 2


def test_background_column_and_background_rows():
    predictor = make_predictor(use_sigmoid_ce=True)
    logits = torch.zeros(1, NUM_CLASSES + 1)
    classes = torch.tensor([NUM_CLASSES])
    before = predictor.sigmoid_cross_entropy(logits, classes)
    logits[:, NUM_CLASSES] = 50.0  # not used
    assert predictor.sigmoid_cross_entropy(logits, classes) == before
    logits[:, 0] = -50.0  # a sure "no", which is right
    expected = (NUM_CLASSES - 1) * math.log(2)
    assert predictor.sigmoid_cross_entropy(logits, classes).item() == pytest.approx(expected)


def test_federated_sample_holds_what_is_present_and_never_weight_zero():
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    predictor = make_predictor(
        use_sigmoid_ce=True, use_fed_loss=True, fed_loss_num_classes=4, fed_loss_cls_weights=weights
    )
    for seed in range(20):
        torch.manual_seed(seed)
        sample = predictor.sample_classes(torch.tensor([4, 0, 4, NUM_CLASSES])).tolist()
        assert len(sample) == len(set(sample)) == 4
        assert {0, 4} <= set(sample) and 1 not in sample and NUM_CLASSES not in sample


def test_more_present_classes_than_the_sample_holds():
    predictor = make_predictor(
        use_sigmoid_ce=True,
        use_fed_loss=True,
        fed_loss_num_classes=2,
        fed_loss_cls_weights=torch.ones(NUM_CLASSES),
    )
    assert sorted(predictor.sample_classes(torch.tensor([0, 1, 2, 5])).tolist()) == [0, 1, 2, 5]


def test_losses_use_the_sigmoid_and_keep_box_regression():
    torch.manual_seed(0)
    sigmoid, softmax = make_predictor(use_sigmoid_ce=True), make_predictor()
    proposals = make_proposals([0, 3, NUM_CLASSES])
    predictions = torch.randn(3, NUM_CLASSES + 1), torch.randn(3, NUM_CLASSES * 4)
    with EventStorage():
        losses = sigmoid.losses(predictions, proposals)
        plain = softmax.losses(predictions, proposals)
    assert torch.equal(losses["loss_box_reg"], plain["loss_box_reg"])
    target = torch.zeros(3, NUM_CLASSES)
    target[0, 0] = target[1, 3] = 1
    expected = F.binary_cross_entropy_with_logits(
        predictions[0][:, :NUM_CLASSES], target, reduction="sum"
    )
    assert losses["loss_cls"].item() == pytest.approx(expected.item() / 3)


def test_no_rois_is_a_zero_loss_with_a_gradient():
    predictor = make_predictor(use_sigmoid_ce=True)
    logits = torch.zeros(0, NUM_CLASSES + 1, requires_grad=True)
    loss = predictor.sigmoid_cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


def test_probabilities_are_sigmoids():
    predictor = make_predictor(use_sigmoid_ce=True)
    logits = torch.randn(3, NUM_CLASSES + 1)
    (probs,) = predictor.predict_probs((logits, None), make_proposals([0, 0, 0]))
    assert torch.equal(probs, logits.sigmoid())


def test_federated_without_sigmoid_says_what_to_set():
    with pytest.raises(UserError, match="USE_SIGMOID_CE"):
        make_predictor(use_fed_loss=True, fed_loss_cls_weights=torch.ones(NUM_CLASSES))


def test_class_counts_are_looked_up_when_a_loss_needs_them():
    calls = []

    def weights() -> torch.Tensor:
        calls.append(1)
        return torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])

    predictor = make_predictor(
        use_sigmoid_ce=True, use_fed_loss=True, fed_loss_num_classes=9, fed_loss_cls_weights=weights
    )
    predictor.eval()
    logits = torch.zeros(1, NUM_CLASSES + 1)
    predictor.predict_probs((logits, None), make_proposals([0]))
    assert not calls and not any("fed" in name for name in predictor.state_dict())
    for _ in range(2):
        assert 1 not in predictor.sample_classes(torch.tensor([0])).tolist()
    assert len(calls) == 1


def test_a_model_that_only_predicts_needs_no_training_set():
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.DATASETS.TRAIN = ("not_registered_anywhere",)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True
    predictor = LongTailOutputLayers(cfg, ShapeSpec(channels=4))
    assert predictor.use_fed_loss
    with pytest.raises(UserError, match="'not_registered_anywhere'.*has no image counts"):
        predictor.sample_classes(torch.tensor([0]))
