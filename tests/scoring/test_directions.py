from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.scoring.gradients.averages import effective_count, reliability
from gal_d2.scoring.gradients.cache_rows import REAL, CacheRows
from gal_d2.scoring.gradients.confusion import ConfusionEstimate
from gal_d2.scoring.gradients.directions import GradientCache


def rows(gradient, classes, slots=None):
    gradient = torch.as_tensor(gradient, dtype=torch.float32)
    classes = torch.as_tensor(classes)
    slots = torch.full_like(classes, REAL) if slots is None else torch.as_tensor(slots)
    return {"box": CacheRows(gradient, classes, slots)}


def nothing(size=2):
    return rows(torch.zeros(0, size), torch.zeros(0, dtype=torch.int64))


def small_cache(num_classes=3, size=2, **options):
    options = {"momentum": 0.5, "shrinkage": 0.0, "num_partners": 2} | options
    return GradientCache({"box": [size]}, num_classes, **options)


def test_average_of_normalised_gradients_with_bias_correction():
    cache = small_cache()
    cache.update(rows([[3.0, 0.0]], [1]))
    assert cache.direction("box", torch.tensor([1])).tolist() == [[1.0, 0.0]]
    # The second one, of another length, counts twice as much as the first at momentum 0.5:
    # weights 0.25 and 0.5, divided by 1 - 0.5 ** 2.
    cache.update(rows([[0.0, 70.0]], [1]))
    expected = F.normalize(torch.tensor([[1 / 3, 2 / 3]]))
    torch.testing.assert_close(cache.direction("box", torch.tensor([1])), expected)
    torch.testing.assert_close(
        cache.real_gradient("box", torch.tensor([1])), torch.tensor([[1.0, 140 / 3]])
    )
    assert cache.count("box").tolist() == [0, 2, 0]


def test_several_instances_in_a_step_share_their_weight():
    cache = small_cache()
    cache.update(rows([[1.0, 0.0]], [0]))
    cache.update(rows([[0.0, 2.0], [0.0, 4.0], [5.0, 0.0]], [0, 0, 1]))
    # One at weight 0.5 ** 3, two that share 0.75; the sum is 0.875.
    expected = F.normalize(torch.tensor([[0.125, 0.75]]))
    torch.testing.assert_close(cache.direction("box", torch.tensor([0])), expected)
    assert cache.num_updates.tolist() == [2, 1, 0]


def test_unknown_classes_are_missing_and_repeated_ones_agree():
    cache = small_cache()
    cache.update(rows([[1.0, 0.0]], [0]))
    direction = cache.direction("box", torch.tensor([2, 0, 2, 0]))
    assert (
        direction[[0, 2]].isnan().all()
        and cache.real_gradient("box", torch.tensor([2])).isnan().all()
    )
    assert direction[[1, 3]].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_age_counts_steps_since_the_last_real_instance():
    cache = small_cache()
    assert cache.steps_since_update.tolist() == [-1, -1, -1]
    for step in range(4):
        cache.update(rows([[1.0, 0.0]], [0]) if step == 1 else nothing())
    assert cache.steps_since_update.tolist() == [2, -1, -1]


def test_effective_count_is_kishs():
    momentum, n = 0.9, 7
    weights = torch.tensor([momentum**i for i in range(n)], dtype=torch.float64)
    expected = weights.sum() ** 2 / weights.square().sum()
    torch.testing.assert_close(effective_count(torch.tensor(n), momentum), expected)
    assert effective_count(torch.tensor(0), momentum) == 0
    assert effective_count(torch.tensor(10**6), momentum) == pytest.approx(19)


def test_a_thin_class_is_shrunk_to_its_group_and_the_group_to_all():
    cache = small_cache(
        3, 3, momentum=0.5, shrinkage=1.0, class_groups=torch.tensor([0, 0, 1]), num_partners=0
    )
    cache.update(rows(torch.eye(3), [0, 1, 2]))
    overall = torch.full((3,), 1 / 3)
    group = 2 / 3 * torch.tensor([0.5, 0.5, 0]) + 1 / 3 * overall
    own = torch.tensor([1.0, 0, 0])
    expected = F.normalize(0.5 * own + 0.5 * group, dim=0)
    torch.testing.assert_close(cache.direction("box", torch.tensor([0]))[0], expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_or_zero_never_enters(bad):
    cache = small_cache()
    cache.update(rows([[1.0, 0.0], [bad, 1.0], [0.0, 0.0]], [0, 0, 1]))
    assert cache.direction("box", torch.tensor([0])).tolist() == [[1.0, 0.0]]
    assert cache.count("box").tolist() == [1, 0, 0]


def test_autocast_does_not_round_the_averages():
    cache, gradient = small_cache(), [[1.001, 2.002]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache.update(rows(gradient, [0]))
        direction = cache.direction("box", torch.tensor([0]))
    torch.testing.assert_close(
        cache.real_gradient("box", torch.tensor([0])), torch.tensor(gradient)
    )
    torch.testing.assert_close(direction, F.normalize(torch.tensor(gradient)))


def test_products_make_the_cosine_and_the_raw_product():
    cache = GradientCache({"box": [2, 3]}, 3, num_partners=2, partner_every=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        gradient = torch.randn(4, 5, generator=generator)
        slots = [REAL, REAL, REAL, 0]
        cache.update(
            rows(gradient, [0, 1, 2, 0], slots),
            (torch.tensor([0]), torch.tensor([[0.2, 0.5, 0.3]])),
        )
    classes, gradient = torch.tensor([0, 2]), torch.randn(2, 5, generator=generator)
    weights = cache.direction_weights("box", classes)
    along, norm, raw = cache.products("box", classes, weights, gradient)
    cosine = (cache.direction("box", classes) * F.normalize(gradient, dim=1)).sum(1)
    torch.testing.assert_close(along / norm / gradient.norm(dim=1), cosine)
    torch.testing.assert_close(
        raw * cache.raw_factor("box", classes),
        (cache.real_gradient("box", classes) * gradient).sum(1),
    )


# -- Contrast


def confused_cache(**options):
    """Candidates of class 0 resemble class 2 most, then class 1."""
    cache = small_cache(4, 2, partner_every=1, **options)
    real = rows(torch.tensor([[1.0, 0.2], [0.0, 1.0], [1.0, -0.2]]), [0, 1, 2])
    candidates = torch.tensor([0, 0]), torch.tensor([[0.3, 0.1, 0.6, 0.0], [0.5, 0.2, 0.2, 0.1]])
    cache.update(real, candidates)
    return cache


def test_partners_are_what_candidates_resemble_and_have_been_seen():
    # Class 3 resembles too, but no real instance of it exists to relabel.
    assert confused_cache().partners[0].tolist() == [2, 1]
    assert confused_cache().partners[1:].max() == -1
    assert confused_cache(num_partners=0).partners.shape == (4, 0)


def test_relabelled_instances_are_planned_thinnest_slot_first():
    cache = confused_cache()
    row, as_class, slot = cache.counterfactuals(torch.tensor([1, 2, 3]), limit=10)
    assert sorted(zip(row.tolist(), as_class.tolist(), slot.tolist(), strict=True)) == [
        (0, 0, 1),
        (1, 0, 0),
    ]
    cache.update(rows([[0.0, -1.0]], [0], [0]))  # slot 0 has one now
    row, _, slot = cache.counterfactuals(torch.tensor([1, 2, 3]), limit=1)
    assert (row.tolist(), slot.tolist()) == ([0], [1])


def test_direction_is_positives_minus_negatives_by_share_of_confusion():
    cache = confused_cache(momentum=0.5)
    cache.update(rows([[0.0, -1.0], [1.0, 0.0]], [0, 0], [0, 1]))
    share = torch.tensor([0.4, 0.15]) / 0.55  # means of the two candidates' probabilities
    positive = F.normalize(torch.tensor([1.0, 0.2]), dim=0)
    expected = positive - share[0] * torch.tensor([0.0, -1.0]) - share[1] * torch.tensor([1.0, 0.0])
    torch.testing.assert_close(
        cache.direction("box", torch.tensor([0]))[0],
        F.normalize(expected, dim=0),
        rtol=1e-3,
        atol=1e-3,
    )
    # Half of a slot is trusted when it is worth one instance and n0 = 1.
    trusted = reliability(torch.tensor([0, 1]), cache.momentum, shrinkage=1.0)
    torch.testing.assert_close(trusted, torch.tensor([0.0, 0.5]))


def test_a_slot_starts_anew_when_its_partner_changes():
    cache = confused_cache()
    cache.update(rows([[0.0, -1.0], [1.0, 0.0]], [0, 0], [0, 1]))
    assert cache.negative_count("box")[0].tolist() == [1, 1]
    new = torch.tensor([[0.0, 0.0, 0.3, 0.7]]).repeat(20, 1)
    cache.update(rows([[0.5, 0.5]], [3]), (torch.zeros(20, dtype=torch.int64), new))
    assert sorted(cache.partners[0].tolist()) == [2, 3]
    assert cache.partners[0].tolist() == [2, 3]  # the one that stays keeps its slot
    assert cache.negative_count("box")[0].tolist() == [1, 0]
    assert cache._negative["box"][0, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("likelier", "partner"), [(0.28, 1), (0.6, 2)])
def test_only_a_clearly_likelier_newcomer_ousts_a_partner(likelier, partner):
    cache = small_cache(3, 2, num_partners=1, partner_every=1)
    real = rows(torch.eye(2)[[0, 1, 1]], [0, 1, 2])
    cache.update(real, (torch.tensor([0]), torch.tensor([[0.5, 0.3, 0.2]])))
    assert cache.partners[0].tolist() == [1]
    candidates = torch.tensor([[0.78 - likelier, 0.22, likelier]]).repeat(30, 1)
    cache.update(real, (torch.zeros(30, dtype=torch.int64), candidates))
    assert cache.partners[0].tolist() == [partner]


def test_contrast_tells_a_relabelled_partner_from_the_true_class():
    """Gradients = shared part of varying size + small class part + noise.

    What the cosine with the class's mean sees is the shared part.
    """
    generator = torch.Generator().manual_seed(0)
    size, n = 40, 400
    shared, own, partner = F.normalize(torch.randn(3, size, generator=generator), dim=1)

    def draw(part, n):
        noise = torch.randn(n, size, generator=generator) / math.sqrt(size)
        strength = 0.3 + 2 * torch.rand(n, 1, generator=generator)
        return strength * shared + 0.2 * part + 0.3 * noise

    def auc(cache):
        direction = cache.direction("box", torch.tensor([0]))[0]
        good, bad = (F.normalize(draw(part, n), dim=1) @ direction for part in (own, partner))
        return (good[:, None] > bad[None, :]).float().mean().item()

    plain = GradientCache({"box": [size]}, 2, num_partners=0, shrinkage=0.0, momentum=0.99)
    contrast = GradientCache({"box": [size]}, 2, partner_every=1, shrinkage=0.0, momentum=0.99)
    probabilities = torch.tensor([[0.5, 0.5]])
    for _ in range(30):
        real = torch.cat([draw(own, 4), draw(partner, 4)])
        classes = torch.tensor([0] * 4 + [1] * 4)
        plain.update({"box": CacheRows(real, classes, torch.full((8,), REAL))})
        row, as_class, slot = contrast.counterfactuals(classes, limit=8)
        relabelled = draw(partner, len(row))
        contrast.update(
            {
                "box": CacheRows(
                    torch.cat([real, relabelled]),
                    torch.cat([classes, as_class]),
                    torch.cat([torch.full((8,), REAL), slot]),
                )
            },
            (torch.tensor([0]), probabilities),
        )
    assert contrast.partners[0].tolist() == [1]
    assert auc(plain) < 0.8
    assert auc(contrast) > 0.98


# -- Confusion


def test_confusion_keeps_a_running_mean_of_the_likeliest_others():
    confusion = ConfusionEstimate(4, momentum=0.5, top=2)
    confusion.update(
        confusion.summarise(
            torch.tensor([1, 1]), torch.tensor([[0.4, 0.6, 0, 0], [0.2, 0.6, 0.2, 0]])
        )
    )
    assert confusion.ids[1].tolist() == [0, 2]
    torch.testing.assert_close(confusion.mass[1], 0.75 * torch.tensor([0.3, 0.1]))
    confusion.update(confusion.summarise(torch.tensor([1]), torch.tensor([[0.0, 0.1, 0.0, 0.9]])))
    assert confusion.ids[1].tolist() == [3, 0]
    torch.testing.assert_close(confusion.mass[1], torch.tensor([0.45, 0.1125]))
    assert confusion.mass_of(torch.tensor([1]), torch.tensor([[0, 2, -1]])).tolist() == [
        pytest.approx([0.1125, 0.0, 0.0])
    ]
    assert (confusion.ids[0] == -1).all()


def test_confusion_of_two_processes_and_of_bad_probabilities():
    one, two = ConfusionEstimate(3, momentum=0.5), ConfusionEstimate(3, momentum=0.5)
    a = one.summarise(torch.tensor([0]), torch.tensor([[0.2, 0.8, 0.0]]))
    b = one.summarise(torch.tensor([0]), torch.tensor([[0.2, 0.0, 0.8]]))
    one.update(torch.cat([a, b]))
    two.update(a)
    two.update(b)
    assert torch.equal(one.mass, two.mass) and torch.equal(one.ids, two.ids)
    assert len(one.summarise(torch.tensor([0]), torch.full((1, 3), math.nan))) == 0


# -- State


R50_FPN_MASK = [256] * 6  # 4 convolutions, the transposed one, the predictor: 16 x 16 each
R50_FPN_BOX = [256] * 3  # 2 hidden layers, the classifier


def test_lvis_with_four_negatives_of_both_heads_takes_less_than_64_mb():
    cache = GradientCache({"box": R50_FPN_BOX, "mask": R50_FPN_MASK}, 1203, num_partners=4)
    tensors = [value for value in cache.state_dict().values() if torch.is_tensor(value)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert 1203 * (768 + 1536) * 4 < size <= 64e6


def test_a_state_of_the_release_that_could_weight_layers_comes_back():
    cache = confused_cache()
    state = cache.state_dict()
    state["signature"] = {**state["signature"], "by_layer": False, "bias": False}
    assert confused_cache().load_state_dict(state)
    state["signature"]["by_layer"] = True
    assert not confused_cache().load_state_dict(state)


def test_state_comes_back(tmp_path):
    cache = confused_cache()
    cache.update(rows([[0.0, -1.0], [1.0, 0.0]], [0, 0], [0, 1]))
    torch.save(cache.state_dict(), tmp_path / "cache.pth")
    fresh = small_cache(4, 2, partner_every=1)
    assert fresh.load_state_dict(torch.load(tmp_path / "cache.pth"))
    for c in (cache, fresh):
        c.update(rows([[0.3, 0.4]], [0]), (torch.tensor([0]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])))
    restored = fresh.state_dict()
    for name, value in cache.state_dict().items():
        assert name == "signature" or torch.equal(value, restored[name]), name


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "written without scoring"),
        ({}, "written without scoring"),
        (small_cache(signature={"k": 8}).state_dict(), "differs in k"),
        (small_cache(4, signature={"k": 16}).state_dict(), "differs in num_classes"),
        (small_cache(size=5, signature={"k": 16}).state_dict(), "differs in sizes"),
    ],
)
def test_a_state_that_does_not_fit_says_so_and_starts_fresh(state, words, caplog):
    cache = small_cache(signature={"k": 16})
    cache.update(rows([[1.0, 0.0]], [0]))
    assert not cache.load_state_dict(state)
    assert words in caplog.text and len(caplog.records) == 1
    assert cache.count("box").sum() == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("num_partners", -1),
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(UserError, match=option.upper()):
        GradientCache({"box": [2]}, 3, **{option: value})


@pytest.mark.parametrize(("argument", "value"), [("shrinkage", -1), ("partner_every", 0)])
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        GradientCache({"box": [2]}, 3, **{argument: value})
