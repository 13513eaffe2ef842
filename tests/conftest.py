"""Shared fixtures: a tiny data set in the layout of LVIS v1."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# The models are tiny: more threads make them slower, on a busy machine by far. Processes that tests
# start have as many, and round in the same way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gal_d2  # noqa: F401  (prepares the process for detectron2)

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["roi_heads_fixtures", "training_fixtures"]

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def lvis_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose ``datasets/`` has LVIS v1's layout: 1,203 categories, few images."""
    from lvis_layout import write_lvis

    root = tmp_path_factory.mktemp("lvis")
    write_lvis(root / "datasets")
    return root
