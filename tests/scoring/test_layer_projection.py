from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.func import functional_call, grad, vmap

from gal_d2.errors import UserError
from gal_d2.scoring.gradients.layer_capture import LayerCapture, can_select_channels, find_layers
from gal_d2.scoring.gradients.layer_projection import LayerProjection, random_matrix


def per_sample_reference(module, inputs, weights):
    """Full per-sample gradients with torch.func, by parameter name."""
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, x, w):
        return (functional_call(module, parameters, (x[None],)).square() * w).sum()

    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs, weights)


def captured(module, inputs, weights, k, seed=0):
    """{layer: (N, D)} from one forward and backward."""
    layers = find_layers(module)
    with LayerCapture(layers) as capture:
        outputs = module(inputs)
    loss = (outputs.square().flatten(1).sum(1) * weights).sum()
    result = {}
    for call, gradient in capture.gradients(loss):
        projection = LayerProjection(call.layer, layers[call.layer], k=k, seed=seed)
        result[call.layer] = result.get(call.layer, 0) + projection(call, gradient)
    return result


LAYERS = {
    "linear": (nn.Linear(7, 5), (7,)),
    "linear, more dimensions": (nn.Linear(7, 5, bias=False), (3, 7)),
    "conv": (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 9)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0)), (4, 8, 9)),
    "dilated": (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (4, 8, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 8, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 8, 9)),
    "same padding": (nn.Conv2d(4, 6, 3, padding="same"), (4, 8, 9)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 8, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 6)),
    "transposed, odd": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (4, 5, 6),
    ),
    "wrapped": (
        Conv2d(4, 8, 3, padding=1, norm=nn.GroupNorm(2, 8), activation=nn.ReLU()),
        (4, 8, 9),
    ),
    "wrapped, in place": (
        Conv2d(4, 8, 3, padding=1, activation=nn.ReLU(inplace=True)),
        (4, 8, 9),
    ),
    "chain": (
        nn.Sequential(
            nn.Conv2d(4, 5, 3),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(5, 3, 2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3 * 12 * 14, 2),
        ),
        (4, 8, 9),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_exact_mode_equals_per_sample_gradients(name):
    module, shape = LAYERS[name]
    torch.manual_seed(0)
    inputs, weights = torch.randn(3, *shape), torch.rand(3) + 0.5
    expected = per_sample_reference(module, inputs, weights)
    for layer, got in captured(module, inputs, weights, k=None).items():
        weight = expected[f"{layer}.weight" if layer else "weight"].flatten(1)
        torch.testing.assert_close(got, weight, rtol=1e-4, atol=1e-5 * got.abs().max())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("k", [3, 1000])
def test_fast_path_equals_matrices_times_the_full_gradient(name, k):
    """``P_r G P_c^T`` computed without G; k = 1000 keeps every dimension as it is."""
    module, shape = LAYERS[name]
    torch.manual_seed(0)
    inputs, weights = torch.randn(3, *shape), torch.rand(3) + 0.5
    exact = captured(module, inputs, weights, k=None)
    for layer, got in captured(module, inputs, weights, k=k, seed=4).items():
        full = exact[layer]
        rows = dict(module.named_modules())[layer].weight.shape[0]
        columns = full.shape[1] // rows
        expected = torch.einsum(
            "kr,nrc,lc->nkl",
            random_matrix(rows, k, 4, f"{layer}.rows"),
            full.reshape(-1, rows, columns),
            random_matrix(columns, k, 4, f"{layer}.columns"),
        ).flatten(1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * full.abs().max())


def test_a_frozen_layer_and_a_layer_used_twice():
    layer = nn.Linear(4, 4, bias=False)
    layer.weight.requires_grad_(False)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer(x).tanh())

    inputs, weights = torch.randn(3, 4), torch.ones(3)
    got = captured(Twice(), inputs, weights, k=None)["layer"]
    expected = per_sample_reference(Twice(), inputs, weights)["layer.weight"].flatten(1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not layer.weight.requires_grad


def test_an_input_that_is_overwritten_is_refused():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            x.add_(1)
            return y

    with pytest.raises(RuntimeError, match="overwritten in place"):
        captured(Overwrites(), torch.randn(2, 4), torch.ones(2), k=2)


def test_parametrized_weights_are_refused_and_other_layers_are_named(caplog):
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    with pytest.raises(UserError, match="parametrization"):
        find_layers(module)
    assert list(find_layers(nn.Sequential(nn.Linear(3, 3), nn.PReLU(), nn.BatchNorm1d(3)))) == ["0"]
    assert "1 (PReLU)" in caplog.text and "BatchNorm" not in caplog.text


@pytest.mark.filterwarnings("ignore:Using padding")
def test_even_kernel_with_same_padding_is_refused_in_exact_mode():
    module = nn.Conv2d(2, 2, 2, padding="same")
    with pytest.raises(NotImplementedError, match="even kernel"):
        captured(module, torch.randn(1, 2, 5, 5), torch.ones(1), k=None)


def test_matrices_depend_on_seed_name_and_side_only():
    a = random_matrix(50, 4, 0, "x.rows")
    torch.manual_seed(123)
    assert torch.equal(a, random_matrix(50, 4, 0, "x.rows"))
    assert not torch.equal(a, random_matrix(50, 4, 1, "x.rows"))
    assert not torch.equal(a, random_matrix(50, 4, 0, "x.columns"))
    assert torch.equal(a.abs(), torch.full((4, 50), 0.5))
    assert torch.equal(random_matrix(3, 4, 0, "x"), torch.eye(3))


def test_projection_preserves_inner_products_with_the_error_of_theory():
    """G = b a^T, H = d c^T: <SG, SH> = <P_r b, P_r d> <P_c a, P_c c>, two independent factors.

    Each has mean mu = <x, y> and, for sign matrices with k rows,
    variance (|x|^2 |y|^2 + <x, y>^2 - 2 sum x_i^2 y_i^2) / k.
    """
    k, trials = 8, 1500
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, generator=generator), torch.randn(30, generator=generator)
    c, d = a + torch.randn(40, generator=generator), b + torch.randn(30, generator=generator)

    def moments(x, y):
        mean = (x @ y).item()
        variance = (x @ x * (y @ y) + (x @ y) ** 2 - 2 * (x**2 @ y**2)).item() / k
        return mean, variance

    (m1, v1), (m2, v2) = moments(b, d), moments(a, c)
    mean, std = m1 * m2, math.sqrt((m1**2 + v1) * (m2**2 + v2) - (m1 * m2) ** 2)
    estimates = []
    for seed in range(trials):
        rows = random_matrix(30, k, seed, "l.rows")
        columns = random_matrix(40, k, seed, "l.columns")
        estimates.append((rows @ b) @ (rows @ d) * ((columns @ a) @ (columns @ c)))
    estimates = torch.stack(estimates)
    assert abs(estimates.mean().item() - mean) < 4 * std / math.sqrt(trials)
    assert estimates.std().item() == pytest.approx(std, rel=0.15)


@pytest.mark.parametrize("k", [None, 3])
def test_one_computed_channel_equals_all_of_them_with_a_loss_on_one(k):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 9, 1)
    inputs, channels = torch.randn(3, 4, 5, 6), torch.tensor([8, 0, 8])
    assert can_select_channels(layer) and not can_select_channels(nn.Conv2d(4, 9, 3))
    projection = LayerProjection("p", layer, k=k, seed=0)
    results = []
    for selected in ({"p": channels}, {}):
        with LayerCapture({"p": layer}, selected) as capture:
            outputs = layer(inputs)
        outputs = outputs[:, 0] if selected else outputs[torch.arange(3), channels]
        ((call, gradient),) = capture.gradients(outputs.square().sum())
        results.append((outputs, projection(call, gradient)))
    torch.testing.assert_close(results[0], results[1])
