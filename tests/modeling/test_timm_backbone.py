from __future__ import annotations

import copy

import pytest
import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone

from gal_d2.config import add_gal_config
from gal_d2.errors import UserError
from gal_d2.modeling.timm_backbone import TimmBackbone, freeze_batch_norm

STRIDES = [4, 8, 16, 32]


def small_config(*options) -> CfgNode:
    """An FPN on a small timm model, without pretrained weights."""
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = "resnet10t"
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.merge_from_list(list(options))
    return cfg


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_feature_maps_have_the_promised_shapes(name):
    backbone = TimmBackbone(name, strides=STRIDES)
    features = backbone(torch.zeros(1, 3, 64, 96))
    for key, spec in backbone.output_shape().items():
        assert features[key].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_one_key_builds_an_fpn_on_it():
    features = build_backbone(small_config())(torch.zeros(1, 3, 64, 64))
    assert {k: v.shape[-1] for k, v in features.items()} == {
        "p2": 16, "p3": 8, "p4": 4, "p5": 2, "p6": 1
    }  # fmt: skip


def test_stages_beyond_the_last_stride_are_not_built():
    backbone = build_backbone(small_config("MODEL.TIMM.STRIDES", [4, 8]))
    features = backbone(torch.zeros(1, 3, 64, 64))
    assert {k: v.shape[-1] for k, v in features.items()} == {"p2": 16, "p3": 8}
    stages = [name for name in backbone.bottom_up.model if name.startswith("layer")]
    assert stages == ["layer1", "layer2"]


def test_local_weights_are_loaded_and_batch_norm_is_frozen(tmp_path):
    torch.manual_seed(1)
    donor = timm.create_model("resnet10t")
    path = tmp_path / "weights.pth"
    torch.save(donor.state_dict(), path)
    backbone = TimmBackbone("resnet10t", strides=STRIDES, weights=str(path))
    assert torch.equal(backbone.model["layer1"][0].conv1.weight, donor.layer1[0].conv1.weight)
    kinds = {type(m) for m in backbone.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {FrozenBatchNorm2d}


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "regnetx_002"])
def test_frozen_norms_compute_what_the_layers_did(name):
    # Some of timm's normalisation layers end with an activation, which has to stay.
    torch.manual_seed(0)
    plain = TimmBackbone(name, strides=[4, 8], freeze_bn=False)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    images = torch.rand(1, 3, 64, 64)
    expected = plain.eval()(images)
    frozen = copy.deepcopy(plain)
    frozen.model = freeze_batch_norm(frozen.model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())
    for key, value in frozen.train()(images).items():
        torch.testing.assert_close(value, expected[key])
    names = {n for n in plain.state_dict() if not n.endswith("num_batches_tracked")}
    assert frozen.state_dict().keys() == names


@pytest.mark.parametrize(
    ("name", "frozen", "trained"),
    [
        ("resnet10t", ["conv1", "bn1", "layer1", "layer2"], ["layer3", "layer4"]),
        (
            "tf_efficientnet_lite0",
            ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"],
            ["blocks.3", "blocks.4", "blocks.5", "blocks.6"],
        ),
        # timm's wrapper calls them "stages_0", its list of feature maps "stages.0".
        ("convnext_atto", ["stem", "stages.0", "stages.1"], ["stages.2", "stages.3"]),
    ],
)
def test_what_comes_before_a_stride_can_be_frozen(name, frozen, trained):
    backbone = TimmBackbone(name, strides=STRIDES, freeze_bn=False, freeze_stride=8)
    parameters = [(n.replace("_", "."), p) for n, p in backbone.model.named_parameters()]

    def of(modules: list[str]) -> set[bool]:
        prefixes = tuple(f"{module.replace('_', '.')}." for module in modules)
        return {p.requires_grad for n, p in parameters if n.startswith(prefixes)}

    assert of(frozen) == {False} and of(trained) == {True}
    assert all(p.requires_grad for p in TimmBackbone(name, strides=STRIDES).parameters())


def test_a_frozen_part_gets_no_gradient_and_the_rest_does():
    backbone = build_backbone(small_config("MODEL.TIMM.FREEZE_STRIDE", 8))
    sum(v.sum() for v in backbone(torch.rand(1, 3, 64, 64)).values()).backward()
    model = backbone.bottom_up.model
    assert all(p.grad is None for p in model["layer2"].parameters())
    assert sum(p.grad.abs().sum() for p in model["layer3"].parameters()) > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "resnet10t", "freeze_stride": 2}, "MODEL.TIMM.FREEZE_STRIDE is 2: choose from"),
        ({"name": "resnet51"}, "did you mean .*resnet5"),
        ({"name": "resnet10t", "strides": [4, 64]}, r"\[64\], but 'resnet10t' has"),
        ({"name": "resnet10t", "weights": "nowhere.pth"}, "MODEL.TIMM.WEIGHTS is 'nowhere.pth'"),
    ],
)
def test_bad_input_says_what_to_do(kwargs, message):
    with pytest.raises(UserError, match=message):
        TimmBackbone(**{"strides": STRIDES, **kwargs})
