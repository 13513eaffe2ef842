"""tools/train_net.py as a user calls it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Sizes and device only. The ImageNet weights come from detectron2's download cache.
SIZES = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *(
        "GAL.DATA.LSJ.IMAGE_SIZE",
        "96",
        "INPUT.MIN_SIZE_TEST",
        "96",
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
    ),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "TEST.DETECTIONS_PER_IMAGE", "10"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
]


def train_net(repository: Path, cwd: Path, *arguments: str, cache: Path | None = None):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(repository / "tools/train_net.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "FVCORE_CACHE": str(cache or cwd), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def weight_cache(tmp_path_factory) -> Path:
    """detectron2's download cache, with a stand-in for the ImageNet weights that a config names."""
    cache = tmp_path_factory.mktemp("cache")
    file = cache / "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    file.parent.mkdir(parents=True)
    stem = np.full((64, 3, 7, 7), 0.001, dtype=np.float32)
    with file.open("wb") as f:
        pickle.dump({"conv1_w": stem, "conv1_b": np.zeros(64, np.float32)}, f)
    return cache


def test_lvis_gal_trains_resumes_and_evaluates(lvis_root, repository, weight_cache, tmp_path):
    config = ["--config-file", str(repository / "configs/lvis_gal.yaml")]
    output = ["OUTPUT_DIR", str(tmp_path)]
    first = train_net(
        repository, lvis_root, *config, *SIZES, *output, "SOLVER.MAX_ITER", "2", cache=weight_cache
    )
    assert first.returncode == 0, first.stderr[-3000:]
    assert (tmp_path / "model_0000001.pth").exists() and (tmp_path / "model_final.pth").exists()
    assert (tmp_path / "inference/per_category_ap.csv").exists()
    assert list((tmp_path / "ledger").glob("*.parquet"))
    assert (tmp_path / "report.html").exists()
    metrics: dict = {}
    for line in (tmp_path / "metrics.json").open():
        metrics |= json.loads(line)
    assert np.isfinite(metrics["total_loss"]) and {"segm/APr", "gal/accepted"} <= metrics.keys()

    resumed = train_net(
        repository,
        lvis_root,
        *(*config, "--resume", *SIZES, *output, "SOLVER.MAX_ITER", "3"),
        cache=weight_cache,
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Starting training from iteration 2" in resumed.stdout + resumed.stderr

    evaluated = train_net(
        repository,
        lvis_root,
        *(*config, "--eval-only", *SIZES, *output),
        *("MODEL.WEIGHTS", str(tmp_path / "model_final.pth")),
        cache=weight_cache,
    )
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert "Loading ema" in evaluated.stdout + evaluated.stderr


def test_without_lvis_it_is_one_sentence(repository, tmp_path):
    result = train_net(
        repository, tmp_path, "--config-file", str(repository / "configs/lvis_gal.yaml")
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    sentence = result.stderr.strip().splitlines()[-1]
    assert "lvis_v1_train.json" in sentence and "docs/datasets.md" in sentence


def test_eval_only_without_weights_says_so(lvis_root, repository, tmp_path):
    result = train_net(
        repository,
        lvis_root,
        *("--config-file", str(repository / "configs/lvis_gal.yaml"), "--eval-only", *SIZES),
        *("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(tmp_path / "nowhere.pth")),
    )
    assert result.returncode == 1
    assert "nowhere.pth', which does not exist" in result.stderr.strip().splitlines()[-1]
