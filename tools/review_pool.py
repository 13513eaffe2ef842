#!/usr/bin/env python3
"""Look at a pool's cut-outs in a browser and say which are good: g, b, space to skip, u to undo.

tools/review_pool.py datasets/lvis_pool --ledger output/lvis_gal \\
  --annotations datasets/lvis/lvis_v1_train.json --image-root datasets/coco
tools/review_pool.py datasets/lvis_pool --export verdicts.csv

Shows first what is uncertain and pasted often. With --ledger (OUTPUT_DIR of a training that draws
by the posterior, or a ledger such as that of tools/score_pool.py) it knows what that is; with
--annotations and --image-root it shows real objects beside. Verdicts are stored in the pool, in
verdicts.jsonl; a running training takes them in at its next snapshot. The page is served to this
machine alone.
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
    parser.add_argument("pool", type=Path, help="folder of the pool")
    parser.add_argument("--ledger", type=Path, help="what a training or a scoring found out")
    parser.add_argument("--annotations", type=Path, help="for names and frequencies of categories")
    parser.add_argument("--image-root", type=Path, help="the annotations' images")
    parser.add_argument("--category", nargs="+", metavar="NAME", help="show only these")
    parser.add_argument("--reviewer", help="stored with each verdict (default: the account's name)")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the verdicts as CSV")
    parser.add_argument(
        "--import",
        dest="import_from",
        type=Path,
        metavar="FILE",
        help="add the verdicts of a CSV file",
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from gal_d2.commands.review_pool import review_pool

    review_pool(args)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(main, parse_arguments())
