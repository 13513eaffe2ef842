"""A run is a function of its seed and step: killed, resumed, with or without workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.data.snapshots import Snapshots
from gal_d2.scoring.ledger import Ledger

STEPS, CHECKPOINT_PERIOD = 6, 3
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
        *("GAL.ACCEPT.WARM_UP.MIN_AGE", "1", "GAL.SCORER.PARTNER_EVERY", "2"),
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


def ledger_rows(output: Path) -> pa.Table:
    columns = ["step", "pool_id", "image_id", "score", "accept"]
    table = pa.concat_tables(Ledger(output / "ledger").tables(columns))
    return table.sort_by([(column, "ascending") for column in columns])


def assert_same(first: Path, second: Path) -> None:
    expected, actual = final_state(first), final_state(second)
    assert expected.keys() == actual.keys()
    differing = [k for k in expected if not torch.equal(expected[k], actual[k])]
    assert not differing
    assert any(k.startswith("judge.") and "cache" in k for k in expected)
    rows = ledger_rows(first)
    assert len(rows) > 0 and rows.equals(ledger_rows(second))  # no row lost, none twice


@pytest.fixture(scope="module")
def uninterrupted(lvis_root, repository, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert run(lvis_root, repository, output, "SEED", "11") == 0
    return output


def test_killed_and_resumed_with_workers_is_bit_for_bit_the_same(
    uninterrupted, lvis_root, repository, tmp_path
):
    workers = ("SEED", "11", "DATALOADER.NUM_WORKERS", "2")
    killed = run(lvis_root, repository, tmp_path, *workers, kill_at=STEPS - 2)
    assert killed == -signal.SIGKILL and not (tmp_path / "model_final.pth").exists()
    assert run(lvis_root, repository, tmp_path, "--resume", *workers) == 0
    assert_same(uninterrupted, tmp_path)


def test_a_random_seed_is_kept_in_the_checkpoint(lvis_root, repository, tmp_path):
    """SEED -1: the resumed run goes on with the seed that the first one drew."""
    assert run(lvis_root, repository, tmp_path, kill_at=STEPS - 2) == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / "model_0000002.pth", map_location="cpu")
    seed = checkpoint["trainer"]["seed"]
    assert run(lvis_root, repository, tmp_path, "--resume") == 0
    resumed = torch.load(tmp_path / "model_final.pth", map_location="cpu")
    assert resumed["trainer"]["seed"] == seed and seed >= 0


# Everything that changes while training and that a sample or a decision depends on: which cut-outs
# are drawn, which held-out images are learnt from, which proposals are scored.
EVERYTHING = (
    *("SEED", "11", "GAL.POOL.SAMPLER", "ledger", "GAL.POOL.MIN_WEIGHT", "0.01"),
    *("GAL.ACCEPT.EVIDENCE.PRIOR_COUNT", "0.1", "GAL.SNAPSHOTS.PERIOD", "1", "GAL.SNAPSHOTS.LAG"),
    *("2", "GAL.SCORER.TARGET", "probe", "GAL.SCORER.PROBE.FRACTION", "0.0"),
    *("GAL.SCORER.ROIS", "proposals", "GAL.ACCEPT.EVIDENCE.ENABLED", "True"),
)


@pytest.mark.parametrize(
    ("config", "options"), [("lvis_gal", EVERYTHING), ("lvis_batch", (*EVERYTHING[:10], "2"))]
)
def test_what_samples_depend_on_is_resumed_too(config, options, lvis_root, repository, tmp_path):
    probe = ("GAL.SCORER.PROBE.FRACTION", "0.0")  # six images are too few to hold any out
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    options = (*options, *probe, "DATALOADER.NUM_WORKERS")
    assert run(lvis_root, repository, straight, *options, "0", config=config) == 0
    killed = run(lvis_root, repository, resumed, *options, "1", kill_at=STEPS - 2, config=config)
    assert killed == -signal.SIGKILL
    assert run(lvis_root, repository, resumed, "--resume", *options, "1", config=config) == 0
    assert_same(straight, resumed)
    snapshots = [Snapshots(folder / "snapshots", period=1, lag=2) for folder in (straight, resumed)]
    first, second = (reader.at(STEPS)["evidence.weights"] for reader in snapshots)
    assert len(first) > 0 and first.tolist() == second.tolist()
