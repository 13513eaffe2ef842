"""A process of several that dies: the others end with a sentence, and do not wait for it."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from dying import KILLED, in_child
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gal_d2.engine.train_step import MixedPrecisionTrainer
from gal_d2.errors import UserError
from gal_d2.setup.launch import launch

PATIENCE = 120  # seconds after which a process that hangs is ended, by a signal


def as_torchrun(main: Callable[[], None], folder: Path) -> list[int]:
    """Exit status of two processes that ``torchrun`` starts; what they print is in ``rank0`` ..."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]

    def rank(number: int) -> None:
        signal.alarm(PATIENCE)
        os.environ |= {"TORCHELASTIC_RUN_ID": "faults", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
        launch(main, num_gpus=0)

    first = os.fork()
    if first == 0:  # a process of its own, since they have to run at the same time
        os._exit(in_child(functools.partial(rank, 0), folder / "rank0") & 255)
    second = in_child(functools.partial(rank, 1), folder / "rank1")
    return [os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]), second]


def die_before_the_others_are_answered() -> None:
    dist.barrier()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(3))


def test_under_torchrun_the_other_says_it(tmp_path: Path, tried) -> None:
    assert as_torchrun(die_before_the_others_are_answered, tmp_path) == [1, KILLED]
    said = (tmp_path / "rank0").read_text()
    assert "error: another process of this run has ended: see what it said" in said
    assert "Traceback" not in said
    tried["dead rank"] += 1


@pytest.mark.slow
def test_processes_of_ours_are_ended(tried) -> None:
    with pytest.raises(UserError, match=r"process 1 of this run was ended from outside \(SIGKILL"):
        launch(die_before_the_others_are_answered, num_gpus=0, num_cpu_processes=2)
    tried["dead rank"] += 1


class Odd(nn.Module):
    """A regression whose loss is NaN in step 1 of rank 1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.step = -1

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        self.step += 1
        odd = torch.nan if (self.step, dist.get_rank()) == (1, 1) else 1.0
        return {"loss": odd * self.linear(torch.stack(batch)).square().mean()}


def train_with_an_odd_step(folder: Path) -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(Odd())
    data = itertools.repeat([torch.full((4,), 1.0 + dist.get_rank())])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = MixedPrecisionTrainer(model, data, optimizer, None)
    weights = []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(3):
            trainer.run_step()
            weights.append(model.module.linear.weight.detach().clone())
    torch.save(weights, folder / f"weights{dist.get_rank()}.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="autograd with a GPU cannot be forked")
def test_a_step_that_is_odd_for_one_is_passed_over_by_all(tmp_path: Path, tried) -> None:
    status = as_torchrun(functools.partial(train_with_an_odd_step, tmp_path), tmp_path)
    assert status == [0, 0], (tmp_path / "rank0").read_text()
    first, second = (torch.load(tmp_path / f"weights{rank}.pth") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert "The loss of step 1 is infinite or NaN" in (tmp_path / "rank1").read_text()
    tried["NaN in one rank"] += 1
