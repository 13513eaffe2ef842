"""A run of tools/generate_instances.py: draw, cut out, filter and store what is missing."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.build import (
    build_generator,
    build_pipeline,
    build_prompts,
    build_store,
    category_names,
    check_options,
    load_generation_categories,
)
from gal_d2.generation.build_cutter import build_cutter
from gal_d2.generation.journal import DropStatistics, Journal, Outcome
from gal_d2.generation.options import generation_recipe
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.ray_pipeline import RayRunner
from gal_d2.generation.store import PoolStore
from gal_d2.generation.stored_size import largest_pastes
from gal_d2.generation.work import WorkUnit, plan_work
from gal_d2.setup.configuration import load_config
from gal_d2.visualization.pool_sheet import write_pool_sheets

logger = logging.getLogger(__name__)


def chosen_categories(
    categories: Sequence[Category], texts: list[str] | None
) -> tuple[Category, ...]:
    """The categories that --categories lists; all of them without it."""
    if texts is None:
        return tuple(categories)
    chosen = category_names(categories).resolve_all(texts, "--categories")
    return tuple(category for category in categories if category.id in chosen)


def print_plan(units: list[WorkUnit], categories: Sequence[Category], prompts: PromptBook) -> None:
    """The dry run: the prompts of each category, and how much is to be drawn."""
    missing: dict[int, int] = {}
    for unit in units:
        missing[unit.category_id] = missing.get(unit.category_id, 0) + len(unit.requests)
    for category in categories:
        count = len(prompts.templates(category.id))
        print(f"{category.id:>7}  {category.name}: {missing.get(category.id, 0):,} to draw")
        for index in range(count):
            print(f"           {prompts.request(category.id, index).prompt}")
    total = sum(missing.values())
    print(f"{total:,} images of {len(categories):,} categories in {len(units):,} units are to draw")


def generate(arguments: argparse.Namespace) -> None:
    """Do what the arguments of tools/generate_instances.py say.

    Raises:
        UserError: an option is wrong, a model is missing, or the pool cannot be written to.
    """
    cfg = load_config(arguments.config_file, arguments.opts)
    if arguments.output is not None:
        cfg.GAL.POOL.ROOT = str(arguments.output)
    if arguments.per_category is not None:
        cfg.GAL.GENERATOR.PER_CATEGORY = arguments.per_category
    cfg.freeze()
    check_options(cfg)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if arguments.ray is not None and world_size > 1:
        raise UserError("--ray starts its own processes: leave out torchrun, or --ray")
    setup_logger(name="gal_d2", distributed_rank=rank)
    all_categories = load_generation_categories(cfg)
    categories = chosen_categories(all_categories, arguments.categories)
    prompts = build_prompts(cfg, all_categories)
    plan = functools.partial(
        plan_work,
        prompts,
        [category.id for category in categories],
        cfg.GAL.GENERATOR.PER_CATEGORY,
        cfg.GAL.GENERATOR.UNIT_SIZE,
        rank=rank,
        world_size=world_size,
    )
    if arguments.dry_run:
        print_plan(plan(journal=existing_journal(cfg, all_categories)), categories, prompts)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # A scheduler's polite kill lets what was drawn reach the pool.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    store = build_store(cfg, all_categories)
    units = plan(journal=store.journal)
    report_start(store, units)
    if arguments.ray is None:
        steps = in_this_process(cfg, all_categories, units, store)
    else:
        steps = on_ray(cfg, all_categories, units, store, arguments)
    statistics, seconds = DropStatistics(), time.perf_counter()
    try:
        with tqdm(
            total=sum(len(unit.requests) for unit in units), unit=" images", disable=None
        ) as bar:
            for outcomes in steps:
                statistics.add(outcomes)
                bar.update(len(outcomes))
                bar.set_postfix(kept=f"{statistics.kept.total():,}", refresh=False)
    finally:
        steps.close()
        store.close()
        report_end(store, statistics, {c.id: c.name for c in categories}, seconds, rank, world_size)
    if arguments.contact_sheet is not None and rank == 0:
        write_pool_sheets(store.root, categories, arguments.contact_sheet)
        print(f"contact sheets: {arguments.contact_sheet}")


def existing_journal(cfg: CfgNode, categories: Sequence[Category]) -> Journal | None:
    """The journal of the pool where there is one; a dry run creates nothing."""
    if not cfg.GAL.POOL.ROOT or not Path(cfg.GAL.POOL.ROOT).is_dir():
        return None
    names = {category.id: category.name for category in categories}
    return Journal(cfg.GAL.POOL.ROOT, generation_recipe(cfg), names)


def in_this_process(
    cfg: CfgNode, categories: Sequence[Category], units: list[WorkUnit], store: PoolStore
) -> Iterator[list[Outcome]]:
    """Do the units one after the other."""
    if not units:
        return
    pipeline = build_pipeline(cfg, categories, store)
    for unit in units:
        yield pipeline.run(unit.requests)
    total = sum(pipeline.seconds.values())
    shares = ", ".join(f"{stage} {s / total:.0%}" for stage, s in pipeline.seconds.items())
    logger.info("Time: %s", shares)


def on_ray(
    cfg: CfgNode,
    categories: Sequence[Category],
    units: list[WorkUnit],
    store: PoolStore,
    arguments: argparse.Namespace,
) -> Iterator[list[Outcome]]:
    """Do the units on a Ray cluster."""
    if not units:
        return
    with RayRunner(
        functools.partial(build_generator, cfg, categories),
        functools.partial(build_cutter, cfg, categories, largest=largest_pastes(cfg)),
        address=arguments.ray,
        generators=arguments.ray_generators,
        cutters=arguments.ray_cutters,
        gpus_per_cutter=arguments.ray_gpus_per_cutter,
    ) as runner:
        yield from runner.run(units, store)


def report_start(store: PoolStore, units: list[WorkUnit]) -> None:
    """Say what is there and what is missing."""
    logger.info(
        "%s: %d images were drawn before, %d are to draw",
        store.root,
        len(store.journal),
        sum(len(unit.requests) for unit in units),
    )
    if store.journal.others:
        logger.warning(
            "%s: %d images were drawn with other options of GAL.GENERATOR; they stay in the pool, "
            "and do not count here",
            store.journal.folder,
            store.journal.others,
        )


def report_end(
    store: PoolStore,
    statistics: DropStatistics,
    names: dict[int, str],
    start: float,
    rank: int,
    world_size: int,
) -> None:
    """Print what was drawn, kept and dropped, and the rate."""
    drawn = statistics.drawn.total()
    if drawn:
        print(statistics.describe(names))
        rate = drawn / max(time.perf_counter() - start, 1e-9)
        own = f" (process {rank} of {world_size})" if world_size > 1 else ""
        print(
            f"{store.root}: {drawn:,} images drawn{own}, {3600 * rate:,.0f} an hour, loading "
            f"included; {statistics.kept.total():,} passed, {store.added:,} of them are new"
        )
    else:
        print(f"{store.root}: nothing is missing")
