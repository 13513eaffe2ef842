"""From ``cfg.GAL.GENERATOR`` to an :class:`Interleaver`, and what its options must be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.build import build_pipeline, build_prompts, load_generation_categories
from gal_d2.generation.journal import Journal
from gal_d2.generation.options import generation_recipe
from gal_d2.generation.schedule_rules import build_scheduler
from gal_d2.generation.scheduler import CategoryScheduler
from gal_d2.interleaving.interleaver import Interleaver
from gal_d2.interleaving.pipeline_worker import InlineWorker, PipelineWorker, ProcessWorker
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.ledger import Ledger

logger = logging.getLogger(__name__)

MODES = ("sync", "async")
_QUEUE = 2  # batches that a process of its own has on order


def build_interleaver(cfg: CfgNode) -> Interleaver | None:
    """What ``GAL.GENERATOR`` asks for, not started yet; None where it is off, and beside rank 0.

    Raises:
        UserError: an option makes no sense, or the pool or the annotations cannot be read.
    """
    options = cfg.GAL.GENERATOR
    if not options.ENABLED or not comm.is_main_process():
        return None
    check_interleaving(cfg)
    categories = load_generation_categories(cfg)
    prompts = build_prompts(cfg, categories)
    root = cfg.GAL.POOL.ROOT
    names = {category.id: category.name for category in categories}
    journal = Journal(root, generation_recipe(cfg), names)
    pool = InstancePool(root, allow_empty=True)
    pool.require_names(names)  # before hours of training, not when the generator's process starts
    scheduler = build_scheduler(cfg, categories, prompts)
    if options.SCHEDULE.LEDGER:
        count = learn_from_ledger(scheduler, Ledger(options.SCHEDULE.LEDGER, names), pool)
        logger.info(
            "%s speaks of %d of the %d cut-outs in %s.",
            options.SCHEDULE.LEDGER,
            count,
            len(pool),
            pool.root,
        )
    return Interleaver(
        scheduler,
        prompts,
        _build_worker(cfg, categories),
        pool,
        batch=options.BATCH,
        queue=_QUEUE if options.MODE == "async" else 0,
        max_waiting=options.MAX_WAITING if cfg.GAL.SCORER.ENABLED else 0,
        next_index={c.id: journal.next_index(c.id) for c in categories},
        frequency={c.id: c.frequency for c in categories},
    )


def learn_from_ledger(scheduler: CategoryScheduler, ledger: Ledger, pool: InstancePool) -> int:
    """Tell a scheduler what an earlier training decided on the cut-outs of a pool.

    Returns:
        How many cut-outs of the pool the ledger speaks of.
    """
    known: np.ndarray = np.empty(0, np.int64)
    metadata = pool.metadata(["pool_id", "category_id", "origin"])
    in_pool = metadata["pool_id"].to_numpy()
    for table in ledger.tables(["pool_id", "accept", "undecided"]):
        pool_ids, accepted, undecided = (
            table[name].to_numpy() for name in ("pool_id", "accept", "undecided")
        )
        new = np.flatnonzero(np.isin(in_pool, np.setdiff1d(pool_ids, known)))
        rows = metadata.take(new)
        scheduler.adopt(*(rows[name].to_pylist() for name in rows.column_names))
        known = np.union1d(known, in_pool[new])
        scheduler.record_judgements(pool_ids, accepted, ~undecided)
    return len(known)


def _build_worker(cfg: CfgNode, categories: Sequence[Category]) -> PipelineWorker:
    if cfg.GAL.GENERATOR.MODE == "async":
        return ProcessWorker(cfg, categories)
    return InlineWorker(lambda: build_pipeline(cfg, categories))


def check_interleaving(cfg: CfgNode) -> None:
    """Refuse a config whose interleaving cannot work.

    Raises:
        UserError: says which key, and what to set it to.
    """
    options = cfg.GAL.GENERATOR
    if options.MODE not in MODES:
        raise UserError(f"GAL.GENERATOR.MODE is '{options.MODE}': choose sync or async.")
    least = {"PERIOD": 1, "BATCH": 1, "MAX_WAITING": 0}
    for key, minimum in least.items():
        if options[key] < minimum:
            raise UserError(f"GAL.GENERATOR.{key} is {options[key]}: set it to at least {minimum}.")
    if not options.NAME:
        raise UserError(
            "GAL.GENERATOR.ENABLED is on, but GAL.GENERATOR.NAME is empty: name a generator, such "
            "as stable_diffusion or cutouts."
        )
    if not cfg.GAL.COPY_PASTE.ENABLED or cfg.GAL.COPY_PASTE.REAL_FRACTION >= 1:
        raise UserError(
            "GAL.GENERATOR.ENABLED is on, but nothing is pasted from the pool: set "
            "GAL.COPY_PASTE.ENABLED True and GAL.COPY_PASTE.REAL_FRACTION below 1."
        )
    root, candidates = cfg.GAL.POOL.ROOT, options.CANDIDATES
    if candidates and Path(candidates).resolve() == Path(root).resolve():
        raise UserError(
            f"GAL.GENERATOR.CANDIDATES and GAL.POOL.ROOT are both '{root}': give the pool "
            "that is filled a folder of its own."
        )
    if cfg.GAL.POOL.ALLOW_LIST:
        raise UserError(
            f"GAL.POOL.ALLOW_LIST is '{cfg.GAL.POOL.ALLOW_LIST}', a list of the only cut-outs that "
            "may be pasted, so new ones never would be: leave it empty, or set "
            "GAL.GENERATOR.ENABLED False."
        )
    if options.SCHEDULE.NAME == "adaptive" and not cfg.GAL.SCORER.ENABLED:
        raise UserError(
            "GAL.GENERATOR.SCHEDULE.NAME is 'adaptive', which draws what training accepts, but "
            "GAL.SCORER.ENABLED is off: turn it on, or set the schedule to inverse_frequency."
        )
