"""Trainings of seconds, as a user starts them, and what they leave."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.selection.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent / "generation"))

STEPS = 11
SMALL = [
    *(*SMALL_MODEL, *FROM_SCRATCH, "SOLVER.MAX_ITER", str(STEPS), "SOLVER.WARMUP_ITERS", "2"),
    *("DATASETS.TEST", "()", "GAL.ACCEPT.WARM_UP.MIN_AGE", "1", "SEED", "11"),
    *("SOLVER.CHECKPOINT_PERIOD", "6", "GAL.COPY_PASTE.MIN_PASTES", "2"),
]


def command_line(
    repository: Path, config: str, *options: str, resume: bool = False, num_gpus: int = 0
) -> list[str]:
    """What a user gives to tools/train_net.py."""
    file = str(repository / f"configs/{config}.yaml")
    flags = ["--resume"] if resume else []
    return ["--config-file", file, "--num-gpus", str(num_gpus), *flags, *SMALL, *options]


def tiny_stable_diffusion(folder: Path, output: Path) -> list[str]:
    """Options of `lvis_gal`: it draws with a tiny random model, which is saved in ``folder``."""
    import tiny_models

    model = tiny_models.save_stable_diffusion(folder / "model", safety_checker=False)
    clipseg = tiny_models.save_clipseg(folder / "clipseg")
    return [
        *("OUTPUT_DIR", str(output), "GAL.GENERATOR.ENABLED", "True", "SOLVER.MAX_ITER", "6"),
        *("GAL.POOL.ROOT", str(output / "pool"), "GAL.GENERATOR.DEVICE", "cpu"),
        *("GAL.GENERATOR.MODEL", str(model), "GAL.GENERATOR.VARIANT", ""),
        *("GAL.GENERATOR.SAFETY_CHECKER", "False", "GAL.GENERATOR.PERIOD", "2"),
        *("GAL.GENERATOR.SIZE", "32", "GAL.GENERATOR.STEPS", "2", "GAL.GENERATOR.BATCH", "6"),
        *("GAL.GENERATOR.SEGMENTER.NAMES", "['clipseg']", "GAL.SNAPSHOTS.PERIOD", "2"),
        *("GAL.GENERATOR.SEGMENTER.CLIPSEG.MODEL", str(clipseg)),
        # Noise has no outline: any mask will do.
        *("GAL.GENERATOR.FILTER.NAMES", "['area']", "GAL.GENERATOR.FILTER.AREA.MIN", "0.0"),
        *("GAL.GENERATOR.FILTER.AREA.MAX", "1.0"),
    ]


def ledger(output: Path) -> dict[str, np.ndarray]:
    table = pa.concat_tables(Ledger(output / "ledger").tables(["step", "pool_id", "accept"]))
    return {name: table[name].to_numpy() for name in ("step", "pool_id", "accept")}


def last_metrics(output: Path) -> dict:
    metrics: dict = {}
    for line in (output / "metrics.json").open():
        metrics |= json.loads(line)
    return metrics
