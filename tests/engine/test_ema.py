from __future__ import annotations

import pytest
import torch
from torch import nn

from gal_d2.engine.ema import ModelEMA


def make_model(value: float) -> nn.Module:
    model = nn.BatchNorm1d(2)
    nn.init.constant_(model.weight, value)
    return model


def test_the_average_follows_the_formula():
    model = make_model(1.0)
    ema = ModelEMA(model, decay=0.5)
    ema.reset()
    expected = 1.0
    for step, value in enumerate([2.0, 4.0, 8.0]):
        nn.init.constant_(model.weight, value)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["weight"].tolist() == pytest.approx([expected] * 2)


def test_integer_buffers_are_copied():
    model = make_model(1.0)
    ema = ModelEMA(model, decay=0.9)
    ema.reset()
    model.num_batches_tracked += 7
    ema.update()
    assert ema.average["num_batches_tracked"] == 7


def test_applied_swaps_and_puts_back():
    model = make_model(1.0)
    ema = ModelEMA(model, decay=0.9)
    ema.reset()
    nn.init.constant_(model.weight, 5.0)
    with ema.applied():
        assert model.weight.tolist() == [1.0, 1.0]
    assert model.weight.tolist() == [5.0, 5.0]


def test_state_survives_a_checkpoint(tmp_path):
    model = make_model(1.0)
    ema = ModelEMA(model, decay=0.9)
    for value in (2.0, 3.0):
        nn.init.constant_(model.weight, value)
        ema.update()
    torch.save(ema.state_dict(), tmp_path / "ema.pth")

    resumed = ModelEMA(make_model(3.0), decay=0.9)
    resumed.load_state_dict(torch.load(tmp_path / "ema.pth"))
    for average in (ema, resumed):
        nn.init.constant_(average._model.weight, 9.0)
        average.update()
    assert torch.equal(ema.average["weight"], resumed.average["weight"])
    assert resumed.num_updates == 3
