#!/usr/bin/env python3
"""Turn a pool into other programs' formats, or a data set's own objects into a pool.

tools/convert_pool.py to-coco mine/pool mine/as_coco --ledger output/own_data/ledger
tools/convert_pool.py from-coco mine/train.json mine/real_pool --image-root mine/images
tools/convert_pool.py to-xpaste mine/pool mine/as_xpaste --annotations mine/train.json
tools/convert_pool.py to-parquet mine/pool mine/pool.parquet

X-Paste's lists become a pool by tools/import_cutouts.py --xpaste.
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    exports = {
        "to-coco": ("folder", "a data set in COCO's format, of PNG files with alpha"),
        "to-xpaste": ("folder", "X-Paste's list and its PNG files"),
        "to-parquet": ("file", "one Parquet file"),
    }
    for name, (target, text) in exports.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("pool", type=Path, help="folder of the pool")
        command.add_argument(target, type=Path, help="to write")
        command.add_argument("--annotations", type=Path, help="for names and ids of categories")
        if name == "to-coco":
            command.add_argument("--ledger", type=Path, help="adds its scores to the annotations")
    text = "cut the objects of a COCO or LVIS data set out into a pool"
    command = commands.add_parser("from-coco", help=text, description=text)
    command.add_argument("annotations", type=Path, help="the data set's JSON")
    command.add_argument("pool", type=Path, help="folder of the pool; it may have others already")
    command.add_argument("--image-root", type=Path, help="default: the folder of the JSON")
    command.add_argument(
        "--min-size", type=float, default=32, help="of sqrt(width * height), px (%(default)s)"
    )
    command.add_argument("--categories", nargs="+", metavar="NAME", help="only these")
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from gal_d2.commands.convert_pool import convert_pool

    convert_pool(args)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(main, parse_arguments())
