"""Candidates to generate from, a tiny miniature, and training within this process."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from lvis_layout import USED_CATEGORIES
from training_runs import command_line

from gal_d2.engine.trainer import GALTrainer
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.writer import PoolWriter
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.setup import setup
from gal_d2.testbeds.miniature.prepare import prepare_miniature
from gal_d2.testbeds.miniature.settings import MiniatureConfig

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


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a tiny miniature data set."""
    root = tmp_path_factory.mktemp("miniature")
    config = MiniatureConfig(
        train_images=12, val_images=2, pool_per_category=6, object_source="digits"
    )
    prepare_miniature(root / "datasets" / "miniature", root / "sources", config)
    return root


@pytest.fixture
def train(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GALTrainer]:
    """``train(folder, config, *options, resume, num_gpus)``: tools/train_net.py, run in there.

    In this process, since to start one takes longer than the training. Returns the trainer.
    """

    def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        seed_all_rng(cfg.SEED)

    def run_here(
        cwd: Path, config: str, *options: str, resume: bool = False, num_gpus: int = 0
    ) -> GALTrainer:
        monkeypatch.chdir(cwd)
        arguments = command_line(repository, config, *options, resume=resume, num_gpus=num_gpus)
        trainer = GALTrainer(setup(argument_parser().parse_args(arguments)))
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    # detectron2's loggers would keep this test's streams.
    monkeypatch.setattr("gal_d2.setup.setup.setup_logger", lambda *args, **options: None)
    monkeypatch.setattr("gal_d2.setup.setup.default_setup", set_up)
    return run_here
