from __future__ import annotations

import math
import os
import tempfile
from dataclasses import replace

import gal_d2  # noqa: F401  (first: it prepares the process for detectron2)

# isort: split

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import CfgNode

from gal_d2.distributed import gather_columns, mean_over_processes
from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.reference_window import ReferenceWindow
from gal_d2.selection.acceptance import (
    AcceptanceContext,
    AlwaysAccept,
    BatchPercentile,
    BatchThreshold,
    CalibratedAccept,
    MaskLossVeto,
    NeverAccept,
    QuantileAccept,
    RandomAccept,
    ThresholdAccept,
    TopKAccept,
    WarmUp,
    build_acceptance_policy,
    build_batch_rule,
    step_generator,
)

NAN, INF = math.nan, math.inf
NO_WARM_UP = WarmUp(min_age=0, rule="reject")
REJECT_YOUNG = WarmUp(min_age=10, rule="reject")


def contribution(scores, classes=None, images=None, mask_loss=None) -> Contribution:
    count = len(scores)
    score = torch.tensor(scores, dtype=torch.float32)
    loss = torch.tensor(mask_loss if mask_loss is not None else [0.5] * count)
    return Contribution(
        pool_id=torch.arange(count),
        image_index=torch.tensor(images if images is not None else [0] * count).long(),
        gt_class=torch.tensor(classes if classes is not None else [0] * count).long(),
        phi=score.clone(),
        score=score,
        head_score={"mask": score.clone()},
        head_loss={"mask": loss.float()},
        num_rois=torch.ones(count, dtype=torch.int64),
        area=torch.full((count,), 900.0),
    )


def context(step=0, max_steps=101, age=(100, 100, 100), reference=None, seed=0):
    return AcceptanceContext(
        step=step,
        max_steps=max_steps,
        class_group=torch.tensor([0, 1, 2]),
        class_age=torch.tensor(age),
        reference=reference or {},
        generator=torch.Generator().manual_seed(seed),
    )


def window_of(**values: list[float]) -> ReferenceWindow:
    """Keyword c<class>=values."""
    window = ReferenceWindow(torch.tensor([0, 1, 2]), size=16, n_min=4)
    for name, numbers in values.items():
        classes = torch.full((len(numbers),), int(name[1:]))
        window.add(classes, torch.tensor(numbers))
    return window


def equal(tensor: torch.Tensor, expected: list) -> bool:
    return torch.equal(tensor.nan_to_num(-99), torch.tensor(expected).nan_to_num(-99))


def test_always_and_never_look_at_nothing():
    rows = contribution([NAN, -1.0, 1.0])
    for policy, answer in ((AlwaysAccept(), True), (NeverAccept(), False)):
        decision = policy.decide(rows, context())
        assert decision.accept.tolist() == [answer] * 3
        assert decision.value.isnan().all() and decision.threshold.isnan().all()
        assert decision.policy == policy.name
        assert not decision.undecided.any() and not decision.vetoed.any()


def test_random_accepts_at_its_rate_and_repeats_with_its_generator():
    rows = contribution([0.0] * 4000)
    decision = RandomAccept(rate=0.3).decide(rows, context(seed=1))
    again = RandomAccept(rate=0.3).decide(rows, context(seed=1))
    other = RandomAccept(rate=0.3).decide(rows, context(seed=2))
    assert abs(decision.accept.float().mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert torch.equal(decision.accept, again.accept)
    assert not torch.equal(decision.accept, other.accept)
    for rate in (0.0, 1.0):
        assert (RandomAccept(rate=rate).decide(rows, context()).accept == bool(rate)).all()


def test_threshold_includes_its_value():
    decision = ThresholdAccept(value=0.25, warm_up=NO_WARM_UP).decide(
        contribution([0.2, 0.25, 0.3]), context()
    )
    assert decision.accept.tolist() == [False, True, True]
    assert decision.threshold.tolist() == [0.25] * 3
    assert equal(decision.value, [0.2, 0.25, 0.3])


@pytest.mark.parametrize(("rule", "answer"), [("accept", True), ("reject", False)])
def test_warm_up_rule_for_young_classes_and_missing_scores(rule, answer):
    policy = ThresholdAccept(value=0.0, warm_up=WarmUp(min_age=10, rule=rule))
    rows = contribution([1.0, 1.0, -1.0, NAN, -INF], classes=[0, 1, 2, 2, 2])
    decision = policy.decide(rows, context(age=(9, 10, 11)))
    assert decision.undecided.tolist() == [True, False, False, True, True]
    assert decision.accept.tolist() == [answer, True, False, answer, answer]
    assert equal(decision.threshold, [NAN, 0.0, 0.0, NAN, NAN])


def test_random_warm_up_has_its_rate():
    policy = ThresholdAccept(warm_up=WarmUp(rule="random", rate=0.8))
    accept = policy.decide(contribution([NAN] * 4000), context()).accept
    assert abs(accept.float().mean().item() - 0.8) < 0.03


def test_quantile_accepts_the_best_share_of_each_group():
    policy = QuantileAccept(start_rate=0.5, window=100, min_count=4, warm_up=NO_WARM_UP)
    # Class 0 scores far above class 2: a common threshold would take all of one, none of the other.
    rows = contribution([9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1], classes=[0] * 4 + [2] * 4)
    decision = policy.decide(rows, context())
    assert decision.accept.tolist() == [True, True, False, False] * 2
    np.testing.assert_allclose(decision.threshold, [7.5] * 4 + [0.25] * 4)


def test_quantile_rate_ramps_linearly():
    policy = QuantileAccept(start_rate=0.2, end_rate=0.6, window=1000, warm_up=NO_WARM_UP)
    assert [policy.rate(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.4, 0.6])
    generator = torch.Generator().manual_seed(0)
    for step in range(101):
        rows = contribution(torch.randn(40, generator=generator).tolist())
        accept = policy.decide(rows, context(step=step)).accept.float().mean().item()
        if step in (30, 50, 100):  # steps of 40 scores: sigma 0.08
            assert abs(accept - (0.2 + 0.4 * step / 100)) < 0.25


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_quantile_at_the_ends_accepts_none_or_all(rate):
    policy = QuantileAccept(start_rate=rate, min_count=1, warm_up=NO_WARM_UP)
    accept = policy.decide(contribution([1.0, 1.0, 2.0]), context()).accept
    assert accept.tolist() == [bool(rate)] * 3


def test_quantile_keeps_scores_of_young_classes_out_of_its_window():
    policy = QuantileAccept(min_count=1, warm_up=REJECT_YOUNG)
    policy.decide(contribution([1.0, 2.0, NAN], classes=[0, 1, 1]), context(age=(5, 20, 20)))
    assert policy._recent.count().tolist() == [0, 1, 0]


def test_quantile_with_too_few_scores_leaves_it_to_the_warm_up_rule():
    policy = QuantileAccept(min_count=5, warm_up=WarmUp(min_age=0, rule="accept"))
    decision = policy.decide(contribution([1.0, 2.0, 3.0, 4.0]), context())
    assert decision.accept.all() and decision.undecided.all()


def test_top_k_per_image():
    rows = contribution([0.1, 0.3, 0.2, NAN, -5.0], images=[0, 0, 0, 0, 1])
    decision = TopKAccept(k=2, warm_up=NO_WARM_UP).decide(rows, context())
    assert decision.accept.tolist() == [False, True, True, False, True]
    np.testing.assert_allclose(decision.threshold, [0.2, 0.2, 0.2, NAN, -INF])


def test_top_k_of_equal_scores_takes_the_earlier_rows():
    decision = TopKAccept(k=1, warm_up=NO_WARM_UP).decide(contribution([1.0, 1.0]), context())
    assert decision.accept.tolist() == [True, False]


def test_calibrated_compares_with_real_instances_of_the_same_class():
    real = {"score": window_of(c0=[0.0, 0.1, 0.2, 0.3, 0.4], c2=[0.5, 0.6, 0.7, 0.8, 0.9])}
    policy = CalibratedAccept(percentile=25, warm_up=NO_WARM_UP)
    rows = contribution([0.1, 0.11, 0.59, 0.61], classes=[0, 0, 2, 2])
    decision = policy.decide(rows, context(reference=real))
    np.testing.assert_allclose(decision.threshold, [0.1, 0.1, 0.6, 0.6], rtol=1e-6)
    assert decision.accept.tolist() == [False, True, False, True]


def test_calibrated_without_any_real_instance_is_undecided():
    decision = CalibratedAccept(warm_up=NO_WARM_UP).decide(
        contribution([1.0]), context(reference={"score": window_of()})
    )
    assert decision.undecided.all() and not decision.accept.any()


def test_calibrated_needs_the_reference():
    with pytest.raises(UserError, match=r"'score'.*loss/mask"):
        CalibratedAccept().decide(
            contribution([1.0]), context(reference={"loss/mask": window_of()})
        )


def test_veto_on_implausible_mask_loss():
    real = {"loss/mask": window_of(c0=[0.1, 0.2, 0.2, 0.2, 0.4], c1=[1.0] * 5)}
    policy = MaskLossVeto(policy=AlwaysAccept(), quantile=1.0, factor=2.0)
    rows = contribution([0.0] * 5, classes=[0, 0, 1, 1, 0], mask_loss=[0.79, 0.81, 1.9, 2.1, NAN])
    decision = policy.decide(rows, context(reference=real))
    assert decision.accept.tolist() == [True, False, True, False, True]
    assert decision.vetoed.tolist() == [False, True, False, True, False]
    assert decision.policy == "always+mask_loss_veto"


def test_veto_names_only_what_was_accepted_and_waits_for_a_reference():
    real = {"loss/mask": window_of(c0=[0.1] * 5)}
    rows = contribution([0.0], mask_loss=[9.0])
    decision = MaskLossVeto(policy=NeverAccept()).decide(rows, context(reference=real))
    assert not decision.accept.any() and not decision.vetoed.any()
    nothing = {"loss/mask": window_of()}
    assert MaskLossVeto(policy=AlwaysAccept()).decide(rows, context(reference=nothing)).accept.all()


def test_veto_on_a_head_that_is_not_scored():
    with pytest.raises(UserError, match=r"VETO\.HEAD is 'box'.*mask"):
        MaskLossVeto(policy=AlwaysAccept(), head="box").decide(contribution([0.0]), context())


def with_values(values: list[float], **options) -> AcceptanceContext:
    return replace(context(**options), value=torch.tensor(values))


def test_what_is_known_outweighs_one_lucky_score():
    """Policies that compare cut-outs with each other ask what all scores of each add up to."""
    rows, known = contribution([0.9, 0.1, 0.8, 0.2]), with_values([-0.5, 0.5, -0.25, 0.25])
    quantile = QuantileAccept(start_rate=0.5, min_count=1, warm_up=NO_WARM_UP)
    for policy, threshold in ((quantile, 0.0), (TopKAccept(k=2, warm_up=NO_WARM_UP), 0.25)):
        decision = policy.decide(rows, known)
        assert decision.accept.tolist() == [False, True, False, True]
        assert decision.value.tolist() == [-0.5, 0.5, -0.25, 0.25]
        assert decision.threshold.tolist() == [threshold] * 4


@pytest.mark.parametrize("build", [ThresholdAccept, CalibratedAccept])
def test_policies_on_the_scale_of_single_scores_decide_on_the_exposure(build):
    rows, known = contribution([0.9, -0.9]), with_values([-0.5, 0.5])
    known.reference["score"] = window_of(c0=[0.0] * 5)
    decision = build(warm_up=NO_WARM_UP).decide(rows, known)
    assert decision.accept.tolist() == [True, False]
    assert equal(decision.value, rows.score.tolist())


@pytest.mark.parametrize("build", [QuantileAccept, TopKAccept])
def test_a_known_value_speaks_for_a_missing_score(build):
    policy = build(warm_up=NO_WARM_UP, **({"min_count": 1} if build is QuantileAccept else {}))
    rows = contribution([NAN, 0.9, 0.5], classes=[0, 0, 1])
    decision = policy.decide(rows, with_values([0.5, NAN, 0.25]))
    assert decision.undecided.tolist() == [False, True, False]
    assert decision.accept.tolist() == [True, False, True]
    assert equal(decision.value, [0.5, NAN, 0.25])


def test_a_young_class_is_undecided_whatever_is_known():
    policy = QuantileAccept(min_count=1, warm_up=REJECT_YOUNG)
    decision = policy.decide(contribution([0.9]), with_values([0.9], age=(9, 10, 10)))
    assert decision.undecided.all() and not decision.accept.any()
    assert decision.value.isnan().all() and policy._recent.count().tolist() == [0, 0, 0]


def test_without_values_the_score_decides_and_is_what_the_decision_names():
    policy = QuantileAccept(start_rate=0.5, min_count=1, warm_up=NO_WARM_UP)
    decision = policy.decide(contribution([0.25, 0.75, NAN]), context())
    assert decision.accept.tolist() == [False, True, False]
    assert equal(decision.value, [0.25, 0.75, NAN])


ALL_POLICIES = [
    AlwaysAccept,
    NeverAccept,
    RandomAccept,
    ThresholdAccept,
    QuantileAccept,
    TopKAccept,
    CalibratedAccept,
    lambda: MaskLossVeto(policy=QuantileAccept()),
]


@pytest.mark.parametrize("build", ALL_POLICIES)
def test_no_instances(build):
    real = {"score": window_of(), "loss/mask": window_of()}
    decision = build().decide(Contribution.empty(["mask"]), context(reference=real))
    for name in ("accept", "value", "threshold", "undecided", "vetoed"):
        assert getattr(decision, name).shape == (0,)
    assert decision.accept.dtype == torch.bool
    assert decision.value.dtype == decision.threshold.dtype == torch.float32


@pytest.mark.parametrize("build", ALL_POLICIES)
def test_a_restored_policy_continues_as_the_first(build, tmp_path):
    def run(policy, steps):
        real = {"score": window_of(c0=[0.0] * 5), "loss/mask": window_of(c0=[0.1] * 5)}
        answers = []
        for step in steps:
            scores = torch.randn(20, generator=torch.Generator().manual_seed(step)).tolist()
            situation = context(step=step, reference=real, seed=step)
            answers.append(policy.decide(contribution(scores), situation).accept)
        return torch.stack(answers)

    first = build()
    run(first, range(5))
    torch.save(first.state_dict(), tmp_path / "policy.pth")
    second = build()
    second.load_state_dict(torch.load(tmp_path / "policy.pth", weights_only=True))
    assert torch.equal(run(first, range(5, 9)), run(second, range(5, 9)))


def test_step_generator_repeats_and_differs_by_step_and_rank():
    def draw(*key):
        return torch.rand(1, generator=step_generator(*key)).item()

    assert draw(3, 5, 0) == draw(3, 5, 0)
    assert len({draw(3, 5, 0), draw(3, 5, 1), draw(3, 6, 0), draw(4, 5, 0)}) == 4


def test_progress_is_within_the_training():
    assert context(step=0).progress == 0
    assert context(step=100).progress == 1
    assert context(step=500).progress == 1
    assert context(step=0, max_steps=1).progress == 0


def test_batch_threshold():
    rule = BatchThreshold(-0.05)
    assert rule.decide(-0.04).accept and rule.decide(-0.05).accept
    decision = rule.decide(torch.tensor(-0.06))
    assert not decision.accept and decision.threshold == -0.05
    assert decision.cosine == pytest.approx(-0.06)


def test_batch_without_a_cosine_is_accepted():
    for rule in (BatchThreshold(), BatchPercentile()):
        decision = rule.decide(NAN)
        assert decision.accept and math.isnan(decision.threshold) and math.isnan(decision.cosine)


def test_batch_percentile_looks_at_the_steps_before():
    rule = BatchPercentile(percentile=50, window=3, min_count=2)
    answers = [rule.decide(value) for value in (0.0, 1.0, 0.4, 0.6, 2.0, 0.5)]
    assert [a.accept for a in answers] == [True, True, False, True, True, False]
    # Nothing, one value (too few), median of (0 1), (0 1 .4), (1 .4 .6), (.4 .6 2).
    np.testing.assert_allclose(
        [a.threshold for a in answers], [NAN, NAN, 0.5, 0.4, 0.6, 0.6], rtol=1e-6
    )


def test_batch_percentile_accepts_equal_cosines():
    rule = BatchPercentile(percentile=90, min_count=1)
    assert all(rule.decide(0.1).accept for _ in range(5))


def test_batch_percentile_is_restored(tmp_path):
    rule = BatchPercentile(percentile=30, min_count=1)
    for value in (0.5, 0.1, 0.9):
        rule.decide(value)
    torch.save(rule.state_dict(), tmp_path / "rule.pth")
    restored = BatchPercentile(percentile=30, min_count=1)
    restored.load_state_dict(torch.load(tmp_path / "rule.pth", weights_only=True))
    assert restored.decide(0.2) == rule.decide(0.2)


def test_batch_decision_for_instances():
    decision = BatchThreshold(0.0).decide(-1.0).for_instances(2)
    assert decision.accept.tolist() == [False, False]
    assert decision.value.tolist() == [-1.0, -1.0]
    assert decision.threshold.tolist() == [0.0, 0.0]
    assert decision.policy == "threshold"


@pytest.fixture
def cfg() -> CfgNode:
    accept = {
        "UNIT": "instance",
        "POLICY": "calibrated",
        "RATE": 0.5,
        "THRESHOLD": 0.0,
        "TOP_K": 5,
        "PERCENTILE": 25.0,
        "BATCH_WINDOW": 1000,
        "QUANTILE": {"START_RATE": 0.4, "END_RATE": 0.6, "WINDOW": 1000, "MIN_COUNT": 30},
        "WARM_UP": {"MIN_AGE": 20, "RULE": "random", "RATE": 0.5},
        "VETO": {"ENABLED": False, "HEAD": "mask", "QUANTILE": 0.95, "FACTOR": 1.5},
    }
    return CfgNode({"GAL": {"ACCEPT": accept}})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("always", AlwaysAccept),
        ("never", NeverAccept),
        ("random", RandomAccept),
        ("threshold", ThresholdAccept),
        ("quantile", QuantileAccept),
        ("top_k", TopKAccept),
        ("calibrated", CalibratedAccept),
    ],
)
def test_policies_are_built_from_a_config(cfg, name, kind):
    cfg.GAL.ACCEPT.POLICY = name
    policy = build_acceptance_policy(cfg)
    assert type(policy) is kind and policy.name == name
    if hasattr(policy, "warm_up"):
        assert policy.warm_up == WarmUp(min_age=20, rule="random", rate=0.5)


def test_values_of_a_config_arrive(cfg):
    cfg.GAL.ACCEPT.POLICY = "quantile"
    cfg.GAL.ACCEPT.VETO.ENABLED = True
    veto = build_acceptance_policy(cfg)
    assert isinstance(veto, MaskLossVeto) and (veto.quantile, veto.factor) == (0.95, 1.5)
    assert (veto.policy.start_rate, veto.policy.end_rate) == (0.4, 0.6)


def test_batch_rules_are_built_from_a_config(cfg):
    cfg.GAL.ACCEPT.POLICY, cfg.GAL.ACCEPT.THRESHOLD = "threshold", -0.05
    rule = build_batch_rule(cfg)
    assert isinstance(rule, BatchThreshold) and rule.value == -0.05
    cfg.GAL.ACCEPT.POLICY = "percentile"
    assert build_batch_rule(cfg).percentile == 25.0


def test_an_unknown_name_lists_the_known_ones(cfg):
    cfg.GAL.ACCEPT.POLICY = "best"
    with pytest.raises(UserError, match=r"'best'.*always, calibrated, never"):
        build_acceptance_policy(cfg)
    with pytest.raises(UserError, match=r"'best'.*percentile, threshold"):
        build_batch_rule(cfg)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: RandomAccept(rate=1.5), "RATE"),
        (lambda: QuantileAccept(start_rate=-0.1), "QUANTILE.START_RATE"),
        (lambda: QuantileAccept(end_rate=2), "QUANTILE.END_RATE"),
        (lambda: QuantileAccept(window=0), "QUANTILE.WINDOW"),
        (lambda: QuantileAccept(window=10, min_count=11), "QUANTILE.MIN_COUNT"),
        (lambda: TopKAccept(k=0), "TOP_K"),
        (lambda: CalibratedAccept(percentile=101), "PERCENTILE"),
        (lambda: BatchPercentile(percentile=-1), "PERCENTILE"),
        (lambda: BatchPercentile(window=0), "BATCH_WINDOW"),
        (lambda: MaskLossVeto(policy=AlwaysAccept(), quantile=2), "VETO.QUANTILE"),
        (lambda: MaskLossVeto(policy=AlwaysAccept(), factor=0), "VETO.FACTOR"),
        (lambda: WarmUp(rule="maybe"), "WARM_UP.RULE"),
        (lambda: WarmUp(rate=-1), "WARM_UP.RATE"),
        (lambda: WarmUp(min_age=-1), "WARM_UP.MIN_AGE"),
    ],
)
def test_values_out_of_range_name_their_key(build, key):
    with pytest.raises(UserError, match=f"GAL.ACCEPT.{key} is .*: set it"):
        build()


# Twelve instances a step; on two processes rank 0 has the first five.
STEPS = 4


def _global_step(step: int) -> tuple[list[float], list[int]]:
    generator = torch.Generator().manual_seed(step)
    scores = torch.randn(12, generator=generator).tolist()
    return scores, torch.randint(0, 3, (12,), generator=generator).tolist()


def _share(step: int, rank: int | None) -> slice:
    if rank is None:
        return slice(None)
    if step == 2:  # a process without instances
        return slice(12) if rank == 0 else slice(0, 0)
    return slice(5) if rank == 0 else slice(5, 12)


def _decide_all(rank: int | None) -> dict[str, object]:
    policy = QuantileAccept(window=8, min_count=2, warm_up=NO_WARM_UP)
    real = ReferenceWindow(torch.tensor([0, 1, 2]), size=4, n_min=1)
    rule = BatchPercentile(min_count=1)
    accepted, batches = [], []
    for step in range(STEPS):
        scores, classes = (part[_share(step, rank)] for part in _global_step(step))
        real.add(torch.tensor(classes, dtype=torch.int64), torch.tensor(scores))
        decision = policy.decide(contribution(scores, classes), context(step=step))
        accepted.append(decision.accept)
        # Cosines whose mean over two processes is the single process's.
        cosine = [0.5, 0.2, 0.3, 0.6][step]
        batches.append(rule.decide(cosine if rank is None else cosine + [0.25, -0.25][rank]))
    return {
        "accepted": accepted,
        "real": real.state_dict(),
        "policy": policy.state_dict()["recent"],
        "batches": [batch.accept for batch in batches],
        "rule": rule.state_dict()["recent"],
    }


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    result = _decide_all(rank)
    result["gathered"] = gather_columns(
        torch.arange(rank + 1) + (1 << 62), torch.full((rank + 1,), 0.1)
    )
    result["mean"] = mean_over_processes(NAN if rank == 0 else 0.25)
    torch.save(result, os.path.join(folder, f"{rank}.pth"))
    dist.destroy_process_group()


def test_two_processes_hold_the_same_windows_and_decide_as_one():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (folder,), nprocs=2)
        ranks = [torch.load(os.path.join(folder, f"{rank}.pth")) for rank in range(2)]
    alone = _decide_all(None)
    for key in ("real", "policy", "rule"):
        for name in ("values", "total"):
            np.testing.assert_array_equal(ranks[0][key][name], ranks[1][key][name])
            np.testing.assert_allclose(ranks[0][key][name], alone[key][name], rtol=1e-6)
    for step in range(STEPS):
        both = torch.cat([rank["accepted"][step] for rank in ranks])
        assert torch.equal(both, alone["accepted"][step])
    assert ranks[0]["batches"] == ranks[1]["batches"] == alone["batches"]
    for rank in ranks:
        ids, values = rank["gathered"]
        assert ids.tolist() == [1 << 62, 1 << 62, (1 << 62) + 1]
        assert values.dtype == torch.float32 and values.tolist() == [pytest.approx(0.1)] * 3
        assert rank["mean"] == 0.25
