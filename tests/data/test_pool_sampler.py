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
    UniformClassSampler,
    build_pool_sampler,
)
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
