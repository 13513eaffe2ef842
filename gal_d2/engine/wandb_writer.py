"""Sends a run's scalars to Weights & Biases, where ``GAL.WANDB`` names a project."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from gal_d2.reporting.run import flat

ID_FILE = "wandb_id.txt"
WINDOW = 20  # steps that a noisy scalar is the median of, as in metrics.json


class WandbWriter(EventWriter):
    """Writes what is new in the storage; a resumed run goes on in the run that it began.

    Args:
        cfg: of the run; its config is stored with it.
    """

    def __init__(self, cfg: CfgNode) -> None:
        import wandb

        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / ID_FILE
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
        """Log the scalars that were put since the last time, each at its step."""
        by_step: dict[int, dict[str, float]] = {}
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if step > self._last:
                by_step.setdefault(step, {})[name] = value
        for step in sorted(by_step):
            self._run.log(by_step[step], step=step)
            self._last = step

    def close(self) -> None:
        """End the run."""
        self._run.finish()
