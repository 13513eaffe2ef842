#!/usr/bin/env python3
"""What it costs to fill a pool, by arithmetic from public figures of speed.

python benchmarks/generation_cost.py
python benchmarks/generation_cost.py --seconds 0.4 --categories 80 --per-category 500 --kept 0.5

Nothing is measured here. --seconds takes your own figure, such as tools/generate_instances.py
prints it (3600 / images an hour).
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from documents import markdown_table

from gal_d2.errors import UserError
from gal_d2.setup.launch import run_tool


class Speed(NamedTuple):
    """Seconds of one GPU for one image of 512 x 512 pixels, and who says so."""

    what: str
    seconds: float
    source: str


PUBLIC = (
    Speed(
        "SD 1.5, 50 steps, diffusers",
        1.604,
        "fal-ai/stable-diffusion-benchmarks: A100 80G, torch 2.1, batch 1",
    ),
    Speed(
        "the same, compiled, channels-last",
        1.058,
        "fal-ai/stable-diffusion-benchmarks: A100 80G, torch 2.1, batch 1",
    ),
    Speed(
        "SD, diffusers' default steps, batch 16",
        13.55 / 16,
        "huggingface/diffusers pull request 2764: A100, torch 2.0, fp16",
    ),
    Speed(
        "SDXL-Turbo, 1 step",
        0.207,
        "Stability AI's announcement of SDXL Turbo: A100, fp16, batch 1",
    ),
)


class Cost(NamedTuple):
    """What a pool costs at some speed."""

    images_per_hour: float
    gpu_hours: float
    gpu_hours_per_1000_kept: float


def cost(seconds: float, images: int, kept: float = 1.0) -> Cost:
    """The cost of drawing images.

    Args:
        seconds: of one GPU for one image.
        images: to draw.
        kept: share of them that the filters let pass, in (0, 1].

    Raises:
        UserError: a number is out of range.
    """
    if seconds <= 0 or images < 1 or not 0 < kept <= 1:
        raise UserError(
            f"seconds is {seconds}, images {images}, kept {kept}: give positive numbers, and a "
            "share of at most 1"
        )
    hours = images * seconds / 3600
    return Cost(3600 / seconds, hours, 1000 * hours / (images * kept))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--categories", type=int, default=1203, help="default: %(default)s (LVIS)")
    parser.add_argument("--per-category", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--kept", type=float, default=1.0, help="share that passes the filters")
    parser.add_argument("--seconds", type=float, help="your own seconds per image")
    options = parser.parse_args(arguments)
    images = options.categories * options.per_category
    speeds = PUBLIC if options.seconds is None else (Speed("yours", options.seconds, "--seconds"),)
    print(f"{images:,} images of 512 x 512 pixels, {options.kept:.0%} of which are kept")
    rows = []
    for speed in speeds:
        result = cost(speed.seconds, images, options.kept)
        numbers = f"{result.images_per_hour:,.0f}", f"{result.gpu_hours:,.0f}"
        rows.append([speed.what, *numbers, f"{result.gpu_hours_per_1000_kept:.2f}", speed.source])
    header = "model", "images per GPU-hour", "GPU-hours", "GPU-hours per 1,000 kept", "source"
    print(markdown_table(header, rows), end="")


if __name__ == "__main__":
    run_tool(main)
