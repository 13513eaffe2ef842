#!/usr/bin/env python3
"""Keep the best cut-outs of a pool, by any score that is recorded of them.

tools/filter_pool.py --pool datasets/lvis_pool --ledger output/pool_scores --quantile 0.5 \\
  --at-least 20 --allow-list output/allowed.parquet
tools/filter_pool.py --pool datasets/lvis_pool --by clip --threshold 0.21 --output datasets/clean

--by names a score of the ledger (combined, a head, phi, loss) or one that a filter stored in the
pool (clip, ...). An allow-list is read by training (GAL.POOL.ALLOW_LIST); --output copies what is
kept into a new pool. A threshold is compared with the recorded number, so a loss is kept up to it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gal_d2.setup.launch import run_tool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", type=Path, required=True, help="folder of the pool")
    parser.add_argument("--ledger", type=Path, help="of a training or of tools/score_pool.py")
    parser.add_argument("--by", default="combined", help="which score (%(default)s)")
    parser.add_argument("--threshold", type=float, help="keep from this score on")
    parser.add_argument(
        "--quantile", type=float, help="keep what is at or above this quantile of its category"
    )
    parser.add_argument("--top", type=int, help="keep so many of each category")
    parser.add_argument(
        "--at-least", type=int, default=0, help="keep so many of each category in any case"
    )
    parser.add_argument("--keep-unscored", action="store_true", help="keep those without a score")
    parser.add_argument("--allow-list", type=Path, help="file to write the ids of the kept to")
    parser.add_argument("--output", type=Path, help="folder of a new pool with the kept")
    parser.add_argument("--annotations", type=Path, help="for the categories' names")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from gal_d2.commands.filter_pool import filter_pool

    filter_pool(args)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(main, parse_arguments())
