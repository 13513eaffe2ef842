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
from detectron2.config import CfgNode, get_cfg

from gal_d2.config import add_gal_config
from gal_d2.distributed import gather_columns, mean_over_processes
from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.reference_window import ReferenceWindow
from gal_d2.selection.batch_rules import BatchPercentile
from gal_d2.selection.decision import AcceptanceContext, step_generator
from gal_d2.selection.policies import (
    AlwaysAccept,
    NeverAccept,
    QuantileAccept,
    RandomAccept,
    WarmUp,
    build_acceptance_policy,
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


def context(age=(100, 100, 100), seed=0):
    return AcceptanceContext(
        class_group=torch.tensor([0, 1, 2]),
        num_updates=torch.tensor(age),
        generator=torch.Generator().manual_seed(seed),
    )


def equal(tensor: torch.Tensor, expected: list) -> bool:
    return torch.equal(tensor.nan_to_num(-99), torch.tensor(expected).nan_to_num(-99))


def test_always_and_never_look_at_nothing():
    rows = contribution([NAN, -1.0, 1.0])
    for policy, answer in ((AlwaysAccept(), True), (NeverAccept(), False)):
        decision = policy.decide(rows, context())
        assert decision.accept.tolist() == [answer] * 3
        assert decision.value.isnan().all() and decision.threshold.isnan().all()
        assert decision.policy == policy.name
        assert not decision.undecided.any()


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


@pytest.mark.parametrize(("rule", "answer"), [("accept", True), ("reject", False)])
def test_warm_up_rule_for_young_classes_and_missing_scores(rule, answer):
    policy = QuantileAccept(rate=0.5, min_count=1, warm_up=WarmUp(min_age=10, rule=rule))
    rows = contribution([1.0, 1.0, -1.0, NAN, -INF], classes=[0, 1, 1, 2, 2])
    decision = policy.decide(rows, context(age=(9, 10, 11)))
    assert decision.undecided.tolist() == [True, False, False, True, True]
    assert decision.accept.tolist() == [answer, True, False, answer, answer]
    assert equal(decision.threshold, [NAN, 0.0, 0.0, NAN, NAN])


def test_quantile_accepts_the_best_share_of_each_group():
    policy = QuantileAccept(rate=0.5, window=100, min_count=4, warm_up=NO_WARM_UP)
    # Class 0 scores far above class 2: a common threshold would take all of one, none of the other.
    rows = contribution([9.0, 8.0, 7.0, 6.0, 0.4, 0.3, 0.2, 0.1], classes=[0] * 4 + [2] * 4)
    decision = policy.decide(rows, context())
    assert decision.accept.tolist() == [True, True, False, False] * 2
    np.testing.assert_allclose(decision.threshold, [7.5] * 4 + [0.25] * 4)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_quantile_at_the_ends_accepts_none_or_all(rate):
    policy = QuantileAccept(rate=rate, min_count=1, warm_up=NO_WARM_UP)
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


def with_values(values: list[float], **options) -> AcceptanceContext:
    return replace(context(**options), value=torch.tensor(values))


def test_what_is_known_outweighs_one_lucky_score():
    """Cut-outs are compared by what all scores of each add up to."""
    rows = contribution([0.9, 0.1, 0.8, 0.2])
    policy = QuantileAccept(rate=0.5, min_count=1, warm_up=NO_WARM_UP)
    decision = policy.decide(rows, with_values([-0.5, 0.5, -0.25, 0.25]))
    assert decision.accept.tolist() == [False, True, False, True]
    assert decision.value.tolist() == [-0.5, 0.5, -0.25, 0.25]
    assert decision.threshold.tolist() == [0.0] * 4


def test_a_known_value_speaks_for_a_missing_score():
    policy = QuantileAccept(warm_up=NO_WARM_UP, min_count=1)
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
    policy = QuantileAccept(rate=0.5, min_count=1, warm_up=NO_WARM_UP)
    decision = policy.decide(contribution([0.25, 0.75, NAN]), context())
    assert decision.accept.tolist() == [False, True, False]
    assert equal(decision.value, [0.25, 0.75, NAN])


ALL_POLICIES = [AlwaysAccept, NeverAccept, RandomAccept, QuantileAccept]


@pytest.mark.parametrize("build", ALL_POLICIES)
def test_no_instances(build):
    decision = build().decide(Contribution.empty(["mask"]), context())
    for name in ("accept", "value", "threshold", "undecided"):
        assert getattr(decision, name).shape == (0,)
    assert decision.accept.dtype == torch.bool
    assert decision.value.dtype == decision.threshold.dtype == torch.float32


@pytest.mark.parametrize("build", ALL_POLICIES)
def test_a_restored_policy_continues_as_the_first(build, tmp_path):
    def run(policy, steps):
        answers = []
        for step in steps:
            scores = torch.randn(20, generator=torch.Generator().manual_seed(step)).tolist()
            answers.append(policy.decide(contribution(scores), context(seed=step)).accept)
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


def make_config(**accept) -> CfgNode:
    cfg = get_cfg()
    add_gal_config(cfg)
    for key, value in accept.items():
        cfg.GAL.ACCEPT[key] = value
    return cfg


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("always", AlwaysAccept),
        ("never", NeverAccept),
        ("random", RandomAccept),
        ("quantile", QuantileAccept),
    ],
)
def test_policies_are_built_from_a_config(name, kind):
    policy = build_acceptance_policy(make_config(POLICY=name, RATE=0.25))
    assert type(policy) is kind and policy.name == name
    assert getattr(policy, "rate", 0.25) == 0.25
    if kind is QuantileAccept:
        assert policy.warm_up == WarmUp(min_age=20, rule="accept")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'best'.*always, never, quantile, random"):
        build_acceptance_policy(make_config(POLICY="best"))


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: RandomAccept(rate=1.5), "RATE"),
        (lambda: QuantileAccept(rate=-0.1), "RATE"),
        (lambda: WarmUp(rule="maybe"), "WARM_UP.RULE"),
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
        decision = policy.decide(contribution(scores, classes), context())
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
