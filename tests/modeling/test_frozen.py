from __future__ import annotations

import pytest
import torch
from torch import nn

from gal_d2.modeling.frozen import frozen_model


class Detector(nn.Module):
    """As much as matters: a backbone with a norm, and a head that asks for its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))


def test_norms_and_dropout_are_frozen_but_the_model_is_training():
    torch.manual_seed(0)
    model = Detector().train()
    model.head[1].eval()  # frozen before: it stays so
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 4, 4)
    with frozen_model(model):
        assert model.training and model.head.training
        both = model.head(model.backbone(x))
        alone = model.head(model.backbone(x[:1]))
    assert torch.allclose(both[:1], alone)  # neither the other image nor chance has a say
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules() if module is not model.head[1])
    assert not model.head[1].training


def test_modes_return_after_an_error():
    model = Detector().train()
    with pytest.raises(RuntimeError), frozen_model(model):
        raise RuntimeError
    assert all(module.training for module in model.modules())
