from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.scoring.classification_loss import federated_class_weights
from gal_d2.scoring.gradients.projected_gradients import (
    HeadGradients,
    ProjectedGradients,
    sum_by_instance,
)
from gal_d2.scoring.roi_losses import build_head_losses
from gal_d2.scoring.rois import RoiBatch


def roi_batch(targets):
    return RoiBatch([t.gt_boxes for t in targets], [t.gt_masks for t in targets])


def classes_of(targets):
    return torch.cat([t.gt_classes for t in targets])


def mask_targets(targets, side):
    return torch.cat([t.gt_masks.crop_and_resize(t.gt_boxes.tensor, side) for t in targets]).float()


class BoxStages(nn.Module):
    """The classification loss of one pooled region, written out."""

    def __init__(self, roi_heads):
        super().__init__()
        self.box_head, self.box_predictor = roi_heads.box_head, roi_heads.box_predictor

    def forward(self, pooled, label, _):
        if isinstance(self.box_head, nn.ModuleList):
            stages = zip(self.box_head, self.box_predictor, strict=True)
        else:
            stages = [(self.box_head, self.box_predictor)]
        loss = 0.0
        for head, predictor in stages:
            logits = predictor(head(pooled[None]))[0]
            if getattr(predictor, "use_sigmoid_ce", False):
                one_hot = torch.zeros_like(logits)[:, :-1] + (
                    torch.arange(logits.shape[1] - 1) == label
                )
                loss = loss + F.binary_cross_entropy_with_logits(
                    logits[:, :-1], one_hot, reduction="sum"
                )
            else:
                loss = loss + F.cross_entropy(logits, label[None])
        return loss


class MaskStage(nn.Module):
    def __init__(self, roi_heads):
        super().__init__()
        self.mask_head = roi_heads.mask_head

    def forward(self, pooled, label, target):
        logits = self.mask_head.layers(pooled[None])[0]
        if len(logits) > 1:
            logits = logits.index_select(0, label[None])
        return F.binary_cross_entropy_with_logits(logits[0], target)


def reference(roi_heads, head, features, targets, layout):
    """(N, D) exact gradients in the layout's order, with torch.func."""
    boxes = [t.gt_boxes for t in targets]
    if head == "box":
        module, pooler = BoxStages(roi_heads), roi_heads.box_pooler
        target = torch.zeros(len(classes_of(targets)))
    else:
        module, pooler = MaskStage(roi_heads), roi_heads.mask_pooler
        target = mask_targets(targets, 2 * pooler.output_size[0])
    pooled = pooler([features["p2"], features["p3"]], boxes)
    module.eval()
    parameters = {n: p.detach() for n, p in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def loss(parameters, *args):
        return functional_call(module, (parameters, buffers), args)

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0, 0))(
        parameters, pooled, classes_of(targets), target
    )
    module.train()
    return torch.cat(
        [per_sample[f"{layer}.weight"].flatten(1) for layer in layout.slices],
        dim=1,
    )


MODELS = {
    "standard": {},
    "class-agnostic mask": {"ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": True},
    "GN": {
        "ROI_MASK_HEAD__NORM": "GN",
        "ROI_MASK_HEAD__CONV_DIM": 32,
        "ROI_BOX_HEAD__NORM": "GN",
        "ROI_BOX_HEAD__NUM_CONV": 2,
        "ROI_BOX_HEAD__CONV_DIM": 32,
    },
    "BN": {
        "ROI_MASK_HEAD__NORM": "BN",
        "ROI_BOX_HEAD__NORM": "BN",
        "ROI_BOX_HEAD__NUM_CONV": 1,
        "ROI_BOX_HEAD__NUM_FC": 1,
    },
    "cascade": {
        "ROI_HEADS__NAME": "CascadeROIHeads",
        "ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True,
    },
    "sigmoid": {},
}


@pytest.fixture(params=MODELS)
def model(request, tiny):
    roi_heads = tiny.roi_heads(**MODELS[request.param])
    if request.param == "sigmoid":
        roi_heads.box_predictor.use_sigmoid_ce = True
    return roi_heads


@pytest.mark.parametrize("head", ["box", "mask"])
def test_exact_mode_equals_torch_func(model, head, tiny):
    features, targets = tiny.features(), tiny.targets(tiny.five)
    gradients = ProjectedGradients(model, [head], k=None, chunk=2)
    got = gradients(head, features, roi_batch(targets), classes_of(targets))
    expected = reference(model, head, features, targets, gradients.layouts[head])
    assert got.gradient.shape == (5, gradients.layouts[head].size)
    torch.testing.assert_close(
        got.gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
    )
    error = (got.gradient - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-4


def autocast_reference(roi_heads, head, features, targets, layout):
    """(N, D) exact gradients of weights under bfloat16 autocast: one plain backward a sample."""
    boxes = [t.gt_boxes for t in targets]
    module = BoxStages(roi_heads) if head == "box" else MaskStage(roi_heads)
    pooler = roi_heads.box_pooler if head == "box" else roi_heads.mask_pooler
    pooled = pooler([features["p2"], features["p3"]], boxes)
    target = mask_targets(targets, 2 * pooler.output_size[0])
    weights = [module.get_parameter(f"{layer}.weight") for layer in layout.slices]
    rows = []
    for i, label in enumerate(classes_of(targets)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module(pooled[i], label, target[i])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows)


@pytest.mark.parametrize("head", ["box", "mask"])
def test_bfloat16_autocast_agrees_within_two_per_cent(head, tiny):
    roi_heads, features = tiny.roi_heads(), tiny.features()
    targets = tiny.targets(tiny.five)
    gradients = ProjectedGradients(roi_heads, [head], k=None)
    rows = features, roi_batch(targets), classes_of(targets)
    full = gradients(head, *rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gradients(head, *rows)
    assert half.gradient.dtype == torch.float32
    expected = autocast_reference(roi_heads, head, features, targets, gradients.layouts[head])
    error = (half.gradient - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 0.02, error

    # Against float32: rounding flips a few ReLUs, whatever computes the gradient, so single
    # entries differ by more. What a score is made of does not.
    assert_agree_within_two_per_cent(half, full)


def assert_agree_within_two_per_cent(half: HeadGradients, full: HeadGradients) -> None:
    """Losses, norms, and cosines between the instances."""
    torch.testing.assert_close(half.loss, full.loss, rtol=0.02, atol=0)
    norms = full.gradient.norm(dim=1), half.gradient.norm(dim=1)
    torch.testing.assert_close(norms[1], norms[0], rtol=0.02, atol=0)
    cosines = [
        F.normalize(g.gradient, dim=1) @ F.normalize(g.gradient, dim=1).T for g in (full, half)
    ]
    torch.testing.assert_close(cosines[1], cosines[0], rtol=0, atol=0.02)


@pytest.mark.parametrize("head", ["box", "mask"])
def test_projected_inner_products_scatter_around_the_exact_ones(head, tiny):
    roi_heads, features = tiny.roi_heads(), tiny.features()
    targets = tiny.targets(tiny.five)
    rows = features, roi_batch(targets), classes_of(targets)
    exact = ProjectedGradients(roi_heads, [head], k=None)(head, *rows).gradient
    exact = exact / exact.norm(dim=1, keepdim=True)
    grams = []
    for seed in range(60):
        got = ProjectedGradients(roi_heads, [head], k=8, seed=seed)(head, *rows).gradient
        grams.append(got @ got.T)
    norms = ProjectedGradients(roi_heads, [head], k=None)(head, *rows).gradient.norm(dim=1)
    grams = torch.stack(grams) / torch.outer(norms, norms)
    mean, std = grams.mean(0), grams.std(0)
    assert ((mean - exact @ exact.T).abs() < 4.5 * std / math.sqrt(60) + 1e-4).all()
    # Gaussian or sign matrices: std of order sqrt(2 / k) per side at most, for unit vectors.
    assert std.max() < math.sqrt((1 + 2 / 8) ** 2 - 1) * 1.3


def test_losses_are_detectron2s_before_averaging(tiny):
    from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
    from detectron2.utils.events import EventStorage

    roi_heads, features = tiny.roi_heads(), tiny.features()
    targets = tiny.targets(tiny.five)
    gradients = ProjectedGradients(roi_heads)
    rows = features, roi_batch(targets), classes_of(targets)
    for t in targets:
        t.proposal_boxes = t.gt_boxes
    boxes = [t.gt_boxes for t in targets]
    maps = [features["p2"], features["p3"]]
    with EventStorage(), torch.no_grad():
        logits = roi_heads.mask_head.layers(roi_heads.mask_pooler(maps, boxes))
        mask_loss = mask_rcnn_loss(logits, targets)
        predictions = roi_heads.box_predictor(roi_heads.box_head(roi_heads.box_pooler(maps, boxes)))
        box_loss = roi_heads.box_predictor.losses(predictions, targets)["loss_cls"]
    torch.testing.assert_close(gradients("mask", *rows).loss.mean(), mask_loss)
    box = gradients("box", *rows)
    torch.testing.assert_close(box.loss.mean(), box_loss)
    torch.testing.assert_close(box.probabilities, predictions[0].softmax(1)[:, :5])


def test_training_state_is_left_as_it_was(tiny):
    roi_heads = tiny.roi_heads(
        ROI_MASK_HEAD__NORM="BN", ROI_BOX_HEAD__NORM="BN", ROI_BOX_HEAD__NUM_CONV=1
    )
    roi_heads.box_head.append(nn.Dropout(0.5))
    roi_heads.mask_head.mask_fcn1.norm.eval()
    features = {name: x.requires_grad_() for name, x in tiny.features().items()}
    flags = {name: m.training for name, m in roi_heads.named_modules()}
    state = {name: value.clone() for name, value in roi_heads.state_dict().items()}
    torch_rng, numpy_rng = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    targets = tiny.targets(tiny.five)
    gradients = ProjectedGradients(roi_heads)
    for head in ("box", "mask"):
        gradients(head, features, roi_batch(targets), classes_of(targets))
    assert {name: m.training for name, m in roi_heads.named_modules()} == flags
    assert all(torch.equal(value, state[name]) for name, value in roi_heads.state_dict().items())
    assert all(p.grad is None for p in roi_heads.parameters())
    assert all(p.requires_grad for p in roi_heads.parameters())
    assert all(x.grad is None for x in features.values())
    assert torch.equal(torch_rng, torch.random.get_rng_state())
    assert (numpy_rng == np.random.get_state()[1]).all()  # noqa: NPY002


def test_a_region_may_have_rows_under_several_classes_and_no_grad_is_no_hindrance(tiny):
    roi_heads, features = tiny.roi_heads(), tiny.features()
    targets = tiny.targets(tiny.five)
    gradients = ProjectedGradients(roi_heads, ["mask"])
    with torch.no_grad():
        got = gradients(
            "mask", features, roi_batch(targets), torch.tensor([3, 1, 1]), torch.tensor([4, 1, 4])
        )
    every = [
        gradients("mask", features, roi_batch(targets), torch.full((5,), c)).gradient
        for c in range(5)
    ]
    expected = torch.stack([every[3][4], every[1][1], every[1][4]])
    torch.testing.assert_close(got.gradient, expected, rtol=1e-4, atol=1e-6)


def test_no_rows_and_an_image_without_instances(tiny):
    roi_heads, features = tiny.roi_heads(), tiny.features()
    gradients = ProjectedGradients(roi_heads)
    none = tiny.targets([])
    for head in ("box", "mask"):
        got = gradients(head, features, roi_batch(none), classes_of(none))
        assert got.gradient.shape == (0, gradients.layouts[head].size) and len(got.loss) == 0
        second_only = tiny.targets(tiny.five[3:])
        got = gradients(head, features, roi_batch(second_only), classes_of(second_only))
        assert len(got.loss) == 2 and got.gradient.isfinite().all()


def test_signature_tells_heads_and_projection_apart(tiny):
    roi_heads = tiny.roi_heads()
    same = ProjectedGradients(roi_heads).signature()
    assert same == ProjectedGradients(tiny.roi_heads(seed=3)).signature()
    for other in (
        ProjectedGradients(roi_heads, ["box"]),
        ProjectedGradients(roi_heads, k=8),
        ProjectedGradients(roi_heads, seed=1),
        ProjectedGradients(tiny.roi_heads(ROI_BOX_HEAD__FC_DIM=25)),
    ):
        assert other.signature() != same


def test_federated_loss_uses_the_probability_of_being_drawn(tiny):
    roi_heads, features = tiny.roi_heads(), tiny.features()
    predictor = roi_heads.box_predictor
    predictor.use_sigmoid_ce = predictor.use_fed_loss = True
    predictor.fed_loss_num_classes = 2
    predictor.fed_loss_cls_weights = torch.tensor([3.0, 1.0, 4.0, 0.0, 2.0])
    share = torch.tensor([0.3, 0.1, 0.4, 0.0, 0.2])
    torch.testing.assert_close(federated_class_weights(predictor), 1 - (1 - share) ** 2)

    targets = tiny.targets(tiny.five[:1])
    got = ProjectedGradients(roi_heads, ["box"])(
        "box", features, roi_batch(targets), torch.tensor([3])
    )
    with torch.no_grad():
        boxes = [Boxes(torch.tensor([[4.0, 6, 30, 40]])), Boxes(torch.zeros(0, 4))]
        pooled = roi_heads.box_pooler([features["p2"], features["p3"]], boxes)
        logits = predictor(roi_heads.box_head(pooled))[0][0, :5]
    weights = 1 - (1 - share) ** 2
    weights[3] = 1.0
    expected = -(F.logsigmoid(-logits) * weights).sum()
    expected = expected + F.logsigmoid(-logits[3]) - F.logsigmoid(logits[3])
    torch.testing.assert_close(got.loss[0], expected)


def test_wrong_head_names_list_the_right_ones(tiny):
    roi_heads = tiny.roi_heads()
    with pytest.raises(UserError, match="'keypoint'.*StandardROIHeads.*: box, mask"):
        ProjectedGradients(roi_heads, ["keypoint"])
    with pytest.raises(UserError, match="empty.*box, mask"):
        ProjectedGradients(roi_heads, [])
    with pytest.raises(UserError, match="twice"):
        ProjectedGradients(roi_heads, ["box", "box"])
    with pytest.raises(UserError, match="at least 1"):
        ProjectedGradients(roi_heads, k=0)
    without_masks = tiny.roi_heads(MASK_ON=False)
    with pytest.raises(UserError, match="'mask'.*: box\\."):
        ProjectedGradients(without_masks)
    assert list(build_head_losses(without_masks, ["box"])) == ["box"]


def test_cascade_keeps_a_part_for_each_layer_of_each_stage(tiny):
    layout = ProjectedGradients(tiny.roi_heads(**MODELS["cascade"])).layouts["box"]
    assert list(layout.slices)[:3] == ["box_head.0.fc1", "box_head.0.fc2", "box_head.1.fc1"]
    assert "box_predictor.2.cls_score" in layout.slices
    assert not any("bbox_pred" in name for name in layout.slices)
    # 16 x 16 for the two hidden layers; the classifier has 6 outputs, fewer than 16.
    assert layout.shapes["box_head.0.fc1"] == (16, 16)
    assert layout.shapes["box_predictor.0.cls_score"] == (6, 16)
    assert layout.size == 3 * (256 + 256 + 96)


def test_several_rois_of_an_instance_add_up():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    total = sum_by_instance(rows, torch.tensor([0, 2, 0]), 3)
    assert total[0].tolist() == [6.0, 8.0] and total[2].tolist() == [3.0, 4.0]
    assert total[1].tolist() == [0.0, 0.0]
