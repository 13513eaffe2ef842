"""Which cut-outs are drawn from a pool."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg

from gal_d2 import add_gal_config
from gal_d2.data.pool import CutOutSource, InstancePool, PoolWriter
from gal_d2.data.pool_sampler import (
    POOL_SAMPLER_REGISTRY,
    LedgerSampler,
    UniformClassSampler,
    build_pool_sampler,
    weights_of,
)
from gal_d2.data.snapshots import Snapshots
from gal_d2.errors import UserError


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
    with pytest.raises(UserError, match=r"100, 101, .*8 in all.*training set has 1, 2: none in"):
        UniformClassSampler(InstancePool(tmp_path), [2, 1])


def test_build_by_name(tmp_path: Path) -> None:
    fill(tmp_path, {1: 1})
    cfg = get_cfg()
    add_gal_config(cfg)
    sampler = build_pool_sampler(cfg, InstancePool(tmp_path), [1])
    assert isinstance(sampler, UniformClassSampler)
    assert "uniform_class" in POOL_SAMPLER_REGISTRY
    cfg.GAL.POOL.SAMPLER = "best"
    with pytest.raises(UserError, match=r"SAMPLER is 'best'; registered are: .*uniform_class"):
        build_pool_sampler(cfg, InstancePool(tmp_path), [1])


def shares(sampler: LedgerSampler, pool_ids: np.ndarray, step: int) -> np.ndarray:
    drawn = sampler.sample(8000, np.random.default_rng(0), step)
    return np.array([(drawn == pool_id).mean() for pool_id in pool_ids])


def test_ledger_draws_by_weight_within_the_class(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {3: 4, 5: 1})
    pool = InstancePool(tmp_path / "pool")
    snapshots = Snapshots(tmp_path / "snapshots", period=10)
    sampler = LedgerSampler(pool, [3, 5], snapshots)
    ids = pool.ids(3)
    known = np.sort(ids[[1, 3]])
    weights = np.where(known == ids[1], 0.2, 0.8)
    snapshots.write(0, {})
    snapshots.write(1, {"evidence.pool_ids": known, "evidence.weights": weights})
    assert shares(sampler, ids, 19) == pytest.approx([1 / 8] * 4, abs=0.015)
    # Half of the draws are class 5's; the unknown two have weight 1.
    expected = np.array([1, 0.2, 1, 0.8]) / 3 / 2
    assert shares(sampler, ids, 20) == pytest.approx(expected, abs=0.015)
    assert shares(sampler, pool.ids(5), 20) == pytest.approx([0.5], abs=0.02)
    assert shares(sampler, ids, 0) == pytest.approx([1 / 8] * 4, abs=0.015)  # and back again


def test_ledger_draws_are_a_function_of_generator_and_step(tmp_path: Path) -> None:
    fill(tmp_path / "pool", {1: 5, 2: 5})
    pool = InstancePool(tmp_path / "pool")
    snapshots = Snapshots(tmp_path / "snapshots", period=10)
    known = pool.all_ids()
    snapshots.write(0, {"evidence.pool_ids": known, "evidence.weights": np.linspace(0.1, 1, 10)})
    sampler = LedgerSampler(pool, [1, 2], snapshots)
    sampler.sample(5, np.random.default_rng(1), 3)
    copied = pickle.loads(pickle.dumps(sampler))
    draws = [s.sample(20, np.random.default_rng(7), 4).tolist() for s in (sampler, copied)]
    assert draws[0] == draws[1]
    empty = InstancePool(tmp_path / "nothing", allow_empty=True)
    nothing = LedgerSampler(empty, [1], snapshots).sample(3, np.random.default_rng(0))
    assert nothing.shape == (0,)


def test_weights_of_unknown_cut_outs_are_one() -> None:
    nothing = np.empty(0)
    assert weights_of(np.array([4, 2]), nothing, nothing).tolist() == [1, 1]
    known, weights = np.array([2, 6]), np.array([0.5, 0.3])
    assert weights_of(np.array([9, 2, 1, 6]), known, weights).tolist() == [1, 0.5, 1, 0.3]


def test_ledger_needs_scores(tmp_path: Path) -> None:
    fill(tmp_path, {1: 1})
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.GAL.POOL.SAMPLER = "ledger"
    pool = InstancePool(tmp_path)
    with pytest.raises(UserError, match="GAL.SCORER.ENABLED is off"):
        build_pool_sampler(cfg, pool, [1])
    cfg.GAL.SCORER.ENABLED = True
    assert isinstance(build_pool_sampler(cfg, pool, [1]), LedgerSampler)
    cfg.GAL.POOL.MIN_WEIGHT = 0.0
    with pytest.raises(UserError, match=r"MIN_WEIGHT is 0.0: set it to a value in \(0, 1\]"):
        build_pool_sampler(cfg, pool, [1])
