"""The benchmarks are scripts; they import each other from their own folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gal_d2.testbeds.miniature.prepare import prepare_miniature
from gal_d2.testbeds.miniature.settings import MiniatureConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen scenes with digits, and three candidates for each category."""
    config = MiniatureConfig(
        train_images=12, val_images=3, pool_per_category=3, object_source="digits"
    )
    folder = tmp_path_factory.mktemp("miniature")
    return prepare_miniature(folder / "miniature", folder / "sources", config)


@pytest.fixture(scope="session")
def miniature_options(miniature: Path) -> list[str]:
    """Config options that name it as training and validation set."""
    options = []
    for key, split in (("TRAIN", "train"), ("VAL", "val")):
        annotations = str(miniature / f"annotations/miniature_{split}.json")
        options += [f"GAL.DATA.{key}", str((annotations, str(miniature / f"images/{split}")))]
    return options
