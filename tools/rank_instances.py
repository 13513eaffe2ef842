#!/usr/bin/env python3
"""Rank the cut-outs of a category by what they contribute; draw the best and the worst.

tools/rank_instances.py --config-file configs/lvis_gal.yaml --category bun --ledger output/ledger
tools/rank_instances.py --config-file configs/miniature_gal.yaml --category sandal \\
  MODEL.WEIGHTS output/miniature_gal/model_final.pth

A ledger is that of a training (OUTPUT_DIR/ledger) or of tools/score_pool.py. Without one, the
category is scored with MODEL.WEIGHTS first. Writes <category>.png, .csv, .parquet and .html.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gal_d2.setup.arguments import add_scoring_arguments, argument_parser
from gal_d2.setup.launch import run_distributed_tool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argument_parser(epilog=__doc__)
    add_scoring_arguments(parser)
    parser.add_argument(
        "--ledger", type=Path, help="rank by what this ledger has (default: score with the model)"
    )
    parser.add_argument("--top", type=int, default=8, help="cut-outs in each row (%(default)s)")
    parser.add_argument(
        "--by", default="combined", help="combined, a head's name, phi or loss (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="default: OUTPUT_DIR/ranking")
    parser.add_argument(
        "--dpi", type=int, default=200, help="of the picture; 0.9 inch a cut-out (%(default)s)"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from gal_d2.commands.rank import rank_category

    rank_category(args)


if __name__ == "__main__":
    run_distributed_tool(main, parse_arguments())
