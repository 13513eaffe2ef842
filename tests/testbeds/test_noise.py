from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.testbeds.noise import experiment as noise
from gal_d2.testbeds.noise import tables
from gal_d2.testbeds.noise.experiment import (
    NoiseExperiment,
    RealGradient,
    SeedResult,
    SmallNet,
    add_noise,
    best_of_each_class,
    gradient_chunks,
    per_sample_gradients,
)
from gal_d2.testbeds.noise.image_sets import ImageSet
from gal_d2.testbeds.noise.tables import mean_and_std, separation

SMALL = NoiseExperiment(
    20, 20, 40, 30, channels=(4, 4), steps=20, batch_size=8, noise_scales=(0.0, 2.0), seeds=(3,)
)


def small_net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet((1, 6, 5), 3, (2, 3))


def batch(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 6, 5, generator=generator), torch.arange(count) % 3


def stripes(count: int = 120) -> ImageSet:
    """Two kinds of 8 x 8 pictures: the upper or the lower half is bright."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = rng.uniform(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
    images[labels == 0, :, :4] += 0.6
    images[labels == 1, :, 4:] += 0.6
    return ImageSet("stripes", images, labels.astype(np.int64))


def test_per_sample_gradients_are_those_of_autograd():
    model, (images, labels) = small_net(), batch()
    gradients = per_sample_gradients(model, images, labels)
    for image, label, gradient in zip(images, labels, gradients, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(gradient, expected)


def test_chunks_cover_every_sample_once():
    model, (images, labels) = small_net(), batch()
    chunks = list(gradient_chunks(model, images, labels, chunk=2))
    assert [len(gradient) for gradient, _ in chunks] == [2, 2, 1]
    together = torch.cat([gradient for gradient, _ in chunks])
    torch.testing.assert_close(together, per_sample_gradients(model, images, labels))


def test_real_gradient_is_the_gradient_of_the_mean_loss():
    model, (images, labels) = small_net(), batch()
    real = RealGradient.of(model, images, labels, num_classes=4)
    F.cross_entropy(model(images), labels).backward()
    torch.testing.assert_close(real.mean, torch.cat([p.grad.flatten() for p in model.parameters()]))
    norms = real.class_direction.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 1.0, 1.0, 0.0]))  # nothing of class 3


def test_scores_by_hand():
    real = RealGradient(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    gradient = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    scores = real.scores(gradient, torch.tensor([0, 1]))
    assert scores["raw"].tolist() == [11.0, 11.0]
    torch.testing.assert_close(scores["class"], torch.tensor([0.6, 0.8]))


def test_noise_keeps_the_range_and_scales_by_picture():
    images = torch.full((2, 1, 50, 50), 0.5)
    noisy = add_noise(images, torch.tensor([0.0, 0.1]), torch.Generator().manual_seed(0))
    assert torch.equal(noisy[0], images[0])
    assert noisy[1].std().item() == pytest.approx(0.1, rel=0.05)
    loud = add_noise(images, 9.0, torch.Generator().manual_seed(0))
    assert loud.min() == 0 and loud.max() == 1


def test_best_half_of_each_class():
    score = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.2, 0.3])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    chosen = best_of_each_class(score, labels, keep=0.5)
    assert chosen.tolist() == [False, True, False, True, False, True]


def test_at_least_one_of_each_class():
    chosen = best_of_each_class(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1]), keep=0.1)
    assert chosen.tolist() == [True, False, True]


def test_separation_is_the_share_of_ordered_pairs():
    result = SeedResult(0, scores={("raw", "training"): np.array([[1.0, 3.0], [0.0, 2.0]])})
    # pairs (clean, noisy): 1>0, 1<2, 3>0, 3>2
    assert separation([result], ("raw", "training")).tolist() == [0.5, 0.75]


def test_spread_of_seeds():
    mean, spread = mean_and_std(np.array([[1.0], [3.0]]))
    assert mean.tolist() == [2.0] and spread.tolist() == [pytest.approx(2**0.5)]
    assert mean_and_std(np.array([[5.0, 6.0]]))[1].tolist() == [0.0, 0.0]


def test_an_experiment_on_pictures_that_noise_spoils():
    result = noise.run_seed(stripes(), SMALL, seed=3)
    assert list(result.accuracy) == [
        "nothing",
        "all",
        "random",
        *(noise.arm_name(key) for key in noise.SCORES),
        "oracle",
    ]
    kept = {arm: shares.tolist() for arm, shares in result.share_kept.items()}
    assert kept["nothing"] == [0.0, 0.0] and kept["all"] == [1.0, 1.0]
    # One half of each class is kept, and the oracle's has the clean ones of the class.
    assert kept["oracle"][0] > kept["random"][0] and kept["oracle"][1] < kept["random"][1]
    again = noise.run_seed(stripes(), SMALL, seed=3)
    assert again.accuracy == result.accuracy
    for key in noise.SCORES:
        assert result.scores[key].shape == (2, 40)
        assert np.array_equal(result.scores[key], again.scores[key])
        assert result.trained_on[key].shape == (20,)
    table = tables.accuracy_table([result])
    assert f"| oracle | {result.accuracy['oracle'][0]:.1f} ± 0.0 |" in table
    assert tables.separation_table([result], SMALL).count("\n") == 1 + len(noise.SCORES)


def test_where_the_distributions_lie():
    # The clean ones have a standard deviation of 2.
    scores = {key: np.array([[2.0, 6.0], [-1.0, 2.0]]) for key in noise.SCORES}
    trained_on = dict.fromkeys(noise.SCORES, np.array([-1.0, 0.0, 9.0]))
    table = tables.location_table([SeedResult(0, scores=scores, trained_on=trained_on)], SMALL)
    assert table.splitlines()[0] == "| score | trained on | noise 0 | noise 2 |"
    assert table.splitlines()[2] == "| raw, training | +0.00 | +2.00 | +0.25 |"


def test_sizes_of_a_set_that_is_not_known():
    config = noise.default_for(stripes(125))
    assert (config.num_real, config.num_held_out) == (20, 20)
    assert (config.num_candidates, config.num_test) == (40, 45)
    known = ImageSet("digits", np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.int64))
    assert noise.default_for(known) is noise.DEFAULTS["digits"]


def test_more_pictures_than_there_are():
    with pytest.raises(UserError, match=r"110 in all, but stripes has 100"):
        noise.run_seed(stripes(100), SMALL, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 1.0}, "keep is 1.0"),
        ({"scored_after": 0.0}, "scored_after is 0.0"),
        ({"noise_scales": (0.1, 0.2)}, "ascending from 0"),
        ({"noise_scales": (0.0, 0.2, 0.1)}, "ascending from 0"),
        ({"seeds": ()}, "no seeds"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)
