#!/usr/bin/env python3
"""Fill an instance pool: draw, cut out, filter and store instances of a data set's categories.

tools/generate_instances.py --config-file configs/lvis_gal.yaml --dry-run
tools/generate_instances.py --config-file configs/lvis_gal.yaml --categories bun boot \\
    --per-category 16 --output output/trial_pool --contact-sheet output/trial_sheets
torchrun --nproc-per-node 8 tools/generate_instances.py --config-file configs/lvis_gal.yaml
tools/generate_instances.py --config-file configs/lvis_gal.yaml --ray auto

Run it again to go on after an interruption: what was drawn, kept or not, is not drawn again.
docs/generation.md explains the options (GAL.GENERATOR.*), which can also be given as KEY VALUE.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gal_d2.setup.launch import run_tool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to a config file")
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="only these (name, synonym or id)"
    )
    parser.add_argument(
        "--per-category",
        type=int,
        metavar="N",
        help="images to draw of each (default: GAL.GENERATOR.PER_CATEGORY)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="POOL", help="the pool's folder (default: GAL.POOL.ROOT)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print prompts and what is missing; draw nothing"
    )
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="DIR",
        help="when done, write a picture of the cut-outs of each category to this folder",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on a Ray cluster: its address, `auto`, or nothing for one on this machine",
    )
    parser.add_argument(
        "--ray-generators",
        type=int,
        default=0,
        metavar="N",
        help="actors that draw (default: one for each GPU of the cluster, two without GPUs)",
    )
    parser.add_argument(
        "--ray-cutters",
        type=int,
        default=0,
        metavar="N",
        help="actors that segment and filter (default: as many)",
    )
    parser.add_argument(
        "--ray-gpus-per-cutter",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="of a GPU, for segmenting and filtering; drawing gets the rest (default: 0.25)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config options")
    # --categories takes all words that follow, so the options' KEY VALUE pairs may be mixed up
    # with them: keys are in capitals with dots.
    parsed, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") and not word[1:2].isdigit()]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    parsed.opts += rest
    if parsed.categories:
        keys = [k for k, word in enumerate(parsed.categories) if is_config_key(word)]
        if keys:
            parsed.opts = parsed.categories[keys[0] :] + parsed.opts
            parsed.categories = parsed.categories[: keys[0]] or None
    return parsed


def is_config_key(word: str) -> bool:
    """Whether an argument is the KEY of a KEY VALUE pair, as GAL.GENERATOR.SEED."""
    return "." in word and word.replace(".", "").replace("_", "").isalnum() and word.isupper()


def run(arguments: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from gal_d2.commands.generate import generate

    generate(arguments)


if __name__ == "__main__":
    run_tool(run, parse_arguments())
