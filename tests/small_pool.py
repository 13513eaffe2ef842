"""Small pools of random pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.shard import shard_names
from gal_d2.pool.writer import PoolWriter

SOURCE = CutOutSource("diffusers", "sd-1.5", "a photo of a bun", 7)


def picture(seed: int, height: int = 5, width: int = 4) -> np.ndarray:
    """(height, width, 4) uint8, never transparent."""
    return np.random.default_rng(seed).integers(1, 256, (height, width, 4)).astype(np.uint8)


def fill(root: Path, seeds: range, category_id: int = 1, **limits: int) -> list[int]:
    with PoolWriter(root, **limits) as writer:
        return [
            writer.add(category_id, picture(s), source=CutOutSource("test", seed=s)) for s in seeds
        ]


def only_shard(root: Path) -> Path:
    (name,) = shard_names(root)
    return root / name
