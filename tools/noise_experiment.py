#!/usr/bin/env python3
"""Does the contribution score notice noise, and does training on what it selects help?

tools/noise_experiment.py
tools/noise_experiment.py --data fashion-mnist --seeds 0 1 2
tools/noise_experiment.py --data cifar-10 --root datasets/sources --real 5000
tools/noise_experiment.py --data pictures --output output/noise_pictures

--data is one of digits, fashion-mnist and cifar-10, or a folder: of class folders with pictures of
one size, or of train and test with such folders.

Writes scores.png (score distributions by noise scale), tables.md and results.npz to the output
folder. gal_d2/testbeds/noise/experiment.py says what is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

import numpy as np

from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.miniature.sources import has_fashion_mnist
from gal_d2.testbeds.noise import experiment as noise
from gal_d2.testbeds.noise.figure import save_score_distributions
from gal_d2.testbeds.noise.image_sets import IMAGE_SETS, ImageSet, load_image_set
from gal_d2.testbeds.noise.tables import accuracy_table, location_table, separation_table

logger = logging.getLogger("gal_d2")

# option -> field of NoiseExperiment
SIZES = {
    "real": "num_real",
    "held_out": "num_held_out",
    "candidates": "num_candidates",
    "test": "num_test",
    "steps": "steps",
    "scored_after": "scored_after",
    "keep": "keep",
    "noise_scales": "noise_scales",
    "seeds": "seeds",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        default="digits",
        metavar="NAME",
        help=f"{', '.join(IMAGE_SETS)}, or a folder (%(default)s)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("datasets/sources"),
        help="where pictures lie or are fetched to (%(default)s)",
    )
    parser.add_argument("--output", type=Path, help="default: output/noise_experiment/<data set>")
    parser.add_argument("--figure", type=Path, help="default: scores.png in the output folder")
    for option, meaning in (
        ("real", "real pictures to train on"),
        ("held-out", "pictures of the held-out gradient"),
        ("candidates", "pictures that get noise"),
        ("test", "pictures that accuracy is measured on"),
        ("steps", "of every training"),
    ):
        parser.add_argument(f"--{option}", type=int, help=meaning)
    parser.add_argument("--scored-after", type=float, help="share of the steps before scoring")
    parser.add_argument("--keep", type=float, help="share of the candidates that is selected")
    parser.add_argument("--noise-scales", type=float, nargs="+", help="ascending from 0")
    parser.add_argument("--seeds", type=int, nargs="+")
    return parser.parse_args(arguments)


def configure(args: argparse.Namespace, data: ImageSet) -> noise.NoiseExperiment:
    """The data set's defaults with what the command line says in their place."""
    given = {field: getattr(args, option) for option, field in SIZES.items()}
    changes = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in given.items()
        if value is not None
    }
    return dataclasses.replace(noise.default_for(data), **changes)


def fetch(data: str, root: Path) -> None:
    """Fetch what is missing, as far as it can be; what reads it says what is still missing."""
    sys.path.append(str(Path(__file__).resolve().parent))  # the tools are no package
    from fetch_image_sets import fetch_cifar10, fetch_fashion_mnist

    if data == "cifar-10":
        fetch_cifar10(root)
    elif data == "fashion-mnist" and not has_fashion_mnist(root):
        fetch_fashion_mnist(root)


def main(args: argparse.Namespace) -> None:
    fetch(args.data, args.root)
    data = load_image_set(args.data, args.root)
    config = configure(args, data)
    results = noise.run(data, config)
    output = args.output or Path("output/noise_experiment") / data.name
    output.mkdir(parents=True, exist_ok=True)

    pooled = {
        key: np.concatenate([result.scores[key] for result in results], axis=1)
        for key in noise.SCORES
    }
    np.savez(
        output / "results.npz",
        seeds=config.seeds,
        noise_scales=config.noise_scales,
        **{f"scores {'/'.join(key)}": values for key, values in pooled.items()},
        **{
            f"accuracy {arm}": [result.accuracy[arm] for result in results]
            for arm in results[0].accuracy
        },
    )
    figure = save_score_distributions(
        {
            f"{formula}, {reference} gradient": pooled[formula, reference]
            for formula, reference in noise.SCORES
        },
        config.noise_scales,
        args.figure or output / "scores.png",
        f"{data.name}: contribution of candidates by noise ({len(config.seeds)} seeds)",
    )
    tables = (
        f"{data.name}: {config}\n\n{separation_table(results, config)}\n\n"
        f"{location_table(results, config)}\n\n{accuracy_table(results)}\n"
    )
    (output / "tables.md").write_text(tables)
    print(tables)
    logger.info("figure: %s; tables: %s", figure, output / "tables.md")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_tool(main, parse_arguments())
