"""Which cut-outs are drawn from a pool."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg

from gal_d2 import add_gal_config
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.posterior_view import PosteriorView
from gal_d2.selection.sampler import (
    POOL_SAMPLER_REGISTRY,
    DrawRule,
    PosteriorSampler,
    UniformClassSampler,
    build_pool_sampler,
)
from gal_d2.selection.snapshots import Snapshots


def fill(root: Path, counts: dict[int, int], *, first_seed: int = 0) -> None:
    """Store ``counts[category_id]`` cut-outs of each category."""
    with PoolWriter(root) as writer:
        for category_id, count in counts.items():
            for seed in range(first_seed, first_seed + count):
                rgba = np.full((2, 2, 4), 255, np.uint8)
                writer.add(category_id, rgba, source=CutOutSource("test", seed=seed))


def test_class_uniform_then_instance_uniform(tmp_path: Path) -> None:
    fill(tmp_path, {3: 1, 5: 9, 8: 4})
    pool = InstancePool(tmp_path)
    sampler = UniformClassSampler(pool, [1, 3, 5])  # 8 is not in the data set, 1 not in the pool
    assert sampler.categories.tolist() == [3, 5]
    drawn = sampler.sample(6000, np.random.default_rng(0))
    assert drawn.dtype == np.int64 and drawn.shape == (6000,)
    is_three = pool.category_of(drawn) == 3
    assert set(pool.category_of(drawn)) == {3, 5}
    assert is_three.mean() == pytest.approx(0.5, abs=0.03)
    ids, counts = np.unique(drawn[~is_three], return_counts=True)
    assert len(ids) == 9
    assert counts.min() > 260 and counts.max() < 410


def test_same_generator_same_draw(tmp_path: Path) -> None:
    fill(tmp_path, {1: 5, 2: 5})
    sampler = UniformClassSampler(InstancePool(tmp_path), [1, 2])
    copied = pickle.loads(pickle.dumps(sampler))
    draws = [s.sample(20, np.random.default_rng(7)).tolist() for s in (sampler, sampler, copied)]
    assert draws[0] == draws[1] == draws[2]


def test_nothing_to_draw(tmp_path: Path) -> None:
    fill(tmp_path, {1: 2})
    sampler = UniformClassSampler(InstancePool(tmp_path), [1])
    drawn = sampler.sample(0, np.random.default_rng(0))
    assert drawn.dtype == np.int64 and drawn.shape == (0,)


def test_an_empty_pool_that_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = InstancePool(tmp_path / "pool", allow_empty=True)
    sampler = UniformClassSampler(pool, [4])
    assert "is empty: nothing is pasted" in caplog.text
    assert sampler.sample(3, np.random.default_rng(0)).shape == (0,)
    fill(tmp_path / "pool", {4: 2})
    assert pool.refresh() == 2
    assert set(sampler.sample(20, np.random.default_rng(0))) == set(pool.ids(4).tolist())


def test_no_common_category(tmp_path: Path) -> None:
    fill(tmp_path, dict.fromkeys(range(100, 108), 1))
    with pytest.raises(UserError, match=r"and 4 more, the training set has 1, 2: none in"):
        UniformClassSampler(InstancePool(tmp_path), [2, 1])


def test_build_by_name(tmp_path: Path) -> None:
    fill(tmp_path, {1: 1})
    cfg = get_cfg()
    add_gal_config(cfg)
    sampler = build_pool_sampler(cfg, InstancePool(tmp_path), {1: 0})
    assert isinstance(sampler, UniformClassSampler)
    assert "uniform_class" in POOL_SAMPLER_REGISTRY
    cfg.GAL.POOL.SAMPLER = "best"
    with pytest.raises(UserError, match=r"SAMPLER is 'best'; registered are: .*uniform_class"):
        build_pool_sampler(cfg, InstancePool(tmp_path), {1: 0})


def view_of(
    root: Path, ids: np.ndarray, mean: list[float], weight: float, **more: np.ndarray
) -> PosteriorView:
    """At steps from 20 on, each of ``ids`` has this mean in the only signal; nothing before."""
    snapshots = Snapshots(root / "snapshots", period=10)
    nothing = np.empty((0, 1), np.float32)
    common = {
        "posterior.is_whole": np.array(True),
        "posterior.step": np.array(9),
        "posterior.prior_count": np.array(1.0),
        "posterior.weights": np.ones(1),
        "posterior.ceilings": np.full(1, np.inf),
    }
    empty = {"pool_ids": np.empty(0, np.int64), "weight": nothing, "mean": nothing}
    snapshots.write(0, common | {f"posterior.{name}": array for name, array in empty.items()})
    order = np.argsort(ids)
    known = {
        "pool_ids": ids[order],
        "weight": np.full((len(ids), 1), weight, np.float32),
        "mean": np.array(mean, np.float32)[order, None],
        **more,
    }
    snapshots.write(1, common | {f"posterior.{name}": array for name, array in known.items()})
    return PosteriorView(snapshots)


def shares(sampler: PosteriorSampler, pool_ids: np.ndarray, step: int) -> np.ndarray:
    drawn = sampler.sample(8000, np.random.default_rng(0), step)
    return np.array([(drawn == pool_id).mean() for pool_id in pool_ids])


def test_the_best_of_the_candidates_are_drawn_alike(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {3: 4, 5: 1})
    pool = InstancePool(tmp_path / "pool")
    ids = pool.ids(3)
    view = view_of(tmp_path, ids, [0.0, 3.0, 1.0, 2.0], weight=1e6)
    best = PosteriorSampler(pool, {3: 0, 5: 1}, view, DrawRule(2, 1, 0.0))
    assert shares(best, ids, 19) == pytest.approx([1 / 8] * 4, abs=0.015)
    # The better of two drawn with replacement; half of the draws are class 5's.
    expected = np.array([1, 7, 3, 5]) / 16 / 2
    assert shares(best, ids, 20) == pytest.approx(expected, abs=0.015)
    assert shares(best, pool.ids(5), 20) == pytest.approx([0.5], abs=0.02)
    assert shares(best, ids, 0) == pytest.approx([1 / 8] * 4, abs=0.015)  # and back again
    any_of_two = PosteriorSampler(pool, {3: 0, 5: 1}, view, DrawRule(2, 2, 0.0))
    assert shares(any_of_two, ids, 20) == pytest.approx([1 / 8] * 4, abs=0.015)


def test_where_most_cut_outs_help_few_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {3: 4, 5: 4})
    pool = InstancePool(tmp_path / "pool")
    mean = [0.0, 1.0, 2.0, 3.0]
    ids = np.concatenate([pool.ids(3), pool.ids(5)])
    helping = np.array([0.4, np.nan, 0.95], np.float32)  # by class, which need not be ordered by id
    view = view_of(tmp_path, ids, 2 * mean, weight=1e6, helping=helping)
    sampler = PosteriorSampler(pool, {1: 1, 3: 2, 5: 0}, view, DrawRule(2, 1, 0.0))
    assert shares(sampler, pool.ids(3), 20) == pytest.approx([1 / 8] * 4, abs=0.015)
    assert shares(sampler, pool.ids(5), 20) == pytest.approx(
        np.array([1, 3, 5, 7]) / 16 / 2, abs=0.015
    )


def test_what_is_uncertain_has_its_chance(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {3: 2})
    pool = InstancePool(tmp_path / "pool")
    ids = pool.ids(3)
    view = view_of(tmp_path, ids[:1], [0.5], weight=1e6)  # nothing is known of the other one

    def share(temperature: float) -> float:
        sampler = PosteriorSampler(pool, {3: 0}, view, DrawRule(2, 1, temperature))
        return shares(sampler, ids[1:], 20)[0]

    assert share(0.0) == pytest.approx(0.25, abs=0.015)  # where both candidates are the same
    assert 0.28 < share(0.7) < share(2.0) < 0.5


def test_less_and_less_is_tried(tmp_path: Path) -> None:
    rule = DrawRule(2, 1, 2.0, steps=40)
    assert [rule.temperature_at(step) for step in (0, 10, 40, 50)] == [2.0, 1.5, 0.0, 0.0]
    assert DrawRule(2, 1, 2.0).temperature_at(1000) == 2.0
    fill(tmp_path / "pool", {3: 2})
    pool = InstancePool(tmp_path / "pool")
    ids = pool.ids(3)
    view = view_of(tmp_path, ids[:1], [0.5], weight=1e6)  # nothing is known of the other one
    assert shares(PosteriorSampler(pool, {3: 0}, view, rule), ids[1:], 20)[0] > 0.28
    at_its_end = PosteriorSampler(pool, {3: 0}, view, DrawRule(2, 1, 2.0, steps=20))
    assert shares(at_its_end, ids[1:], 20)[0] == pytest.approx(0.25, abs=0.015)


def test_rare_classes_are_drawn_more_often(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {3: 2, 5: 1, 9: 1})
    pool = InstancePool(tmp_path / "pool")
    view = view_of(tmp_path, pool.ids(3), [0.0, 0.0], weight=1.0)
    sampler = PosteriorSampler(pool, {3: 0, 5: 1, 7: 2}, view, weight={3: 0.25, 5: 0.75, 7: 5.0})
    by_class = [shares(sampler, pool.ids(c), 20).sum() for c in (3, 5, 9)]
    assert by_class == pytest.approx([0.25, 0.75, 0.0], abs=0.015)
    fill(tmp_path / "pool", {7: 1})  # the pool grows by a class
    pool.refresh()
    assert shares(sampler, pool.ids(7), 20) == pytest.approx([5 / 6], abs=0.015)


def test_posterior_draws_are_a_function_of_generator_and_step(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {1: 5, 2: 5})
    pool = InstancePool(tmp_path / "pool")
    view = view_of(tmp_path, pool.all_ids(), np.linspace(-1, 1, 10).tolist(), weight=3.0)
    sampler = PosteriorSampler(pool, {1: 0, 2: 1}, view)
    sampler.sample(5, np.random.default_rng(1), 3)
    copied = pickle.loads(pickle.dumps(sampler))
    draws = [s.sample(20, np.random.default_rng(7), 24).tolist() for s in (sampler, copied)]
    assert draws[0] == draws[1]
    empty = InstancePool(tmp_path / "nothing", allow_empty=True)
    nothing = PosteriorSampler(empty, {1: 0}, view).sample(3, np.random.default_rng(0))
    assert nothing.shape == (0,)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ((0, 1, 1.0), "CANDIDATES is 0"),
        ((4, 5, 1.0), "BEST is 5: set it to a value from 1 to GAL.POOL.CANDIDATES, 4"),
        ((4, 0, 1.0), "BEST is 0"),
        ((4, 2, -1.0), "TEMPERATURE is -1.0"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(rule, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        DrawRule(*rule)


def test_the_posterior_needs_scores_of_single_instances(tmp_path: Path) -> None:
    fill(tmp_path, {1: 1})
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.GAL.POOL.SAMPLER = "posterior"
    pool = InstancePool(tmp_path)
    with pytest.raises(UserError, match="GAL.SCORER.ENABLED to True"):
        build_pool_sampler(cfg, pool, {1: 0})
    cfg.GAL.SCORER.ENABLED = True
    cfg.GAL.POOL.CLASS_POWER = -1.0
    with pytest.raises(UserError, match="CLASS_POWER is -1.0"):
        build_pool_sampler(cfg, pool, {1: 0})
    cfg.GAL.POOL.CLASS_POWER = 0.0
    assert isinstance(build_pool_sampler(cfg, pool, {1: 0}), PosteriorSampler)
    cfg.GAL.ACCEPT.UNIT = "batch"
    with pytest.raises(UserError, match="GAL.ACCEPT.UNIT to instance"):
        build_pool_sampler(cfg, pool, {1: 0})
