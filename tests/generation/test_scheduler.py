from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import load_script

from gal_d2.config import add_gal_config
from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.generator import NO_CANDIDATE, GenerationRequest
from gal_d2.generation.journal import Outcome
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.schedule_rules import AdaptiveScheduler, FixedScheduler, build_scheduler
from gal_d2.generation.scheduler import Arm, group_shares


def make_arms(num_categories: int, templates: str = "a") -> list[Arm]:
    return [Arm(10 + c, t) for c in range(num_categories) for t in templates]


def outcome(arm: Arm, pool_id: int | None, reason: str = "") -> Outcome:
    request = GenerationRequest(arm.category_id, 0, "", 0, template=arm.template)
    return Outcome(request, pool_id, reason or ("area" if pool_id is None else ""))


def judge(scheduler, arm: Arm, pool_id: int, accepted: list[bool]) -> None:
    """Store a new cut-out of an arm that was drawn, and show it to training."""
    scheduler.record_outcomes([outcome(arm, pool_id)])
    scheduler.record_judgements(np.full(len(accepted), pool_id), np.array(accepted))


def counts(draws: list[Arm]) -> dict[int, int]:
    return dict(sorted(Counter(arm.category_id for arm in draws).items()))


# -- Fixed rules


def test_uniform_gives_each_category_its_turn():
    scheduler = FixedScheduler(make_arms(3), [1, 10, 100], power=0.0)
    draws = scheduler.draw(7)
    assert counts(draws[:3]) == {10: 1, 11: 1, 12: 1}
    assert sorted(counts(draws).values()) == [2, 2, 3]


def test_inverse_frequency_shares_are_exact():
    # Weights 1, 1/2, 1/4: of 14 draws, 8, 4 and 2.
    scheduler = FixedScheduler(make_arms(3), [1, 2, 4], power=1.0)
    assert counts(scheduler.draw(14)) == {10: 8, 11: 4, 12: 2}


def test_a_category_without_images_counts_as_one_image():
    scheduler = FixedScheduler(make_arms(2), [0, 1], power=1.0)
    assert counts(scheduler.draw(10)) == {10: 5, 11: 5}


def test_templates_take_turns():
    scheduler = FixedScheduler(make_arms(1, "abc"), [5] * 3, power=1.0)
    assert [arm.template for arm in scheduler.draw(5)] == ["a", "b", "c", "a", "b"]


def test_the_seed_decides_between_equals():
    first = [arm.category_id for arm in FixedScheduler(make_arms(20), [1] * 20, power=1.0).draw(20)]
    other = FixedScheduler(make_arms(20), [1] * 20, power=1.0, seed=1)
    assert first != [arm.category_id for arm in other.draw(20)]
    assert first != sorted(first)


# -- Accounts


def test_a_new_instance_has_one_vote_over_its_first_exposures():
    arm, scheduler = Arm(10, "a"), FixedScheduler(make_arms(1), [1], power=0.0, exposures=4)
    scheduler.draw(1)
    judge(scheduler, arm, 77, [True, False])
    assert scheduler.judged.tolist() == [0.5] and scheduler.accepted.tolist() == [0.25]
    # Four more, of which the share of two counts.
    scheduler.record_judgements(np.full(4, 77), np.array([True, True, True, False]))
    assert scheduler.judged.tolist() == [1.0] and scheduler.accepted.tolist() == [0.25 + 0.375]
    scheduler.record_judgements(np.array([77, 5]), np.array([True, True]))  # seen enough; unknown
    assert scheduler.judged.tolist() == [1.0] and scheduler.accepted.tolist() == [0.625]


def test_dropped_images_and_those_of_a_dead_generator():
    scheduler = FixedScheduler(make_arms(1), [1], power=0.0)
    draws = scheduler.draw(3)
    scheduler.record_outcomes([outcome(draws[0], None)])
    scheduler.give_back(draws[1:])
    assert scheduler.drawn.tolist() == [1] and scheduler.dropped.tolist() == [1]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_category_with_nothing_left_is_left_out(adaptive):
    arms = make_arms(2)
    scheduler = (
        AdaptiveScheduler(arms, [1, 1], floor=0.5)
        if adaptive
        else FixedScheduler(arms, [1, 1], power=0.0)
    )
    scheduler.record_outcomes([outcome(scheduler.draw(1)[0], None, NO_CANDIDATE)])
    assert scheduler.drawn.sum() == 0 and scheduler.dropped.sum() == 0
    rest = scheduler.draw(8)
    assert len(counts(rest)) == 1
    scheduler.record_outcomes([outcome(rest[0], None, NO_CANDIDATE)])
    assert scheduler.draw(8) == []


def test_shares_by_frequency_group():
    scheduler = FixedScheduler(make_arms(2), [1, 3], power=1.0)
    frequency = {10: "r", 11: "f"}
    assert group_shares(scheduler, frequency) == {}
    scheduler.draw(8)
    assert group_shares(scheduler, frequency) == {"f": 0.25, "r": 0.75}


# -- The adaptive rule


@given(
    num_categories=st.integers(1, 12),
    floor=st.floats(0.05, 1),
    num_draws=st.integers(0, 150),
    seed=st.integers(0, 5),
)
@settings(max_examples=30, deadline=None)
def test_no_category_starves(num_categories, floor, num_draws, seed):
    """The last category is rejected whatever is drawn of it, and the first is always accepted."""
    arms = make_arms(num_categories)
    scheduler = AdaptiveScheduler(
        arms, [1000] * (num_categories - 1) + [1], power=0.0, floor=floor, seed=seed
    )
    pool_ids = iter(range(10**6))
    for _ in range(num_draws):
        (arm,) = scheduler.draw(1)
        judge(scheduler, arm, next(pool_ids), [arm == arms[0]] * 4)
    guaranteed = int(num_draws * floor * (1 - 1e-9)) // num_categories
    assert scheduler.by_category(scheduler.drawn).min() >= guaranteed


def test_what_is_accepted_is_drawn_more():
    arms = make_arms(2, "ab")
    scheduler = AdaptiveScheduler(arms, [20] * 4, power=1.0, floor=0.0, half_life=1e6)
    good, pool_ids = {Arm(10, "b"): 0.9, Arm(11, "a"): 0.9}, iter(range(10**6))
    rng = np.random.default_rng(0)
    for _ in range(120):
        (arm,) = scheduler.draw(1)
        judge(scheduler, arm, next(pool_ids), (rng.random(4) < good.get(arm, 0.1)).tolist())
    drawn = dict(zip(arms, scheduler.drawn.tolist(), strict=True))
    assert drawn[Arm(10, "b")] + drawn[Arm(11, "a")] > 80
    estimate = dict(zip(arms, scheduler.acceptance().tolist(), strict=True))
    assert estimate[Arm(10, "b")] > 0.75 and estimate[Arm(10, "a")] < 0.5


def test_a_rare_category_is_drawn_until_it_has_as_many_as_the_others():
    """Both are accepted always: 10 instances bring the rare one to the frequent one's 11 images."""
    arms = make_arms(2)
    scheduler = AdaptiveScheduler(arms, [1, 11], floor=0.0)
    pool_ids = iter(range(10**6))
    for _ in range(40):
        (arm,) = scheduler.draw(1)
        judge(scheduler, arm, next(pool_ids), [True] * 4)
    # After that they share: (40 - 10) / 2 each, give or take what the posterior's samples make.
    drawn = scheduler.drawn.tolist()
    assert 22 <= drawn[0] <= 28 and sum(drawn) == 40


def test_what_is_under_way_counts_as_supply():
    """Nothing is judged yet; a batch is spread all the same instead of going to one category."""
    scheduler = AdaptiveScheduler(make_arms(4), [1] * 4, floor=0.0, seed=3)
    assert min(counts(scheduler.draw(32)).values()) >= 4


def test_a_category_that_no_longer_contributes_gives_way():
    arms = make_arms(2)
    scheduler = AdaptiveScheduler(arms, [5, 5], power=0.0, floor=0.1, half_life=20)
    pool_ids = iter(range(10**6))

    def spend(images: int, accepted: int) -> list[int]:
        before = scheduler.drawn.copy()
        for _ in range(images):
            (arm,) = scheduler.draw(1)
            judge(scheduler, arm, next(pool_ids), [arm.category_id == accepted] * 4)
        return (scheduler.drawn - before).tolist()

    assert spend(200, accepted=10)[0] > 170
    assert spend(400, accepted=11)[1] > 280  # it takes a while to forget, then the other one leads


def test_evidence_fades_by_half_in_its_half_life():
    scheduler = AdaptiveScheduler(make_arms(2), [1, 1], floor=1.0, half_life=4)
    judge(scheduler, Arm(10, "a"), 1, [True] * 4)
    before = scheduler.acceptance()[0]
    scheduler.draw(8)  # 4 for each of two categories
    assert scheduler._success.tolist() == pytest.approx([0.5, 0.0])
    assert scheduler.acceptance()[0] < before


# -- State


@pytest.mark.parametrize("seed", [0, 1])
def test_state_goes_on_as_if_nothing_had_happened(seed):
    def make() -> AdaptiveScheduler:
        return AdaptiveScheduler(make_arms(5, "ab"), [1, 1, 5, 5, 9, 9, 50, 50, 90, 90], seed=seed)

    def spend(scheduler, images: int, first_id: int) -> list[Arm]:
        drawn = []
        for k in range(images):
            (arm,) = scheduler.draw(1)
            drawn.append(arm)
            judge(scheduler, arm, first_id + k, [k % 3 == 0] * (k % 6))
        return drawn

    whole = make()
    spend(whole, 30, 0)
    state = whole.state_dict()
    # The last instances have exposures to come.
    later = np.arange(20, 30), np.ones(10, bool)
    whole.record_judgements(*later)
    resumed = make()
    resumed.load_state_dict(state)
    resumed.record_judgements(*later)
    assert spend(whole, 30, 100) == spend(resumed, 30, 100)
    assert spend(whole, 5, 200) != spend(make(), 5, 200)


def test_state_of_other_arms():
    scheduler = AdaptiveScheduler(make_arms(2, "ab"), [1] * 4)
    scheduler.record_outcomes(
        [outcome(scheduler.draw(1)[0], None), outcome(Arm(10, "a"), 3), outcome(Arm(11, "b"), 4)]
    )
    drawn = dict(zip(scheduler.arms, scheduler.drawn.tolist(), strict=True))
    changed = AdaptiveScheduler([Arm(11, "b"), Arm(12, "b")], [1, 1])
    changed.load_state_dict(scheduler.state_dict())
    assert changed.drawn.tolist() == [drawn[Arm(11, "b")], 0]
    changed.record_judgements(np.array([3, 4] * 4), np.ones(8, bool))
    assert changed.judged.tolist() == [1.0, 0.0]


# -- From the config


def test_rules_by_name(cfg):
    categories = [Category(1, "bun", "r", 3), Category(5, "cat", "f", 300)]
    prompts = PromptBook(categories, ["a {name}", "one {name}"], {5: ["a black cat"]})
    for name, kind in (
        ("uniform", FixedScheduler),
        ("inverse_frequency", FixedScheduler),
        ("adaptive", AdaptiveScheduler),
    ):
        cfg.GAL.GENERATOR.SCHEDULE.NAME = name
        scheduler = build_scheduler(cfg, categories, prompts)
        assert type(scheduler) is kind
        assert scheduler.arms == (Arm(1, "a {name}"), Arm(1, "one {name}"), Arm(5, "a black cat"))


@pytest.mark.parametrize("key, value", [("NAME", "best"), ("POWER", -1.0)])
def test_an_option_out_of_range_is_named(cfg, key, value):
    cfg.GAL.GENERATOR.SCHEDULE[key] = value
    categories = [Category(1, "bun", "r", 3)]
    with pytest.raises(UserError, match=f"GAL.GENERATOR.SCHEDULE.{key} is '?{value}"):
        build_scheduler(cfg, categories, PromptBook(categories))


@pytest.fixture
def cfg():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_gal_config(cfg)
    return cfg


# -- Against simulated acceptance


def test_rare_categories_are_served_with_fewer_images(repository, monkeypatch):
    """Means over seeds, each a world of its own."""
    monkeypatch.syspath_prepend(repository / "benchmarks")  # where it finds its helpers
    benchmark = load_script(repository / "benchmarks/scheduling.py")
    curves = benchmark.run(num_categories=60, num_images=1440, seeds=range(5))

    def mean_draws(rule: str, which: int, target: int) -> float:
        return np.mean([benchmark.draws_until(c[which], target) for c in curves[rule]])

    # 60 good instances of rare categories, and 8 rare categories (of 17) with 5 good ones each.
    uniform = mean_draws("uniform", 0, 60), mean_draws("uniform", 1, 8)
    adaptive = mean_draws("adaptive", 0, 60), mean_draws("adaptive", 1, 8)
    assert adaptive[0] < 0.5 * uniform[0] and adaptive[1] < 0.6 * uniform[1]
    assert adaptive[1] < mean_draws("inverse_frequency", 1, 8)
