"""One optimisation step in fp32, fp16 (with loss scaling) or bf16, on any device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from detectron2.engine import SimpleTrainer, TrainerBase

from gal_d2.engine.resume import load_optimizer_state


class MixedPrecisionTrainer(SimpleTrainer):
    """detectron2's SimpleTrainer under autocast; its AMPTrainer insists on CUDA and fp16.

    Args:
        model, data_loader, optimizer: as in SimpleTrainer.
        autocast_dtype: None for fp32, ``torch.float16`` or ``torch.bfloat16``.
        on_batch: called with the iteration and the batch; gives the samples to train on.
        on_backward: called when the device has the backward pass to do, and the host nothing.

    Attributes:
        last_batch: of the last step, as it was loaded.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        autocast_dtype: torch.dtype | None,
        on_batch: Callable[[int, list[dict]], list[dict]] | None = None,
        on_backward: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.on_batch, self.on_backward = on_batch, on_backward
        self.last_batch: list[dict] = []
        self.autocast_dtype = autocast_dtype
        self.device_type = next(model.parameters()).device.type
        # bf16 has the range of fp32: only fp16 needs its loss scaled.
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=autocast_dtype == torch.float16
        )

    def run_step(self) -> None:
        assert self.model.training, "the model was left in eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.last_batch = data
        if self.on_batch is not None:
            data = self.on_batch(self.iter, data)

        with torch.autocast(
            self.device_type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        ):
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())

        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.on_backward is not None:
            self.on_backward()
        self._write_metrics(loss_dict, data_time)
        # Gradient clipping lives in the optimizer's step, which the scaler calls after unscaling.
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        # SimpleTrainer's would have the optimizer's options of the checkpoint replace the config's.
        TrainerBase.load_state_dict(self, state_dict)
        load_optimizer_state(self.optimizer, state_dict["optimizer"])
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
