from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from gal_d2.engine.train_step import MOST_PASSED_OVER, MixedPrecisionTrainer


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


class Normalised(nn.Module):
    """A layer with running statistics; the loss of some steps is NaN."""

    def __init__(self, odd_steps: range) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.odd_steps = odd_steps
        self.step = -1

    def forward(self, batch):
        self.step += 1
        x = torch.stack(batch) * (torch.nan if self.step in self.odd_steps else 1.0)
        return {"loss": self.linear(self.norm(x)).square().mean()}


def run(odd_steps: range, steps: int) -> list[dict[str, torch.Tensor]]:
    """The state of the model after each step."""
    torch.manual_seed(0)
    model, data = Normalised(odd_steps), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = MixedPrecisionTrainer(model, itertools.repeat(list(data)), optimizer, None)
    states = []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(steps):
            trainer.run_step()
            states.append({k: v.clone() for k, v in model.state_dict().items()})
    return states


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert [k for k in first if not torch.equal(first[k], second[k])] == []


def test_a_step_without_a_finite_loss_changes_nothing(caplog):
    """Not the weights, the statistics of the layers or the momentum: the rest is as without it."""
    states, without = run(range(2, 3), 6), run(range(0), 5)
    assert_equal(states[1], states[2])
    assert_equal(states[5], without[4])
    assert "The loss of step 2 is infinite or NaN (here: loss nan): the step is" in caplog.text


def test_too_many_of_them_in_a_row_are_the_end():
    run(range(1, MOST_PASSED_OVER), MOST_PASSED_OVER + 2)
    with pytest.raises(FloatingPointError, match="in 10 steps in a row, the last of them step 10"):
        run(range(1, MOST_PASSED_OVER + 1), MOST_PASSED_OVER + 2)
