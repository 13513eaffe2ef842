"""Whole trainings and passes on a GPU. What they compute is tested on the CPU; here, that they run
where users run them, in every precision, and that no step depends on where its tensors are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_offline import build_model, configure
from training_runs import last_metrics, ledger, tiny_stable_diffusion

from gal_d2.data.pool import InstancePool
from gal_d2.engine.offline import OfflineOptions, score_pool
from gal_d2.scoring.ledger import Ledger

pytestmark = pytest.mark.cuda
CUDA = ("MODEL.DEVICE", "cuda")


def scores(output: Path) -> np.ndarray:
    table = pa.concat_tables(Ledger(output / "ledger").tables(["score"]))
    return table["score"].to_numpy(zero_copy_only=False).astype(float)


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.json").open()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


@pytest.mark.parametrize(
    "precision",
    [
        (),
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"),
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"),
    ],
    ids=["float32", "float16", "bfloat16"],
)
def test_scored_training_and_its_resumption(precision, train, lvis_root, tmp_path):
    options = [*CUDA, *precision, "OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", "2"]
    train(lvis_root, "lvis_gal", *options, "SOLVER.MAX_ITER", "7")
    train(lvis_root, "lvis_gal", *options, "SOLVER.MAX_ITER", "12", resume=True)
    rows = ledger(tmp_path)
    assert set(rows["step"]) == set(range(12))
    assert np.isfinite(losses(tmp_path)).all()
    known = np.isfinite(scores(tmp_path))
    assert known[rows["step"] >= 6].mean() > 0.5
    state = torch.load(tmp_path / "model_final.pth", map_location="cpu")
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("lvis_batch", ("GAL.SCORER.PROBE.FRACTION", "0.0")),
        ("lvis_gal", ("GAL.SCORER.ROIS", "proposals", "GAL.SCORER.LOSS_WEIGHTS", "[0.0, 0.0]")),
        (
            "lvis_gal",
            (
                *("GAL.SCORER.TARGET", "probe", "GAL.SCORER.PROBE.FRACTION", "0.0"),
                *("GAL.POOL.SAMPLER", "ledger", "GAL.SNAPSHOTS.PERIOD", "2"),
            ),
        ),
        (
            "lvis_gal",
            (
                "MODEL.ROI_HEADS.NAME",
                "GALCascadeROIHeads",
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
                "True",
            ),
        ),
    ],
    ids=["published recipe", "proposals", "probe", "cascade"],
)
def test_other_modes(config, options, train, lvis_root, tmp_path):
    train(lvis_root, config, *CUDA, *options, "OUTPUT_DIR", str(tmp_path))
    assert np.isfinite(losses(tmp_path)).all()
    assert len(ledger(tmp_path)["step"])


def test_evaluation(train, miniature, tmp_path):
    train(
        *(miniature, "miniature_gal", *CUDA, "OUTPUT_DIR", str(tmp_path)),
        *("DATASETS.TEST", "('miniature_val',)"),
    )
    assert {"bbox/AP", "segm/APr"} <= set(last_metrics(tmp_path))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_generator_on_the_same_gpu(mode, train, lvis_root, tmp_path):
    output = tmp_path / "output"
    train(
        *(lvis_root, "lvis_gal", *tiny_stable_diffusion(tmp_path, output), *CUDA),
        *("GAL.GENERATOR.DEVICE", "cuda", "GAL.GENERATOR.MODE", mode),
    )
    pool = InstancePool(output / "pool")
    assert set(pool.metadata(["generator"])["generator"].to_pylist()) == {"diffusers"}
    rows = ledger(output)
    if mode == "sync":
        assert len(rows["pool_id"])
    assert pool.contains(rows["pool_id"]).all()


def test_an_offline_pass_scores_as_on_the_cpu(lvis_root, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(lvis_root)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = OfflineOptions(per_category=2, candidates=2, placements=1, batch_size=4)
    tables = []
    for device in ("cpu", "cuda"):
        cfg = configure(repository, tmp_path / device, "MODEL.DEVICE", device)
        model = build_model(cfg)
        score_pool(cfg, model, tmp_path / device / "scores", options)
        table = pa.concat_tables(Ledger(tmp_path / device / "scores").tables())
        tables.append(table.sort_by("pool_id"))
    cpu, cuda = tables
    assert cpu["pool_id"].equals(cuda["pool_id"]) and len(cpu) > 0
    for name in ("score", "head_score_box", "head_score_mask", "head_loss_box", "head_loss_mask"):
        a, b = (table[name].to_numpy(zero_copy_only=False) for table in tables)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3)
