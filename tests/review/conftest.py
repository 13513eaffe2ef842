"""A small pool of two categories, with beliefs about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.review.beliefs import Beliefs

NAMES = {3: "boot", 12: "bun_<b>&"}


@pytest.fixture
def pool(tmp_path: Path) -> InstancePool:
    """Thirty boots and thirty buns, whose name and prompt look like markup."""
    with PoolWriter(tmp_path / "pool", names=NAMES) as writer:
        for number in range(60):
            rgba = np.full((6, 4, 4), 20 + number, np.uint8)
            category = (3, 12)[number % 2]
            source = CutOutSource("x", "", '<script>document.title = "broken"</script>', number)
            writer.add(category, rgba, source=source)
    return InstancePool(tmp_path / "pool")


@pytest.fixture
def beliefs(pool: InstancePool) -> Beliefs:
    """The higher the place of a cut-out in its category the better; not sure of any."""
    ids = pool.all_ids()
    categories = pool.category_of(ids)
    mean = np.zeros((60, 1))
    for category in (3, 12):
        mean[categories == category, 0] = np.linspace(-1.5, 1.5, 30)
    return Beliefs(ids, categories, mean, np.full((60, 1), 0.5), np.ones(1), np.full(1, np.inf))
