"""Training with a generator: resumed bit for bit, in two processes, and as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.utils import comm
from test_resume import assert_same, final_state
from training_runs import (
    SMALL,
    STEPS,
    command_line,
    last_metrics,
    ledger,
    tiny_stable_diffusion,
)

from gal_d2.engine.trainer import GALTrainer
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.launch import launch
from gal_d2.setup.setup import setup

SCRIPT = Path(__file__).parent.parent / "small_model.py"
# It has drawn for step 8 when it dies in the one before; the checkpoint is that of step 6.
KILL_AT = 7


def interleaved(candidates: Path, output: Path) -> list[str]:
    """New cut-outs every second step, which samples see up to four steps later."""
    return [
        *("GAL.GENERATOR.ENABLED", "True", "GAL.GENERATOR.NAME", "cutouts"),
        *("GAL.GENERATOR.CANDIDATES", str(candidates), "GAL.GENERATOR.FILTER.NAMES", "[]"),
        *("GAL.GENERATOR.PERIOD", "2", "GAL.GENERATOR.BATCH", "3"),
        *("GAL.SNAPSHOTS.PERIOD", "2", "GAL.SNAPSHOTS.LAG", "2"),
        *("GAL.POOL.ROOT", str(output / "pool"), "OUTPUT_DIR", str(output)),
    ]


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """Run a Python script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


# -- A run is a function of its seed and step


def test_killed_and_resumed_it_is_bit_for_bit_the_same(lvis_root, repository, candidates, tmp_path):
    """Without workers in one go; and killed with two of them, resumed without.

    Each in a process of its own: after other work in one, sums can round otherwise.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def train(output: Path, *options: str, kill_at: int = -1, resume: bool = False) -> None:
        loop = ("GAL.POOL.SAMPLER", "posterior", "GAL.AUDITION.PERIOD", "2")
        options = (*interleaved(candidates, output), *loop, *options)
        arguments = command_line(repository, "lvis_gal", *options, resume=resume)
        process = run([str(SCRIPT), str(kill_at), *arguments], cwd=lvis_root)
        expected = 0 if kill_at < 0 else -signal.SIGKILL
        assert process.returncode == expected, process.stderr[-3000:]

    train(whole)
    train(parts, "DATALOADER.NUM_WORKERS", "2", kill_at=KILL_AT)
    drawn = InstancePool(parts / "pool")
    train(parts, resume=True)

    assert_same(whole, parts)
    # Before step 0, and after 2, 4, 6 and 8 steps; what came after the checkpoint is found again.
    assert len(drawn) == 3 * 5
    first, second = InstancePool(whole / "pool"), InstancePool(parts / "pool")
    assert first.all_ids().tolist() == second.all_ids().tolist() and len(first) == 3 * 6
    assert len(second.shards) == 6
    state = [torch.load(output / "model_final.pth") for output in (whole, parts)]
    hooks = [checkpoint["trainer"]["hooks"]["InterleaveHook"] for checkpoint in state]
    assert hooks[0]["next_index"] == hooks[1]["next_index"]
    for name, value in hooks[0]["scheduler"].items():
        other = hooks[1]["scheduler"][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other

    # What a step pastes is what its snapshot had.
    rows = ledger(whole)
    shown = [np.unique(rows["pool_id"][rows["step"] <= step]) for step in range(STEPS)]
    assert 0 < len(shown[5]) <= 3  # steps 0 to 5 see snapshot 0
    assert len(shown[-1]) > 3
    assert final_state(whole).keys() == final_state(parts).keys()


# -- Two processes


def train_and_save_state(args, folder: Path) -> None:
    trainer = GALTrainer(setup(args))
    trainer.resume_or_load()
    trainer.train()
    weights = {k: v.detach().clone() for k, v in trainer.model.module.named_parameters()}
    mapper = trainer.data_loader.mapper
    state = {"weights": weights, "seen": mapper.pool.all_ids().tolist()}
    if comm.is_main_process():
        scheduler = trainer.interleaver.scheduler
        state["judged"], state["accepted"] = scheduler.judged.sum(), scheduler.accepted.sum()
        state["waiting"] = scheduler.num_waiting
    torch.save(state, folder / f"rank{comm.get_rank()}.pth")


def test_two_processes_see_the_same_pool(lvis_root, repository, candidates, tmp_path, monkeypatch):
    monkeypatch.chdir(lvis_root)
    output = tmp_path / "output"
    args = argument_parser().parse_args(
        ["--config-file", str(repository / "configs/lvis_gal.yaml"), "--num-gpus", "0"]
        + [*SMALL, *interleaved(candidates, output), "SOLVER.MAX_ITER", "5"]
        + ["GAL.SNAPSHOTS.LAG", "1"]
        # Decides from the first step on, so that it is known what is judged.
        + ["GAL.ACCEPT.POLICY", "random"]
    )
    launch(train_and_save_state, num_gpus=0, num_cpu_processes=2, args=(args, tmp_path))
    first, second = (torch.load(tmp_path / f"rank{r}.pth", weights_only=False) for r in (0, 1))
    assert all(torch.equal(v, second["weights"][k]) for k, v in first["weights"].items())
    # The last samples saw snapshot 1: what was drawn before steps 0 and 2.
    assert first["seen"] == second["seen"] and len(first["seen"]) == 6
    # Both judge, one draws: it knows what the other has pasted. Of that, four times count.
    rows = ledger(output)
    pasted, times = np.unique(rows["pool_id"], return_counts=True)
    assert first["waiting"] == len(InstancePool(output / "pool")) - len(pasted)
    assert first["judged"] == np.minimum(times, 4).sum() / 4
    assert 0 < first["accepted"] < first["judged"]


# -- As a user starts it


def test_from_an_empty_pool_within_the_trainer(train, miniature, tmp_path):
    train(
        *(miniature, "miniature_interleaved", "OUTPUT_DIR", str(tmp_path)),
        *("GAL.GENERATOR.PERIOD", "3", "GAL.GENERATOR.BATCH", "8", "GAL.SNAPSHOTS.PERIOD", "3"),
    )
    assert_generated_scored_accepted_and_reused(tmp_path, tmp_path / "pool")
    metrics = last_metrics(tmp_path)
    assert metrics["generator/drawn"] == metrics["generator/pool_size"] == 32
    assert metrics["generator/queue"] == 0 and metrics["generator/images_per_second"] > 0
    assert 0 < metrics["generator/accepted"] <= 1


def test_from_an_empty_pool_beside_the_trainer(repository, miniature, tmp_path):
    """The tool itself, whose main module the generator's process imports."""
    arguments = command_line(
        *(repository, "miniature_gal", "OUTPUT_DIR", str(tmp_path)),
        *("GAL.GENERATOR.ENABLED", "True", "GAL.GENERATOR.MODE", "async"),
        *("GAL.GENERATOR.NAME", "cutouts", "GAL.GENERATOR.FILTER.NAMES", "[]"),
        *("GAL.GENERATOR.CANDIDATES", "datasets/miniature/pool"),
        *("GAL.POOL.ROOT", str(tmp_path / "own"), "SOLVER.MAX_ITER", "16"),
        *("GAL.GENERATOR.PERIOD", "2", "GAL.SNAPSHOTS.PERIOD", "2", "GAL.GENERATOR.BATCH", "4"),
    )
    process = run([str(repository / "tools/train_net.py"), *arguments], cwd=miniature)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "crashed" not in process.stdout + process.stderr
    assert_generated_scored_accepted_and_reused(tmp_path, tmp_path / "own")
    metrics = last_metrics(tmp_path)
    assert metrics["generator/pool_size"] > 0 and metrics["generator/queue"] >= 0
    assert (tmp_path / "generator.log").exists()


def assert_generated_scored_accepted_and_reused(output: Path, root: Path) -> None:
    rows = ledger(output)
    pool = InstancePool(root)
    assert len(rows["pool_id"]) and pool.contains(rows["pool_id"]).all()
    assert rows["accept"].any()
    # Some are pasted in several steps, and later steps have others than the first ones.
    steps = [np.unique(rows["step"][rows["pool_id"] == i]) for i in np.unique(rows["pool_id"])]
    assert max(map(len, steps)) > 1
    assert max(own[0] for own in steps) > min(own[0] for own in steps)


def test_lvis_with_stable_diffusion(train, lvis_root, tmp_path):
    """configs/lvis_gal.yaml from text to pasted object, with a tiny random model."""
    output = tmp_path / "output"
    train(lvis_root, "lvis_gal", *tiny_stable_diffusion(tmp_path, output))
    pool = InstancePool(output / "pool")
    assert set(pool.metadata(["generator"])["generator"].to_pylist()) == {"diffusers"}
    # Two templates, rare categories first.
    origins = pool.metadata(["origin"])["origin"].to_pylist()
    assert len({origin.rpartition("#")[0] for origin in origins}) == 2
    rows = ledger(output)
    assert len(rows["pool_id"]) and pool.contains(rows["pool_id"]).all()
    metrics = last_metrics(output)
    assert metrics["generator/drawn"] == 18 and metrics["generator/share_r"] > 0.5
