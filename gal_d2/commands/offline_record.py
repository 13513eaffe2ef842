"""What a folder of offline scores holds already, and which model, pool and options made it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from gal_d2.commands.offline_options import OfflineOptions
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.errors import UserError
from gal_d2.selection.ledger import Ledger
from gal_d2.setup.arguments import SPLITS


def scored_placements(folder: Path) -> np.ndarray:
    """(N, 2) int64, pool id and placement of every row of an offline ledger; N may be 0.

    Raises:
        UserError: the ledger is that of a training.
    """
    parts = [np.zeros((0, 2), np.int64)]
    if any(folder.glob("*.parquet")):
        for table in Ledger(folder).tables(["pool_id", "placement"]):
            if "placement" not in table.column_names:
                raise UserError(
                    f"{folder} holds the ledger of a training: choose another folder (--ledger)."
                )
            parts.append(
                np.stack([table[name].to_numpy() for name in ("pool_id", "placement")], axis=1)
            )
    return np.concatenate(parts)


def scores_digest(cfg: CfgNode, model: nn.Module, options: OfflineOptions) -> str:
    """Eight hex digits that are the same for scores that may stand in one folder."""
    made_with = repr(sorted(origin_of(cfg, model, options).items()))
    return hashlib.blake2b(made_with.encode(), digest_size=4).hexdigest()


def origin_of(cfg: CfgNode, model: nn.Module, options: OfflineOptions) -> dict[str, str]:
    """What the scores depend on, as text."""
    categories = options.categories
    return {
        "MODEL.WEIGHTS": _weights_digest(model),
        "GAL.SCORER": str(cfg.GAL.SCORER),
        "GAL.COPY_PASTE": str(PasteOptions.from_config(cfg)),
        "--category": str(None if categories is None else sorted(categories)),
        "--split": f"{options.split} {tuple(cfg.DATASETS[SPLITS[options.split]])}",
        "--per-category": str(options.per_category),
        "--candidates": str(options.candidates),
        "--seed": str(options.seed),
    }


def next_step(folder: Path) -> int:
    """A step after all that an offline ledger has. A step there is a batch, and means no more."""
    steps = [int(path.name.split("-")[1]) for path in folder.glob("*-r*.parquet")]
    return max(steps, default=-1) + 1


def _weights_digest(model: nn.Module) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
