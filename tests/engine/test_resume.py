"""A run is a function of its seed and step: killed, resumed, with or without workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.judging.auditions import FOLDER
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.posterior_view import PosteriorView
from gal_d2.selection.snapshots import Snapshots

STEPS, CHECKPOINT_PERIOD = 10, 3
# Within step 7, with the checkpoint of step 6 the last: two steps are done again.
KILL_AT = 7
SCRIPT = Path(__file__).parent.parent / "small_model.py"


def run(
    lvis_root: Path,
    repository: Path,
    output: Path,
    *extra: str,
    kill_at: int = -1,
    config: str = "lvis_gal",
) -> int:
    arguments = [
        *("--config-file", str(repository / f"configs/{config}.yaml"), "--num-gpus", "0"),
        *(flag for flag in extra if flag.startswith("--")),
        *SMALL_MODEL,
        *FROM_SCRATCH,
        *("SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", str(CHECKPOINT_PERIOD)),
        *("GAL.ACCEPT.WARM_UP.MIN_AGE", "1"),
        *("SOLVER.WARMUP_ITERS", "2", "DATASETS.TEST", "()", "OUTPUT_DIR", str(output)),
        *(option for option in extra if not option.startswith("--")),
    ]
    process = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(kill_at), *arguments],
        cwd=lvis_root,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert process.returncode in (0, -signal.SIGKILL), process.stderr[-3000:]
    return process.returncode


def final_state(output: Path) -> dict:
    checkpoint = torch.load(output / "model_final.pth", map_location="cpu")
    optimizer = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    return {
        **{f"model.{k}": v for k, v in checkpoint["model"].items()},
        **{f"ema.{k}": v for k, v in checkpoint["ema"]["average"].items()},
        **{f"optimizer.{i}.{k}": v for i, s in optimizer.items() for k, v in s.items()},
        **dict(tensors("judge", checkpoint["judge"])),
    }


def tensors(name: str, value) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of nested dicts, by path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(f"{name}.{key}", inner)
    elif isinstance(value, torch.Tensor):
        yield name, value.nan_to_num() if value.is_floating_point() else value


def ledger_rows(ledger: Path) -> pa.Table:
    columns = ["step", "pool_id", "image_id", "score", "accept", "value"]
    table = pa.concat_tables(Ledger(ledger).tables(columns))
    return table.sort_by([(column, "ascending") for column in columns])


def assert_same(first: Path, second: Path) -> None:
    expected, actual = final_state(first), final_state(second)
    assert expected.keys() == actual.keys()
    differing = [k for k in expected if not torch.equal(expected[k], actual[k])]
    assert not differing
    assert any(k.startswith("judge.") and "cache" in k for k in expected)
    assert (first / FOLDER).is_dir() == (second / FOLDER).is_dir()
    for name in ("ledger", FOLDER) if (first / FOLDER).is_dir() else ("ledger",):
        rows = ledger_rows(first / name)
        assert len(rows) > 0 and rows.equals(ledger_rows(second / name))  # none lost, none twice


# What changes while training and a sample or a decision depends on: which cut-outs are drawn, and
# what the scores of a cut-out add up to. The last samples see what was known
# before the checkpoint, and the resumed run's first ones what was known before that.
PERIOD, LAG = 2, 2
LOOP = (
    *("GAL.POOL.SAMPLER", "posterior"),
    *("GAL.SNAPSHOTS.PERIOD", str(PERIOD), "GAL.SNAPSHOTS.LAG", str(LAG)),
    *("GAL.AUDITION.PERIOD", "2", "GAL.AUDITION.IMAGES", "0.5"),
)
PROBE = ("GAL.SCORER.PROBE.FRACTION", "0.0")  # six images are too few to hold any out


def kill_and_resume(
    lvis_root: Path, repository: Path, folder: Path, *options: str, config: str
) -> tuple[Path, Path]:
    """Outputs of a run in one go without workers, and of one with two that dies on the way."""
    straight, resumed = folder / "straight", folder / "resumed"
    options = ("SEED", "11", *options, "DATALOADER.NUM_WORKERS")
    assert run(lvis_root, repository, straight, *options, "0", config=config) == 0
    killed = run(lvis_root, repository, resumed, *options, "2", kill_at=KILL_AT, config=config)
    assert killed == -signal.SIGKILL and not (resumed / "model_final.pth").exists()
    assert run(lvis_root, repository, resumed, "--resume", *options, "2", config=config) == 0
    return straight, resumed


def test_the_published_recipe_killed_and_resumed_is_bit_for_bit_the_same(
    lvis_root, repository, tmp_path
):
    straight, resumed = kill_and_resume(
        lvis_root, repository, tmp_path, *PROBE, config="lvis_batch"
    )
    assert_same(straight, resumed)


@pytest.mark.parametrize(
    ("policy", "period", "network"),
    [
        ("quantile", 1, "resnet10t"),
        pytest.param("always", 2, "", marks=pytest.mark.slow),
    ],
)
def test_the_loop_killed_and_resumed_is_bit_for_bit_the_same(
    lvis_root, repository, tmp_path, policy, period, network
):
    """Likeness, auditions, posterior, draws, decisions: weights, what is known, all rows."""
    options = (*LOOP, "GAL.SCORER.LOSS_WEIGHTS", "[0.0, 0.0]", "GAL.SCORER.PERIOD", str(period))
    options += ("GAL.ACCEPT.POLICY", policy)
    if network:
        torch.save(timm.create_model(network).state_dict(), tmp_path / "network.pth")
        options += ("GAL.LIKENESS.TIMM", network)
        options += ("GAL.LIKENESS.WEIGHTS", str(tmp_path / "network.pth"))
    straight, resumed = kill_and_resume(
        lvis_root, repository, tmp_path, *options, config="lvis_gal"
    )
    assert_same(straight, resumed)
    steps = set(ledger_rows(straight / FOLDER)["step"].to_pylist())
    assert steps & set(range(6)) and 7 in steps  # before the checkpoint and after it
    states = [torch.load(folder / "model_final.pth") for folder in (straight, resumed)]
    first, second = (state["trainer"]["hooks"]["AuditionHook"] for state in states)
    assert first == second
    posterior = states[0]["judge"]["posterior"]
    assert 0 < posterior["auditions"].sum() < posterior["count"].sum()

    # What the samples see is put together from other files, for the resumed run began with a whole.
    ids = np.sort(posterior["ids"].numpy())
    for step in (STEPS - 1, STEPS + PERIOD * LAG):
        views = [
            PosteriorView(Snapshots(folder / "snapshots", period=PERIOD, lag=LAG))
            for folder in (straight, resumed)
        ]
        for view in views:
            view.follow(step)
        first, second = (view.moments(ids) for view in views)
        assert np.array_equal(first, second)
        assert np.abs(first[0]).max() > 0.1  # so it made a difference which cut-outs were drawn


def test_a_random_seed_is_kept_in_the_checkpoint(lvis_root, repository, tmp_path):
    """SEED -1: the resumed run goes on with the seed that the first one drew."""
    assert run(lvis_root, repository, tmp_path, kill_at=KILL_AT) == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / "model_0000002.pth", map_location="cpu")
    seed = checkpoint["trainer"]["seed"]
    assert run(lvis_root, repository, tmp_path, "--resume") == 0
    resumed = torch.load(tmp_path / "model_final.pth", map_location="cpu")
    assert resumed["trainer"]["seed"] == seed and seed >= 0
