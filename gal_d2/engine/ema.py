"""Exponential moving average of a model's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class ModelEMA:
    """Running average of all floating point parameters and buffers; others are copied.

    It is a checkpointable of its own ("ema"), so the checkpoint's "model" stays the trained one.
    torch's ``AveragedModel`` would copy the whole module, and with it the judge that its heads ask,
    and have the average under names of its own, which no checkpoint so far has.

    Args:
        model: the model to follow; it may be wrapped in DistributedDataParallel.
        decay: weight of the old average at each update; early on ``(1 + n) / (10 + n)`` where that
            is smaller, so that the initial weights are forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self.num_updates = 0
        self.average: dict[str, torch.Tensor] = {}

    def reset(self) -> None:
        """Start from the model's current weights."""
        self.num_updates = 0
        self.average = {k: v.detach().clone() for k, v in self._model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's current weights."""
        if not self.average:
            self.reset()
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages, weights = [], []
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.average[name])
                weights.append(value.detach())
            else:
                self.average[name].copy_(value)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the average; its own weights return after."""
        own = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        self.copy_to_model()
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def copy_to_model(self) -> None:
        """Give the model the average's weights for good."""
        if self.average:
            self._model.load_state_dict(self.average)

    def state_dict(self) -> dict:
        return {"num_updates": self.num_updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.num_updates = state["num_updates"]
        device = next(self._model.parameters()).device
        self.average = {k: v.to(device, copy=True) for k, v in state["average"].items()}


class EMAHook(HookBase):
    """Updates a :class:`ModelEMA` after each optimizer step."""

    def __init__(self, ema: ModelEMA) -> None:
        self.ema = ema

    def before_train(self) -> None:
        if not self.ema.average:  # not resumed: start from what was loaded or initialised
            self.ema.reset()

    def after_step(self) -> None:
        self.ema.update()
