"""The pieces ``index`` and ``files`` of benchmarks/scale.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scale_steps import Steps

from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.growing_index import GrowingIndex
from gal_d2.pool.index import PoolIndex
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter

CATEGORIES = 1203
PASTES = 152  # of a step: 16 images x 9.5
CANDIDATES = 12
NEW = 1600  # cut-outs of 100 steps: one for each image
GROWTHS = 100
SHARD_ROWS = 1000


def measure_index(size: int, folder: Path, steps: Steps) -> None:
    """The index alone: what opening a pool and taking in new shards compute."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1 << 62, size=size)
    shard, row = np.divmod(np.arange(size), 8192)
    built = steps.time("built", lambda: PoolIndex(ids, ids % CATEGORIES, shard, row))
    indices = [GrowingIndex([built])]
    names = [f"{number:06d}" for number in range(int(shard[-1]) + 1 + GROWTHS)]

    def grow() -> None:
        new = rng.integers(1 << 62, size=NEW)
        number = np.full(NEW, len(names) - GROWTHS + len(indices) - 1)
        part = PoolIndex(new, new % CATEGORIES, number, np.arange(NEW))
        indices.append(indices[-1].grown(part, names))

    steps.time("with the new cut-outs of 100 steps", grow, GROWTHS)
    index = indices[-1]
    indices.clear()
    of_step = rng.integers(CATEGORIES, size=(10, PASTES))

    def draw() -> None:
        for category in of_step[len(indices)].tolist():
            index.ids_of(category)
        indices.append(index)

    steps.time("ids of a step's categories, after it has grown", draw, len(of_step))
    wanted = rng.choice(ids, PASTES * CANDIDATES)
    steps.time("look-up of a step's candidates", lambda: index.find_many(wanted), 50)
    steps.time("all parts made one", index.whole)


def measure_files(size: int, folder: Path, steps: Steps) -> None:
    """A pool's files, without pictures: the index is all that is read of them."""
    pool_ids: list[int] = []
    numbers = iter(range(size + SHARD_ROWS))

    def write(count: int) -> None:
        with PoolWriter(folder, max_rows=SHARD_ROWS) as writer:
            for _ in range(count):
                number = next(numbers)
                pool_ids.append(
                    writer.add_encoded(
                        *(number % CATEGORIES + 1, number.to_bytes(8, "big") * 8, 64, 64),
                        source=CutOutSource("benchmark", "model", "a photo of one", seed=number),
                        scores={"clip": 0.25},
                    )
                )

    steps.time("written", lambda: write(size))
    steps.note("without pictures, on disk", sum(f.stat().st_size for f in folder.iterdir()) / 1e6)
    pool = steps.time("opened", lambda: InstancePool(folder))
    half = np.array(pool_ids[::2])
    steps.time("opened with an allow-list of half of it", lambda: InstancePool(folder, only=half))
    write(SHARD_ROWS)
    steps.time("a new shard taken in", pool.refresh)
