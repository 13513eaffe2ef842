"""Sends a run's scalars and pictures to Weights & Biases, where ``GAL.WANDB`` names a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from gal_d2.reporting.run import flat

ID_FILE = "wandb_id.txt"
WINDOW = 20  # steps that a noisy scalar is the median of, as in metrics.json


class WandbWriter(EventWriter):
    """Writes what is new in the storage; a resumed run goes on in the run that it began.

    It stands before the writer to TensorBoard, which takes the pictures out of the storage.

    Args:
        cfg: of the run; its config is stored with it.
    """

    def __init__(self, cfg: CfgNode) -> None:
        import wandb

        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / ID_FILE
        self._picture = wandb.Image
        self._run = wandb.init(
            project=cfg.GAL.WANDB,
            name=folder.resolve().name,
            dir=str(folder),
            config=flat(cfg),
            id=id_file.read_text().strip() if id_file.is_file() else None,
            resume="allow",
        )
        id_file.write_text(self._run.id)
        self._last = -1

    def write(self) -> None:
        """Log the scalars and pictures that were put since the last time, each at its step."""
        by_step: dict[int, dict[str, Any]] = {}
        storage = get_event_storage()
        for name, (value, step) in storage.latest_with_smoothing_hint(WINDOW).items():
            if step > self._last:
                by_step.setdefault(step, {})[name] = value
        # detectron2 has no other way to them: its own writer reads them so.
        for name, picture, step in storage._vis_data:
            if step > self._last:
                pixels = np.asarray(picture).transpose(1, 2, 0)
                by_step.setdefault(step, {})[name] = self._picture(pixels)
        for step in sorted(by_step):
            self._run.log(by_step[step], step=step)
            self._last = step

    def close(self) -> None:
        """End the run."""
        self._run.finish()
