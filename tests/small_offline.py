"""Score the pool of the tiny LVIS with a tiny model, and die on the way if told to."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

BATCH_SIZE = 1  # images
GROUP = 4  # cut-outs that are put together for so many images


def configure(repository: Path, output: Path, *options: str):
    """The config of a tiny model; the working folder has ``datasets/``."""
    from small_model import FROM_SCRATCH, SMALL_MODEL

    from gal_d2.setup.configuration import load_config
    from gal_d2.setup.setup import resolve_datasets

    config_file = str(repository / "configs/lvis_gal.yaml")
    opts = [*SMALL_MODEL, *FROM_SCRATCH, "OUTPUT_DIR", str(output), *options]
    cfg = load_config(config_file, opts)
    resolve_datasets(cfg)
    return cfg


def build_model(cfg, seed: int = 0):
    """Untrained, the same at every call."""
    import torch

    from gal_d2.engine.trainer import GALTrainer

    torch.manual_seed(seed)
    return GALTrainer.build_model(cfg)


def score(repository: Path, output: Path, kill_at: int = -1, placements: int = 2) -> None:
    """What tools/score_pool.py does; the process dies before batch ``kill_at`` is recorded."""
    from gal_d2.commands.offline_options import OfflineOptions
    from gal_d2.commands.score_pool import score_pool
    from gal_d2.selection.ledger_writer import LedgerWriter

    append = LedgerWriter.append
    count = 0

    def append_or_die(self, *args, **kwargs) -> None:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        append(self, *args, **kwargs)

    LedgerWriter.append = append_or_die
    cfg = configure(repository, output)
    options = OfflineOptions(
        per_category=2,
        candidates=2,
        placements=placements,
        batch_size=BATCH_SIZE,
        flush_seconds=0.0,
    )
    score_pool(cfg, build_model(cfg), output / "scores", options)


if __name__ == "__main__":  # small_offline.py REPOSITORY OUTPUT KILL_AT
    import gal_d2  # noqa: F401

    score(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
