from __future__ import annotations

import math

import pytest
import torch
from detectron2.structures import Instances
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.scoring.scorer import ContributionScorer, RealBatch

OPTIONS = {"reference_size": 8, "reference_min": 1, "momentum": 0.5, "shrinkage": 0.0}


@pytest.fixture
def batch(tiny):
    return tiny.features(), tiny.targets(tiny.five)


def test_rows_are_the_pasted_instances_in_order(tiny, batch):
    scorer = ContributionScorer(tiny.roi_heads(), **OPTIONS)
    scored = scorer.step(*batch)
    assert scored.pool_id.tolist() == [101, 102]
    assert scored.image_index.tolist() == [0, 1]
    assert scored.gt_class.tolist() == [1, 2]
    assert scored.num_rois.tolist() == [1, 1]
    assert scored.heads == ("box", "mask")
    # No real instance of their classes has been seen.
    assert scored.score.isnan().all() and scored.phi.isnan().all()
    assert all(loss.isfinite().all() and (loss > 0).all() for loss in scored.head_loss.values())
    assert scorer.cache.count("box").tolist() == [2, 0, 0, 0, 1]


def test_score_agrees_with_the_naive_way(tiny, batch):
    """Full gradients of one instance at a time through autograd, averages written out."""
    roi_heads = tiny.roi_heads()
    features, _ = batch
    real = tiny.targets([(0, [4, 6, 30, 40], 1, 0, -1), (1, [8, 8, 24, 40], 1, 0, -1)])
    pasted = tiny.targets([(0, [20, 10, 60, 30], 1, 1, 5)])
    scorer = ContributionScorer(
        roi_heads, projection=None, loss_weights={}, **(OPTIONS | {"momentum": 0.9})
    )
    scorer.update(features, real)
    scored = scorer.score(features, pasted)

    def naive(head, targets):
        boxes = [t.gt_boxes for t in targets]
        maps = [features["p2"], features["p3"]]
        if head == "box":
            pooled = roi_heads.box_pooler(maps, boxes)
            layers = [
                roi_heads.box_head.fc1,
                roi_heads.box_head.fc2,
                roi_heads.box_predictor.cls_score,
            ]
        else:
            pooled = roi_heads.mask_pooler(maps, boxes)
            layers = [m for m in roi_heads.mask_head.modules() if hasattr(m, "weight")]
            masks = torch.cat([t.gt_masks.crop_and_resize(t.gt_boxes.tensor, 12) for t in targets])
        rows = []
        for i in range(len(pooled)):
            if head == "box":
                logits = roi_heads.box_predictor(roi_heads.box_head(pooled[i : i + 1]))[0]
                loss = F.cross_entropy(logits, torch.tensor([1]))
            else:
                logits = roi_heads.mask_head.layers(pooled[i : i + 1])[:, 1]
                loss = F.binary_cross_entropy_with_logits(logits, masks[i : i + 1].float())
            gradient = torch.autograd.grad(loss, [layer.weight for layer in layers])
            rows.append(torch.cat([g.flatten() for g in gradient]))
        return torch.stack(rows)

    phi = 0.0
    for head in ("box", "mask"):
        g_real, g = naive(head, real), naive(head, pasted)[0]
        direction = F.normalize(F.normalize(g_real, dim=1).mean(0), dim=0)
        cosine = F.normalize(g, dim=0) @ direction
        torch.testing.assert_close(scored.head_score[head][0], cosine, rtol=1e-4, atol=1e-5)
        phi = phi + g_real.mean(0) @ g
    torch.testing.assert_close(scored.phi[0], phi, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scored.score, scored.head_score["box"])


def test_projected_cosines_are_near_the_full_ones(tiny):
    roi_heads, features = tiny.roi_heads(), tiny.features()
    real = tiny.targets([(0, [4, 6, 30, 40], 1, 0, -1), (1, [8, 8, 24, 40], 2, 0, -1)])
    pasted = tiny.targets([(0, [20, 10, 60, 30], 1, 1, 5), (1, [3, 9, 44, 50], 2, 1, 6)])
    results = []
    for projection in (None, 16):
        scorer = ContributionScorer(roi_heads, projection=projection, **OPTIONS)
        scorer.update(features, real)
        results.append(scorer.score(features, pasted))
    for head in ("box", "mask"):
        difference = results[0].head_score[head] - results[1].head_score[head]
        assert difference.abs().max() < 0.25


def test_a_probe_is_learnt_from_in_place_of_the_batch(tiny, batch):
    scorer = ContributionScorer(tiny.roi_heads(), partner_every=1, **OPTIONS)
    features, targets = batch
    probe = RealBatch(
        tiny.features(seed=7),
        tiny.targets([(0, [4, 6, 30, 40], 1, 0, -1), (1, [8, 8, 24, 40], 2, 0, -1)]),
    )
    plain = ContributionScorer(tiny.roi_heads(), partner_every=1, **OPTIONS)
    for _ in range(2):
        scored = scorer.step(features, targets, probe=probe)
        expected = plain.score(features, targets)
        plain.update(probe.features, probe.targets)
        # What the pasted ones resemble is known to the step: so are the partners.
        plain.cache.confusion = scorer.cache.confusion
        plain.cache._choose_partners()
        torch.testing.assert_close(scored.score, expected.score, equal_nan=True)
    assert scorer.cache.count("box").tolist() == [0, 2, 2, 0, 0]  # none of the batch's own
    assert scored.score.isfinite().all()
    assert (scorer.cache.partners[1] >= 0).any()


def test_a_process_without_probe_images_learns_nothing(tiny, batch):
    scorer = ContributionScorer(tiny.roi_heads(), **OPTIONS)
    features, targets = batch
    scorer.step(features, targets, probe=RealBatch(features, [t[:0] for t in targets]))
    assert scorer.cache.count("box").sum() == 0 and len(scorer.step(features, targets)) == 2


def test_one_step_equals_score_then_update(tiny, batch):
    joint = ContributionScorer(tiny.roi_heads(), partner_every=1, **OPTIONS)
    apart = ContributionScorer(tiny.roi_heads(), partner_every=1, **OPTIONS)
    features, _ = batch
    targets = tiny.targets(
        [*tiny.five, (1, [30, 4, 60, 30], 1, 0, -1), (0, [5, 30, 30, 60], 2, 0, -1)]
    )
    for _ in range(3):
        one = joint.step(features, targets)
        two = apart.score(features, targets)
        apart.update(features, targets)
        apart.cache.confusion = joint.cache.confusion  # `update` alone sees no candidates
        apart.cache._partners.copy_(joint.cache.partners)
        torch.testing.assert_close(one.score, two.score, equal_nan=True)
        torch.testing.assert_close(one.phi, two.phi, equal_nan=True)
    assert one.score.isfinite().all() and one.phi.isfinite().all()
    assert joint.cache.partners.max() >= 0
    assert joint.cache.negative_count("box").sum() > 0


@pytest.mark.parametrize(
    ("usual", "low", "high"),
    [((0.4, 0.8), 0.1, 4), ((1.0, 2.0), 0, 0), ((0.1, 0.12), 5, 5)],
    ids=["above", "below", "far above"],
)
def test_combined_score_takes_off_an_excess_of_mask_loss(tiny, batch, usual, low, high):
    scorer = ContributionScorer(
        tiny.roi_heads(),
        score_weights={"box": 2.0, "mask": 0.5},
        loss_weights={"mask": 0.1},
        **(OPTIONS | {"reference_size": 64}),
    )
    features, _ = batch
    scorer.update(features, tiny.targets([(0, [4, 6, 30, 40], 1, 0, -1)]))
    window = scorer.reference["loss/mask"]
    usual = torch.linspace(*usual, 63)[
        torch.randperm(63, generator=torch.Generator().manual_seed(0))
    ]
    window.add(torch.ones(63, dtype=torch.int64), usual)
    scored = scorer.score(features, tiny.targets([(0, [20, 10, 60, 30], 1, 1, 5)]))
    q16, q50, q84 = (window.quantile(torch.tensor([1]), q) for q in (0.16, 0.5, 0.84))
    excess = ((scored.head_loss["mask"] - q50) / ((q84 - q16) / 2)).clamp(0, 5)
    assert low <= excess <= high
    expected = 2 * scored.head_score["box"] + 0.5 * scored.head_score["mask"] - 0.1 * excess
    torch.testing.assert_close(scored.score, expected)


@pytest.mark.parametrize("heads", [("box",), ("mask",)])
def test_one_head_alone_works(tiny, batch, heads):
    scorer = ContributionScorer(tiny.roi_heads(), heads=heads, **OPTIONS)
    features, targets = batch
    if heads == ("box",):
        for target in targets:
            target.remove("gt_masks")
    scorer.step(features, targets)
    again = scorer.score(features, targets, which="all")
    assert again.heads == heads
    assert again.score.isnan().tolist() == [False, True, False, True, False]


def test_a_head_without_gradients_has_the_same_loss_and_the_score_is_the_same(tiny, batch):
    both = ContributionScorer(tiny.roi_heads(), **OPTIONS)
    box = ContributionScorer(tiny.roi_heads(), gradient_heads=["box"], **OPTIONS)
    for _ in range(3):
        one, two = both.step(*batch), box.step(*batch)
    assert box.cache.heads == ("box",)
    one, two = (scorer.score(*batch, which="all") for scorer in (both, box))
    assert one.score.isfinite().sum() == 3
    torch.testing.assert_close(two.score, one.score, equal_nan=True)
    torch.testing.assert_close(two.head_score["box"], one.head_score["box"], equal_nan=True)
    assert two.head_score["mask"].isnan().all() and (two.phi - one.phi).abs().nansum() > 0
    for head in ("box", "mask"):
        torch.testing.assert_close(two.head_loss[head], one.head_loss[head])


def test_a_head_without_gradients_can_have_no_weight(tiny):
    with pytest.raises(ValueError, match="score_weights has .'mask'."):
        ContributionScorer(
            tiny.roi_heads(), gradient_heads=["box"], score_weights={"box": 1.0, "mask": 0.5}
        )


def test_an_instance_without_a_region_is_missing_not_zero(tiny):
    features = tiny.features()
    scorer = ContributionScorer(tiny.roi_heads(), **OPTIONS)
    scorer.update(features, tiny.targets([(0, [4, 6, 30, 40], 1, 0, -1)]))
    targets = tiny.targets(
        [
            (0, [20, 10, 20, 30], 1, 1, 1),  # no width
            (0, [20, 10, 40, 30], 1, 1, 2),
            (1, [20, 10, 40, 30], 5, 1, 3),  # no such class
            (1, [20, 10, 40, 30], -1, 1, 4),
        ]
    )
    scored = scorer.score(features, targets)
    assert scored.pool_id.tolist() == [1, 2, 3, 4]
    assert scored.num_rois.tolist() == [0, 1, 0, 0]
    absent = torch.tensor([True, False, True, True])
    for column in (
        scored.phi,
        scored.score,
        *scored.head_score.values(),
        *scored.head_loss.values(),
    ):
        assert column.isnan().tolist() == absent.tolist()


def test_no_instances_and_no_fields_of_ours(tiny):
    features = tiny.features()
    scorer = ContributionScorer(tiny.roi_heads(), **OPTIONS)
    assert len(scorer.step(features, tiny.targets([]))) == 0
    plain = []
    for target in tiny.targets(tiny.five):
        bare = Instances(target.image_size)
        for name in ("gt_boxes", "gt_classes", "gt_masks"):
            bare.set(name, target.get(name))
        plain.append(bare)
    assert len(scorer.step(features, plain)) == 0  # all real
    assert scorer.cache.count("mask").tolist() == [2, 1, 1, 0, 1]


def test_what_is_not_finite_is_skipped_counted_and_named_once(tiny, caplog):
    features = tiny.features()
    features["p2"][1] = math.nan
    targets = tiny.targets(
        [
            (0, [4, 6, 30, 40], 1, 0, -1),
            (1, [4, 6, 30, 40], 1, 0, -1),
            (1, [4, 6, 30, 41], 1, 1, 77),
            (0, [4, 6, 30, 41], 1, 1, 78),
        ]
    )
    scorer = ContributionScorer(tiny.roi_heads(), **OPTIONS)
    for _ in range(2):
        scored = scorer.step(features, targets, image_ids=["a.jpg", "b.jpg"])
    assert scored.pool_id.tolist() == [78, 77]
    assert scored.score.isnan().tolist() == [False, True]
    assert scored.phi.isnan().tolist() == [False, True]
    assert scorer.cache.count("box").tolist() == [0, 2, 0, 0, 0]
    assert scorer.cache.direction("box", torch.tensor([1])).isfinite().all()
    assert scorer.reference["loss/box"].count(torch.tensor([1])) == 2
    assert scorer.non_finite.counts["loss of the box head"] == 4
    assert len(caplog.records) == 2  # box and mask
    assert "image b.jpg pool id 77" in caplog.text and "image b.jpg (real)" in caplog.text


def test_at_most_so_many_real_instances_of_a_class_spread_over_the_batch(tiny):
    features = tiny.features()
    many = [(i // 4, [2 * i, 2, 2 * i + 20, 30], 1, 0, -1) for i in range(8)]
    scorer = ContributionScorer(tiny.roi_heads(), max_real_per_class=3, **OPTIONS)
    plan = scorer.plan(tiny.targets(many), learn=True)
    assert plan.target[plan.table.learnt].tolist() == [0, 2, 5]
    scorer.step(features, tiny.targets(many))
    assert scorer.cache.count("box").tolist() == [0, 3, 0, 0, 0]
    assert scorer.reference["loss/mask"].count(torch.tensor([1])) == 3


def test_where_the_usual_loss_is_known_one_real_instance_of_a_class_is_asked_about(
    tiny, monkeypatch
):
    """By a head without gradients; and all pasted ones are, and whatever else is wanted."""
    rows = [
        *((0, [2, 2, 20 + 3 * i, 30], 1, 0, -1) for i in range(3)),
        *((1, [4, 6, 30 + 3 * i, 41], 1 + i, 1, 70 + i) for i in range(2)),
        (1, [8, 8, 40, 50], 2, 0, -1),
    ]
    roi_heads = tiny.roi_heads()
    scorer = ContributionScorer(roi_heads, gradient_heads=["box"], **OPTIONS)
    assert scorer.plan(tiny.targets(rows), learn=True).table.compared.all()
    for window in scorer.reference.values():
        window.add(torch.tensor([1] * 8 + [2] * 8), torch.linspace(0.1, 0.9, 16))
    before = [window._total.clone() for window in scorer.reference.values()]
    layers, seen = roi_heads.mask_head.layers, []
    monkeypatch.setattr(
        roi_heads.mask_head, "layers", lambda x: (seen.append(len(x)), layers(x))[1], raising=False
    )
    features, targets = tiny.features(), tiny.targets(rows)
    plan = scorer.plan(targets, learn=True)
    assert plan.target[plan.table.compared].tolist() == [0, 3, 4, 5]
    whole = scorer.score(features, targets, which="all")
    step = scorer.step(features, targets)
    assert seen == [6, 4]
    for head in scorer.heads:
        torch.testing.assert_close(step.head_loss[head], whole.head_loss[head][3:5])
    for window, total in zip(scorer.reference.values(), before, strict=True):
        assert (window._total - total).tolist() == [0, 1, 1, 0, 0]
    assert scorer.cache.count("box").tolist() == [0, 3, 1, 0, 0]
    assert not scorer.non_finite.counts  # what was not asked is not missing


def test_state_comes_back_and_the_next_step_is_the_same(tiny, batch, tmp_path):
    roi_heads = tiny.roi_heads()
    features, _ = batch
    targets = tiny.targets(
        [*tiny.five, (1, [30, 4, 60, 30], 1, 0, -1), (0, [5, 30, 30, 60], 2, 0, -1)]
    )
    scorer = ContributionScorer(roi_heads, partner_every=2, **OPTIONS)
    for _ in range(3):
        scorer.step(features, targets)
    torch.save(scorer.state_dict(), tmp_path / "scorer.pth")
    resumed = ContributionScorer(roi_heads, partner_every=2, **OPTIONS)
    assert resumed.load_state_dict(torch.load(tmp_path / "scorer.pth"))
    for _ in range(3):
        one, two = scorer.step(features, targets), resumed.step(features, targets)
        assert torch.equal(one.score, two.score) and torch.equal(one.phi, two.phi)
    restored = resumed.cache.state_dict()
    for name, value in scorer.cache.state_dict().items():
        assert name == "signature" or torch.equal(value, restored[name]), name


def test_a_checkpoint_without_scoring_or_with_another_projection_starts_fresh(tiny, batch, caplog):
    scorer = ContributionScorer(tiny.roi_heads(), **OPTIONS)
    scorer.step(*batch)
    assert not scorer.load_state_dict(None)
    assert "written without scoring" in caplog.text
    caplog.clear()
    other = ContributionScorer(tiny.roi_heads(), projection=4, **OPTIONS)
    assert not other.load_state_dict(scorer.state_dict())
    assert "differs in" in caplog.text and "k" in caplog.text


def test_the_scorer_is_no_part_of_the_model(tiny, batch):
    roi_heads = tiny.roi_heads()
    names = list(roi_heads.state_dict())
    roi_heads.scorer = ContributionScorer(roi_heads, **OPTIONS)
    roi_heads.scorer.step(*batch)
    assert list(roi_heads.state_dict()) == names
    assert all(p.grad is None for p in roi_heads.parameters())


def test_cascade_and_class_agnostic_masks(tiny, batch):
    roi_heads = tiny.roi_heads(
        ROI_HEADS__NAME="CascadeROIHeads",
        ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG=True,
        ROI_MASK_HEAD__CLS_AGNOSTIC_MASK=True,
    )
    scorer = ContributionScorer(roi_heads, **OPTIONS)
    scorer.step(*batch)
    assert scorer.score(*batch, which="real").score.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": ["keypoint"]}, "'keypoint'"),
        ({"heads": ["box"], "score_weights": {"mask": 1.0}}, "SCORE_WEIGHTS names 'mask'"),
        ({"heads": ["box"], "loss_weights": {"mask": 1.0}}, "LOSS_WEIGHTS names 'mask'"),
        ({"momentum": 1.0}, "MOMENTUM is 1.0"),
    ],
)
def test_bad_options_are_named(tiny, options, words):
    with pytest.raises(UserError, match=words):
        ContributionScorer(tiny.roi_heads(), **options)


def test_a_contrast_head_that_is_not_looked_at_is_the_caller_s_mistake(tiny):
    with pytest.raises(ValueError, match="contrast_heads has"):
        ContributionScorer(tiny.roi_heads(), heads=["box"], contrast_heads=["mask"])


def test_the_mask_head_alone_has_no_contrast(tiny, batch):
    """Nothing tells which classes it confuses, for it does not classify."""
    scorer = ContributionScorer(tiny.roi_heads(), heads=["mask"], **OPTIONS)
    assert scorer.cache.contrast_heads == ()
    scorer.step(*batch)
    scores = scorer.score(*batch, which="real")
    assert scores.head_score.keys() == {"mask"} and scores.score.isfinite().all()
