from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from gal_d2.engine.train_step import MixedPrecisionTrainer


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.dtypes: set[torch.dtype] = set()

    def forward(self, batch):
        x = torch.stack(batch)
        prediction = self.linear(x)
        self.dtypes.add(prediction.dtype)
        return {"loss": (prediction.float() - x.sum(1, keepdim=True)).square().mean()}


def train(dtype: torch.dtype | None, steps: int = 60) -> tuple[Regression, float]:
    torch.manual_seed(0)
    model, data = Regression(), torch.randn(8, 4)
    trainer = MixedPrecisionTrainer(
        model,
        itertools.repeat(list(data)),
        torch.optim.SGD(model.parameters(), lr=0.1),
        dtype,
    )
    with EventStorage() as trainer.storage:
        for _ in range(steps):
            trainer.run_step()
        return model, trainer.storage.latest()["total_loss"][0]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_every_precision_learns_in_its_own_type(dtype):
    model, loss = train(dtype)
    assert loss < 0.05
    assert model.dtypes == {dtype or torch.float32}
    assert model.linear.weight.dtype == torch.float32


def test_the_host_s_work_comes_after_the_backward_pass_and_before_the_step():
    model, seen = Regression(), []

    def look() -> None:
        weight = model.linear.weight
        seen.append((weight.grad is not None, weight.detach().clone()))

    trainer = MixedPrecisionTrainer(
        model,
        itertools.repeat([torch.ones(4)]),
        torch.optim.SGD(model.parameters(), lr=0.1),
        None,
        on_backward=look,
    )
    before = model.linear.weight.detach().clone()
    with EventStorage() as trainer.storage:
        trainer.run_step()
    ((has_gradient, weight),) = seen
    assert has_gradient and torch.equal(weight, before)
    assert not torch.equal(model.linear.weight, before)


def test_the_loss_scale_is_part_of_the_state():
    trainer = MixedPrecisionTrainer(
        Regression(), [], torch.optim.SGD([torch.zeros(1)], 0.1), torch.float16
    )
    trainer.storage = None
    trainer.grad_scaler.load_state_dict({**trainer.grad_scaler.state_dict(), "scale": 128.0})
    other = MixedPrecisionTrainer(
        Regression(), [], torch.optim.SGD([torch.zeros(1)], 0.1), torch.float16
    )
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.state_dict()["scale"] == 128.0
