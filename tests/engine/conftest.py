"""A pool of candidates for the tiny LVIS: what the imitation generator draws from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lvis_layout import USED_CATEGORIES

from gal_d2.data.pool import CutOutSource, PoolWriter

CANDIDATES_PER_CATEGORY = 10


@pytest.fixture(scope="session")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten cut-outs for each of the tiny LVIS's categories."""
    root = tmp_path_factory.mktemp("candidates")
    rng = np.random.default_rng(0)
    with PoolWriter(root) as writer:
        for number in range(CANDIDATES_PER_CATEGORY * len(USED_CATEGORIES)):
            rgba = rng.integers(0, 255, (20, 24, 4), dtype=np.uint8)
            rgba[..., 3] = 255
            writer.add(
                USED_CATEGORIES[number % len(USED_CATEGORIES)],
                rgba,
                source=CutOutSource("test", "noise", "a square", number),
            )
    return root
