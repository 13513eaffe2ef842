"""A linear softmax model, where the true change of the held-out loss can be computed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from gal_d2.scoring.gradients.cache_rows import REAL, CacheRows
from gal_d2.scoring.gradients.directions import GradientCache
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.rois import RoiBatch

CLASSES, SIZE, N = 4, 6, 60


class Passes(nn.Module):
    """Stands for a pooler: an instance's features are its image's feature map."""

    def forward(self, features, boxes):
        return features[0][:, :, 0, 0]


def softmax_regression():
    """ROI heads that are nothing but a linear classifier."""
    heads = nn.Module()
    heads.num_classes = CLASSES - 1
    heads.box_in_features = ["p2"]
    heads.box_pooler = Passes()
    heads.box_head = nn.Identity()
    heads.box_predictor = nn.Linear(SIZE, CLASSES)
    return heads


def rank_correlation(a, b):
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return torch.corrcoef(ranks)[0, 1].item()


@pytest.fixture(scope="module")
def toy():
    generator = torch.Generator().manual_seed(0)
    heads = softmax_regression()
    for parameter in heads.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    centres = torch.randn(CLASSES - 1, SIZE, generator=generator)
    truth = torch.randint(0, CLASSES - 1, (2 * N,), generator=generator)
    x = centres[truth] + 0.7 * torch.randn(2 * N, SIZE, generator=generator)
    labels = torch.zeros(N, dtype=torch.int64)  # all are pasted as class 0, whatever they are
    held_out = truth[N:] == 0

    gradients = ProjectedGradients(heads, ["box"], k=None)

    def run(x, labels):
        rois = RoiBatch([Boxes(torch.zeros(1, 4))] * len(x))
        return gradients(
            "box", {"p2": x[:, :, None, None]}, rois, labels, torch.arange(len(x))
        ).gradient

    class_zero = x[N:][held_out]
    cache = GradientCache({"box": [gradients.layouts["box"].size]}, 3, momentum=0.9999)
    real = run(class_zero, torch.zeros(len(class_zero), dtype=torch.int64))
    cache.update(
        {
            "box": CacheRows(
                real,
                torch.zeros(len(real), dtype=torch.int64),
                torch.full((len(real),), REAL),
            )
        }
    )
    g = run(x[:N], labels)
    phi = (cache.real_gradient("box", labels) * g).sum(1)

    def true_drop(step):
        """Loss on real instances of class 0 before minus after one step on each candidate."""
        weight, bias = (p.detach().double() for p in heads.box_predictor.parameters())
        target = torch.zeros(len(class_zero), dtype=torch.int64)

        def loss(weight):
            return F.cross_entropy(F.linear(class_zero.double(), weight, bias), target)

        drops = []
        for i in range(N):
            w = weight.clone().requires_grad_()
            own = F.cross_entropy(F.linear(x[i : i + 1].double(), w, bias), labels[i : i + 1])
            (dw,) = torch.autograd.grad(own, w)
            drops.append(loss(weight) - loss(weight - step * dw))
        return torch.stack(drops).detach()

    return SimpleNamespace(phi=phi, true_drop=true_drop)


def test_raw_phi_ranks_like_the_true_one_step_change(toy):
    assert rank_correlation(toy.phi, toy.true_drop(1e-3)) > 0.99


def test_raw_phi_is_the_change_per_unit_of_step(toy):
    torch.testing.assert_close(toy.true_drop(1e-5).float() / 1e-5, toy.phi, rtol=1e-2, atol=1e-3)
