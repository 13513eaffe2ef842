"""Generators that are killed while they draw: what was committed is there, once."""

from __future__ import annotations

import functools
import os
import signal
from collections import Counter
from pathlib import Path

import made_by_hand
import numpy as np
import pytest
from test_pipeline_worker import CATEGORIES, USED_CATEGORIES, config, requests
from test_ray_pipeline import cluster, content, make_cutter, plan  # noqa: F401 (a fixture)

from gal_d2.generation.pipeline import InstancePipeline
from gal_d2.generation.store import PoolStore
from gal_d2.interleaving.pipeline_worker import GeneratorCrash, ProcessWorker
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import shard_names

PROCESS_KILLS = 6
PATIENCE = 600  # seconds for an answer, on a machine that does much else
# (category, image) at which a Ray actor dies, once.
RAY_KILLS = ((5, 5), (3, 0), (5, 8))


def stored(root: Path) -> Counter[int]:
    """How often each cut-out is stored."""
    shards = [InstancePool(root, shards=[name]) for name in shard_names(root)]
    return Counter(int(i) for shard in shards for i in shard.all_ids())


@pytest.mark.slow
def test_the_process_beside_the_trainer(candidates: Path, tmp_path: Path, tried) -> None:
    rng = np.random.default_rng(5)
    worker = ProcessWorker(config(candidates, tmp_path), CATEGORIES)
    pool = tmp_path / "pool"
    for kill in range(PROCESS_KILLS):
        worker.start()
        committed = set(stored(pool))
        for index in range(kill, kill + 4):
            worker.submit(requests(index))
            worker.flush()
        # After so many answers; others are on their way, and maybe half written.
        for _ in range(int(rng.integers(0, 4))):
            assert worker._connection.poll(PATIENCE)
            worker._receive()
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join(PATIENCE)
        with pytest.raises(GeneratorCrash, match="exit code -9"):
            while True:
                worker.collect()
        worker.close()
        tried["kill generator process"] += 1
        now = stored(pool)
        assert committed <= set(now) and set(now.values()) <= {1}
    worker.start()
    asked = [request for index in range(PROCESS_KILLS + 3) for request in requests(index)]
    worker.submit(asked)
    worker.flush()
    outcomes = []
    while len(outcomes) < len(asked):
        assert worker._connection.poll(PATIENCE)
        outcomes += worker._receive()
    worker.close()
    now = stored(pool)
    assert set(now) == {o.pool_id for o in outcomes} and set(now.values()) == {1}
    assert len(now) == len(USED_CATEGORIES) * (PROCESS_KILLS + 3)


@pytest.mark.slow
def test_actors_of_ray(cluster: None, tmp_path: Path, tried) -> None:  # noqa: F811
    from gal_d2.generation.ray_pipeline import RayRunner

    alone = PoolStore(str(tmp_path / "alone"), "r")
    pipeline = InstancePipeline(made_by_hand.DiscGenerator(), make_cutter(draws_alpha=False), alone)
    for unit in plan(alone):
        pipeline.run(unit.requests)
    alone.close()
    for category, index in RAY_KILLS:
        marker = tmp_path / f"died-{category}-{index}"
        make = functools.partial(made_by_hand.DyingGenerator, marker, category, index)
        root = tmp_path / f"ray-{category}-{index}"
        store = PoolStore(str(root), "r")
        with RayRunner(make, make_cutter, generators=2, cutters=1) as runner:
            count = sum(len(done) for done in runner.run(plan(store), store))
        store.close()
        assert marker.exists() and count == 20
        tried["kill Ray actor"] += 1
        assert content(root) == content(tmp_path / "alone")
        assert set(stored(root).values()) == {1}
