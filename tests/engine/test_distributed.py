"""Two CPU processes (gloo), started as ``--num-gpus 0 --num-cpu-processes 2`` does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from detectron2.utils import comm
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.snapshots import Snapshots
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.launch import launch
from gal_d2.setup.setup import setup


def train_and_save_weights(args, folder: Path) -> None:
    trainer = GALTrainer(setup(args))
    trainer.resume_or_load()
    positions = [p for batch in take_batches(trainer.data_loader, 2) for p in batch]
    trainer.train()
    weights = {k: v.detach().clone() for k, v in trainer.model.module.named_parameters()}
    state = {"weights": weights, "positions": positions, "judge": trainer.judge.state_dict()}
    state["likeness"] = [torch.from_numpy(a) for a in trainer.judge.posterior.likeness]
    torch.save(state, folder / f"rank{comm.get_rank()}.pth")


def take_batches(loader, count: int) -> list:
    return [batch for batch, _ in zip(loader.batches(), range(count), strict=False)]


def assert_same_tensors(first, second) -> None:
    """Nested dicts and lists hold the same values, tensors bit for bit."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_tensors(first[key], second[key])
    elif isinstance(first, list | tuple):
        for a, b in zip(first, second, strict=True):
            assert_same_tensors(a, b)
    elif isinstance(first, torch.Tensor):
        assert torch.allclose(first.float(), second.float(), rtol=0, atol=0, equal_nan=True)
    else:
        assert first == second


def fail_with_user_error() -> None:
    raise UserError("the remedy is here")


@pytest.mark.parametrize("period", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_weights_stay_the_same_on_both_processes(
    lvis_root, repository, tmp_path, monkeypatch, period
):
    monkeypatch.chdir(lvis_root)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "network.pth")
    args = argument_parser().parse_args(
        ["--config-file", str(repository / "configs/lvis_gal.yaml"), "--num-gpus", "0"]
        + [*SMALL_MODEL, *FROM_SCRATCH, "SOLVER.MAX_ITER", "3", "SEED", "1"]
        + ["DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "output")]
        + ["GAL.POOL.SAMPLER", "posterior", "GAL.SNAPSHOTS.PERIOD", "1"]
        + ["GAL.AUDITION.PERIOD", "1", "GAL.AUDITION.IMAGES", "1.0"]
        + ["GAL.SCORER.PERIOD", str(period), "GAL.LIKENESS.TIMM", "resnet10t"]
        + ["GAL.LIKENESS.WEIGHTS", str(tmp_path / "network.pth")]
        + ["GAL.ACCEPT.WARM_UP.MIN_AGE", "0", "GAL.SCORER.LOSS_WEIGHTS", "[0.0, 0.0]"]
    )
    launch(train_and_save_weights, num_gpus=0, num_cpu_processes=2, args=(args, tmp_path))
    first, second = (torch.load(tmp_path / f"rank{r}.pth") for r in (0, 1))
    assert all(torch.equal(v, second["weights"][k]) for k, v in first["weights"].items())
    assert_same_tensors(first["judge"], second["judge"])
    # each looked at half of the pool, and knows what the other one found
    assert_same_tensors(first["likeness"], second["likeness"])
    assert len(first["likeness"][0]) == len(InstancePool(lvis_root / "datasets/lvis_pool"))
    # the sampler's view is that of the main process, of which both hold the state
    posterior = first["judge"]["posterior"]
    assert posterior["ids"].numel() > 0
    assert 0 < posterior["auditions"].sum() < posterior["count"].sum()
    ranks = {path.name.split("-")[2] for path in (tmp_path / "output/auditions").iterdir()}
    assert ranks == {"r0000", "r0001"}  # each auditioned some
    assert Snapshots(tmp_path / "output/snapshots", period=1).numbers()[-1] == 3
    # each process reads its own half of the stream
    assert [p for p, _ in first["positions"]] == [0, 2]
    assert [p for p, _ in second["positions"]] == [1, 3]
    initial = torch.load(tmp_path / "output/model_final.pth")["model"]
    assert all(torch.equal(v, initial[k]) for k, v in first["weights"].items())


def test_a_users_mistake_in_a_process_is_one_sentence(capfd):
    with pytest.raises(SystemExit) as exit_info:
        launch(fail_with_user_error, num_gpus=0, num_cpu_processes=2)
    assert exit_info.value.code == 1
    error = capfd.readouterr().err
    assert error.count("error: the remedy is here") == 1 and "Traceback" not in error


@pytest.mark.skipif(torch.cuda.device_count() >= 64, reason="has that many GPUs")
def test_more_gpus_than_there_are():
    with pytest.raises(UserError, match="--num-gpus is 64"):
        launch(sys.exit, num_gpus=64)
