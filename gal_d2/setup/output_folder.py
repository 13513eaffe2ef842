"""Keeps a training from destroying what an earlier one left in its ``OUTPUT_DIR``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from gal_d2.errors import UserError, some_of
from gal_d2.files.folder_lock import locked
from gal_d2.setup.start_checks import check_evaluation_sets, load_training_dicts

logger = logging.getLogger(__name__)

# What nobody wants to lose: a training without --resume would take back or overwrite it.
_RESULTS = ("last_checkpoint", "model_*.pth", "ledger/*.parquet", "auditions/*.parquet")
# All that a training writes but the pool, which another run may well go on to fill.
_WRITTEN = (
    *("last_checkpoint", "model_*.pth", "ledger", "auditions", "snapshots", "decisions"),
    *("inference", "metrics.json", "events.out.tfevents.*", "config.yaml", "log.txt*"),
    *("report.html", "wandb_id.txt"),
)
_HELD = contextlib.ExitStack()  # by this process, to its end


def earlier_results(folder: str | Path) -> list[Path]:
    """What a training left in a folder that a new one would destroy; sorted."""
    folder = Path(folder)
    return sorted(path for pattern in _RESULTS for path in folder.glob(pattern))


def refuse_earlier_results(folder: str | Path) -> None:
    """Stop before a new training destroys an earlier one's results.

    Raises:
        UserError: there are some; says how to go on, to keep them, or to be rid of them.
    """
    found = [path.name for path in earlier_results(folder)]
    if found:
        raise UserError(
            f"OUTPUT_DIR '{folder}' has the results of an earlier training ({some_of(found)}), "
            "which a new one would destroy: go on with it (--resume), set another OUTPUT_DIR, or "
            "move them aside (--overwrite)."
        )


def set_aside(folder: str | Path, weights: str = "") -> Path | None:
    """Move what an earlier training wrote into ``earlier-001`` (or the next free number) below.

    The pool of ``OUTPUT_DIR/pool`` stays, and so does what other tools wrote.

    Args:
        folder: an OUTPUT_DIR.
        weights: ``MODEL.WEIGHTS`` of the training that is to start.

    Returns:
        Where it is now; None if there was nothing.

    Raises:
        UserError: ``weights`` are among them, or they cannot be moved.
    """
    folder = Path(folder)
    if not earlier_results(folder):
        return None
    found = sorted(path for pattern in _WRITTEN for path in folder.glob(pattern))
    if weights and Path(weights).resolve() in {path.resolve() for path in found}:
        raise UserError(
            f"MODEL.WEIGHTS is '{weights}', which --overwrite would move aside: set another "
            "OUTPUT_DIR, or move that file first."
        )
    number = 1
    while (target := folder / f"earlier-{number:03d}").exists():
        number += 1
    try:
        target.mkdir()
        for path in found:
            path.rename(target / path.name)
    except OSError as error:
        raise UserError(
            f"the earlier results in OUTPUT_DIR '{folder}' cannot be moved to {target} "
            f"({error.strerror or error}): move them yourself, or set another OUTPUT_DIR."
        ) from error
    return target


def claim(cfg: CfgNode, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a training may write to ``cfg.OUTPUT_DIR``; every process calls it.

    Args:
        cfg: the whole config.
        resume: it goes on with what is there.
        overwrite: what is there is moved aside.

    Raises:
        UserError: another process is training there; there are results of an earlier training, and
            neither is said; or both are; or the data cannot train.
    """
    message, target = None, None
    if comm.is_main_process():
        try:
            _hold(Path(cfg.OUTPUT_DIR))
            if resume and overwrite:
                raise UserError("--resume goes on with what --overwrite moves aside: give one.")
            if overwrite:
                target = set_aside(cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS)
            elif not resume and earlier_results(cfg.OUTPUT_DIR):
                # Of two mistakes the graver one is named first: data that cannot train are of no
                # use in another folder either.
                load_training_dicts(cfg)
                check_evaluation_sets(cfg)
                refuse_earlier_results(cfg.OUTPUT_DIR)
        except UserError as error:
            message = str(error)
    message = comm.all_gather(message)[0]
    if message is not None:
        raise UserError(message)
    if target is not None:
        # Not through a logger: none is set up before the folder is claimed.
        print(f"--overwrite: what an earlier training wrote to {cfg.OUTPUT_DIR} is in {target} now")


def _hold(folder: Path) -> None:
    """Keep other trainings out of a folder until this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _HELD.enter_context(
            locked(
                folder,
                f"another training is writing to OUTPUT_DIR '{folder}': wait for its end, or set "
                "another OUTPUT_DIR",
            )
        )
    except OSError as error:
        raise UserError(
            f"OUTPUT_DIR '{folder}' cannot be written to ({error.strerror}): set it to a place "
            "that you can write to."
        ) from error


@contextlib.contextmanager
def keeping_config(folder: str | Path) -> Iterator[None]:
    """Within the block, a tool that uses a run's folder may write ``config.yaml``; then it is back.

    detectron2 stores the config of every command there. That of the training is what the model was
    trained with, and what later commands are told by.
    """
    path = Path(folder) / "config.yaml"
    kept = path.read_bytes() if comm.is_main_process() and path.is_file() else None
    yield
    if kept is not None and path.read_bytes() != kept:
        path.write_bytes(kept)
        logger.info("%s stays that of the training", path)
