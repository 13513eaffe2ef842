#!/usr/bin/env python3
"""Score every cut-out of a pool with a trained model, and write a ledger of the scores.

tools/score_pool.py --config-file configs/lvis_gal.yaml MODEL.WEIGHTS model.pth
tools/score_pool.py --config-file configs/miniature_gal.yaml --category boot --category dress \\
  MODEL.WEIGHTS output/miniature_copypaste/model_final.pth

Interrupted, it goes on where it was, with any number of processes. tools/rank_instances.py and
tools/filter_pool.py read the ledger.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from gal_d2.engine.launch import launch, run_tool
from gal_d2.engine.offline import SPLITS, OfflineOptions, open_pool, resolve_categories, score_pool
from gal_d2.engine.setup import argument_parser, setup
from gal_d2.engine.trainer import GALTrainer

logger = logging.getLogger("gal_d2")


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    default = OfflineOptions()
    parser.add_argument(
        "--category",
        action="append",
        metavar="NAME",
        help="name, synonym or id; can be given several times (default: all)",
    )
    parser.add_argument(
        "--ledger", type=Path, help="folder of the scores (default: OUTPUT_DIR/pool_scores)"
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default=default.split,
        help="where the real objects of the class directions come from (default: %(default)s)",
    )
    parser.add_argument(
        "--per-category",
        type=int,
        default=default.per_category,
        help="real objects of each category to learn from, 0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=default.candidates,
        help="cut-outs of each category that tell what it is confused with (default: %(default)s)",
    )
    parser.add_argument(
        "--placements",
        type=int,
        default=default.placements,
        help="real images that each cut-out is pasted on (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=default.batch_size,
        help="images per process and step (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of the placements")


def offline_options(cfg: CfgNode, args: argparse.Namespace) -> OfflineOptions:
    """What :func:`add_scoring_arguments` read."""
    return OfflineOptions(
        categories=resolve_categories(cfg, args.category),
        split=args.split,
        per_category=args.per_category,
        candidates=args.candidates,
        placements=args.placements,
        batch_size=args.batch_size,
        seed=args.seed,
    )


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    options = offline_options(cfg, args)
    open_pool(cfg, options.categories)  # before the model: a wrong pool is found at once
    folder = args.ledger or Path(cfg.OUTPUT_DIR) / "pool_scores"
    score_pool(cfg, GALTrainer.load_model(cfg), folder, options)
    if comm.is_main_process():
        logger.info("Ledger: %s", folder)


if __name__ == "__main__":
    parser = argument_parser(epilog=__doc__)
    add_scoring_arguments(parser)
    args = parser.parse_args()
    run_tool(
        launch,
        main,
        num_gpus=args.num_gpus,
        num_cpu_processes=args.num_cpu_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
