"""The offline setting (paper, section 5.1): a trained model scores a pool of cut-outs once.

1. Class directions are learnt from real images in two passes. The first sees a few real objects of
   every category and a sample of the candidates: from what these resemble follows which categories
   each is contrasted with. The second sees many real objects, and relabelled ones for the contrast.
2. Every cut-out is pasted on real images of its own and scored, and the rows go to a ledger that
   the reader of training ledgers reads.

Both are kept in one folder, so that an interrupted pass goes on where it was. The passes themselves
are in :mod:`gal_d2.commands.offline_pass`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from gal_d2.commands.offline_options import OfflineOptions
from gal_d2.commands.offline_pass import OfflinePass
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_metadata, require_dataset
from gal_d2.errors import UserError, some_of
from gal_d2.files.folder_lock import locked
from gal_d2.pool.configured import open_configured_pool
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.preflight import require_usable_pool
from gal_d2.setup.arguments import SPLITS

logger = logging.getLogger(__name__)

__all__ = ["OfflineOptions", "open_pool", "score_pool"]

DIRECTIONS_FILE = "directions.pth"


def open_pool(
    cfg: CfgNode, categories: Sequence[int] | None = None
) -> tuple[InstancePool, list[int]]:
    """The pool of ``GAL.POOL.ROOT``, and the ids of the categories to look at, ascending.

    Args:
        cfg: the whole config.
        categories: ids of the data set's; None: all that the pool has too.

    Raises:
        UserError: no pool is named, it is empty, it is for another data set (no id in common), or
            it has no cut-out of a category that is asked for.
    """
    if not cfg.GAL.POOL.ROOT:
        raise UserError("GAL.POOL.ROOT is empty: name the folder of the instance pool to score.")
    pool = open_configured_pool(cfg)
    name = cfg.DATASETS.TRAIN[0]
    known = load_metadata(name).thing_dataset_id_to_contiguous_id
    in_pool = set(pool.category_ids.tolist())
    common = sorted(in_pool & set(known))
    if not common:
        raise UserError(
            f"the instance pool {pool.root} (GAL.POOL.ROOT) has the category ids "
            f"{some_of(sorted(in_pool))}, data set '{name}' has {some_of(sorted(known))}: none in "
            "common, so the pool was made for another data set; name one of this data set's."
        )
    foreign = sorted(in_pool - set(known))
    if foreign:
        logger.warning(
            "%d categories of the instance pool %s are not in data set '%s' and left out: %s.",
            len(foreign),
            pool.root,
            name,
            some_of(foreign),
        )
    names = CategoryNames.from_file(load_metadata(name).json_file).names
    if categories is None:
        require_usable_pool(pool, common, names)
        return pool, common
    missing = [i for i in categories if i not in in_pool]
    if missing:
        raise UserError(
            f"the instance pool {pool.root} has no cut-outs of "
            f"{', '.join(names.get(i, str(i)) for i in missing)}; it has some of "
            f"{some_of([names[i] for i in common])}."
        )
    require_usable_pool(pool, categories, names)
    return pool, sorted(categories)


def score_pool(
    cfg: CfgNode, model: nn.Module, folder: str | os.PathLike, options: OfflineOptions
) -> int:
    """Score what is not in the ledger yet; every process of the run calls it.

    Args:
        cfg: the whole config; ``GAL.SCORER`` says what the score is, ``GAL.COPY_PASTE`` how pastes
            look, ``DATASETS.TRAIN`` where they are put.
        model: trained; on its device.
        folder: of the ledger and the directions.
        options: see there.

    Returns:
        How many placements were scored, by all processes.

    Raises:
        UserError: the pool does not fit, the folder holds the scores of another model or of other
            options, or another run is writing to it.
    """
    folder = Path(folder)
    pool, categories = open_pool(cfg, options.categories)
    if not cfg.DATASETS[SPLITS[options.split]]:
        raise UserError(
            f"DATASETS.{SPLITS[options.split]} is empty, which the split '{options.split}' is: "
            "give GAL.DATA.VAL, two paths (annotation JSON, image folder)."
        )
    for name in cfg.DATASETS[SPLITS[options.split]]:
        require_dataset(name)
    folder.mkdir(parents=True, exist_ok=True)
    in_use = (
        f"another run is scoring into {folder}: wait for it, or choose another folder (--ledger)"
    )
    with locked(folder, in_use) if comm.is_main_process() else nullcontext():
        pass_ = OfflinePass(cfg, model.eval(), pool, categories, options)
        pass_.load_or_learn_directions(folder / DIRECTIONS_FILE)
        return pass_.score(folder)
