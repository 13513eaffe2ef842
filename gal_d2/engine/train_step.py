"""One optimisation step in fp32, fp16 (with loss scaling) or bf16, on any device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from torch.nn.modules.batchnorm import _BatchNorm

from gal_d2.distributed import all_processes
from gal_d2.engine.resume import load_optimizer_state

logger = logging.getLogger(__name__)

# One step without a finite loss may be an odd image's: it is passed over, or a run, which does the
# same at each resume, could never get past it. So many in a row are the end.
MOST_PASSED_OVER = 10


class MixedPrecisionTrainer(SimpleTrainer):
    """detectron2's SimpleTrainer under autocast; its AMPTrainer insists on CUDA and fp16.

    A step whose loss is infinite or NaN, in any process, changes nothing of the model.

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
        # What a forward pass changes of the model.
        self._statistics = [
            buffer
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
            for buffer in module.buffers(recurse=False)
        ]
        self._passed_over = 0

    def run_step(self) -> None:
        assert self.model.training, "the model was left in eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.last_batch = data
        if self.on_batch is not None:
            data = self.on_batch(self.iter, data)

        statistics = [buffer.clone() for buffer in self._statistics]
        with torch.autocast(
            self.device_type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        ):
            loss_dict = self.model(data)
            losses = sum(loss_dict.values())

        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.on_backward is not None:
            self.on_backward()
        # Not before: the host waits for the device here.
        if not all_processes(bool(losses.isfinite())):
            self.optimizer.zero_grad()
            for buffer, kept in zip(self._statistics, statistics, strict=True):
                buffer.copy_(kept)
            self._pass_over(loss_dict)
            return
        self._passed_over = 0
        self._write_metrics(loss_dict, data_time)
        # Gradient clipping lives in the optimizer's step, which the scaler calls after unscaling.
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _pass_over(self, loss_dict: dict[str, torch.Tensor]) -> None:
        """Say that a step was passed over.

        Raises:
            FloatingPointError: it is one too many in a row.
        """
        self._passed_over += 1
        losses = ", ".join(f"{name} {loss.item():.3g}" for name, loss in loss_dict.items())
        images = [sample.get("file_name") for sample in self.last_batch if isinstance(sample, dict)]
        if self._passed_over >= MOST_PASSED_OVER:
            raise FloatingPointError(
                f"The loss was infinite or NaN in {self._passed_over} steps in a row, the last of "
                f"them step {self.iter} ({losses})."
            )
        logger.warning(
            "The loss of step %d is infinite or NaN (here: %s): the step is passed over, and the "
            "model stays as it is. Images: %s.",
            *(self.iter, losses, ", ".join(map(str, images))),
        )

    def state_dict(self) -> dict:
        own = {"grad_scaler": self.grad_scaler.state_dict(), "passed_over": self._passed_over}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict) -> None:
        # SimpleTrainer's would have the optimizer's options of the checkpoint replace the config's.
        TrainerBase.load_state_dict(self, state_dict)
        load_optimizer_state(self.optimizer, state_dict["optimizer"])
        self._passed_over = state_dict.get("passed_over", 0)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
