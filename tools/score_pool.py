#!/usr/bin/env python3
"""Score every cut-out of a pool with a trained model, and write a ledger of the scores.

tools/score_pool.py --config-file configs/lvis_gal.yaml MODEL.WEIGHTS model.pth
tools/score_pool.py --config-file configs/miniature_gal.yaml --category boot --category dress \\
  MODEL.WEIGHTS output/miniature_gal/model_final.pth

Interrupted, it goes on where it was, with any number of processes. tools/rank_instances.py and
tools/filter_pool.py read the ledger.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gal_d2.setup.arguments import add_scoring_arguments, argument_parser
from gal_d2.setup.launch import run_distributed_tool

logger = logging.getLogger("gal_d2")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argument_parser(epilog=__doc__)
    add_scoring_arguments(parser)
    parser.add_argument(
        "--ledger", type=Path, help="folder of the scores (default: OUTPUT_DIR/pool_scores)"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from detectron2.utils import comm

    from gal_d2.commands.offline_options import OfflineOptions
    from gal_d2.commands.score_pool import open_pool, score_pool
    from gal_d2.engine.trainer import GALTrainer
    from gal_d2.setup.setup import setup

    cfg = setup(args)
    options = OfflineOptions.from_arguments(cfg, args)
    open_pool(cfg, options.categories)  # before the model: a wrong pool is found at once
    folder = args.ledger or Path(cfg.OUTPUT_DIR) / "pool_scores"
    score_pool(cfg, GALTrainer.load_model(cfg), folder, options)
    if comm.is_main_process():
        print(f"ledger: {folder}")


if __name__ == "__main__":
    run_distributed_tool(main, parse_arguments())
