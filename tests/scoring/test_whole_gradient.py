from __future__ import annotations

import math

import pytest
import torch

from gal_d2.scoring.gradients.whole_gradient import MomentumGradient, flat_gradient, mean_gradient


def test_gradient_of_all_weights_as_one_vector():
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    b = torch.tensor([[3.0]], requires_grad=True)
    unused = torch.zeros(2, requires_grad=True)
    loss = (a**2).sum() * b.sum()
    gradient = flat_gradient(loss, [a, unused, b])
    assert gradient.tolist() == [6.0, 12.0, 0.0, 0.0, 5.0]
    assert a.grad is None and b.grad is None


def test_scaling_saves_small_half_precision_gradients():
    weight = torch.tensor([1.0], requires_grad=True)
    factors = [1.0, 1024.0]
    small = [
        flat_gradient((weight.half() * 1e-8).float().sum(), [weight], scale=scale).item()
        for scale in factors
    ]
    assert small[0] == 0.0
    assert small[1] == pytest.approx(1e-8, rel=0.05)


def test_mean_over_rois():
    mean, count = mean_gradient(torch.tensor([6.0, -3.0]), 3)
    assert mean.tolist() == [2.0, -1.0] and count == 3
    mean, count = mean_gradient(torch.zeros(2), 0)
    assert mean.tolist() == [0.0, 0.0] and count == 0


def test_momentum_and_cosine_by_hand():
    cache = MomentumGradient(momentum=0.25)
    assert all(math.isnan(x) for x in cache.compare(torch.ones(2)))
    cache.update(torch.tensor([4.0, 0.0]))
    cache.update(torch.tensor([0.0, 4.0]))
    assert cache.value.tolist() == [1.0, 3.0]  # a quarter of the old, three of the new
    cosine, product = cache.compare(torch.tensor([3.0, -1.0]))
    assert cosine == pytest.approx(0.0, abs=1e-7) and product == 0.0
    cosine, product = cache.compare(torch.tensor([2.0, 6.0]))
    assert cosine == pytest.approx(1.0) and product == 20.0
    assert all(math.isnan(x) for x in cache.compare(torch.zeros(2)))


def test_state_is_restored_for_the_same_model_only(caplog):
    cache = MomentumGradient()
    cache.update(torch.tensor([1.0, 2.0, 3.0]))
    weights = [torch.zeros(2), torch.zeros(1)]
    other = MomentumGradient()
    assert other.load_state_dict(cache.state_dict(), weights)
    cache.update(torch.zeros(3))
    assert other.value.tolist() == [1.0, 2.0, 3.0]  # a copy
    assert not other.load_state_dict(cache.state_dict(), weights[:1])
    assert "is of 3 weights, this model has 2" in caplog.text
    assert MomentumGradient().load_state_dict(MomentumGradient().state_dict(), weights)
