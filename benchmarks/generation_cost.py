#!/usr/bin/env python3
"""What it costs to fill a pool: measured on this machine's GPU, or by arithmetic.

python benchmarks/generation_cost.py --measure [--document docs/generation.md]
python benchmarks/generation_cost.py
python benchmarks/generation_cost.py --seconds 0.4 --categories 80 --per-category 500 --kept 0.5

--measure draws with the true architectures of SD 1.5 and SDXL-Turbo and random weights
(diffusion_models.py): text encoders, denoising and decoding, to pictures in memory. Segmentation
and filters are not part of it. Without it nothing is measured: speeds are those that others
published, or yours with --seconds, such as tools/generate_instances.py prints it (3600 / images an
hour).
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gal_d2  # noqa: F401  (it prepares the process for detectron2)

# isort: split
import torch
from diffusion_models import ARCHITECTURES, Architecture, TextToImage
from documents import check_document, markdown_table, replace_tables

from gal_d2.errors import UserError
from gal_d2.setup.launch import run_tool

COMMAND = "benchmarks/generation_cost.py"


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


class Setting(NamedTuple):
    """How a model is run; ``steps`` 0: its published number."""

    model: str
    batch: int
    steps: int = 0
    dtype: str = "float16"
    channels_last: bool = True
    compiled: bool = False


# One thing is varied at a time. What compiles comes last: it takes minutes.
SETTINGS = (
    Setting("sd15", 8),
    Setting("sd15", 1),
    Setting("sd15", 32),
    Setting("sd15", 8, steps=20),
    Setting("sd15", 8, dtype="bfloat16"),
    Setting("sd15", 8, steps=5, dtype="float32"),
    Setting("sd15", 8, channels_last=False),
    Setting("sdxl-turbo", 8),
    Setting("sdxl-turbo", 1),
    Setting("sdxl-turbo", 32),
    Setting("sdxl-turbo", 8, steps=4),
    Setting("sdxl-turbo", 8, channels_last=False),
    Setting("sd15", 8, compiled=True),
    Setting("sdxl-turbo", 8, compiled=True),
)


_COMPILING = 120.0  # seconds, at least


class Measured(NamedTuple):
    """What a setting was found to do."""

    setting: Setting
    images_per_second: float
    peak_gib: float | None


def measure(
    setting: Setting,
    architecture: Architecture,
    device: torch.device,
    *,
    seconds: float = 2.0,
) -> Measured:
    """Draw batches for about ``seconds``, at least one, after one that does not count."""
    steps = setting.steps or architecture.steps
    model = TextToImage(
        architecture,
        device,
        getattr(torch, setting.dtype),
        channels_last=setting.channels_last,
        compiled=setting.compiled,
    )
    with _memory(device) as memory:
        model.draw(setting.batch, min(steps, 2))
        start, batches = time.perf_counter(), 0
        while not batches or time.perf_counter() - start < seconds:
            model.draw(setting.batch, steps)  # ends on the CPU: nothing is left to wait for
            batches += 1
        elapsed = time.perf_counter() - start
    return Measured(setting, batches * setting.batch / elapsed, memory.get("gib"))


@contextmanager
def _memory(device: torch.device) -> Iterator[dict[str, float]]:
    """On a GPU the dict gets the most that was allocated within the block, GiB."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        found["gib"] = torch.cuda.max_memory_allocated(device) / 2**30


def measure_all(
    device: torch.device, settings: Sequence[Setting], budget: float
) -> tuple[list[Measured], list[tuple[Setting, str]]]:
    """Measure until ``budget`` seconds are gone; what would last longer is not begun.

    Returns:
        What was measured; and what was not, with the reason.
    """
    begin = time.monotonic()
    results, left_out = [], []
    pace: dict[str, float] = {}  # by model, seconds of the last setting for an image and step
    for setting in settings:
        left = budget - (time.monotonic() - begin)
        work = setting.batch * (setting.steps or ARCHITECTURES[setting.model].steps)
        expected = work * pace.get(setting.model, 0.0) + setting.compiled * _COMPILING
        if expected > left or left < 0:
            left_out.append((setting, f"not begun within {budget:.0f} s"))
            continue
        try:
            found = measure(setting, ARCHITECTURES[setting.model], device)
            results.append(found)
            pace[setting.model] = setting.batch / (found.images_per_second * work)
        except torch.cuda.OutOfMemoryError:
            left_out.append((setting, "the GPU's memory is too small"))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results, left_out


def measured_tables(
    results: Sequence[Measured], left_out: Sequence[tuple[Setting, str]], images: int, where: str
) -> str:
    """The table for the document, with the machine and the versions above it."""
    rows = []
    for result in results:
        hours = cost(1 / result.images_per_second, images).gpu_hours
        memory = "" if result.peak_gib is None else f"{result.peak_gib:.1f}"
        rows.append(
            [*_cells(result.setting), f"{result.images_per_second:.2f}", f"{hours:,.0f}", memory]
        )
    header = "model", "batch", "steps", "dtype", "channels-last", "compiled"
    header += "images/s", f"GPU-hours for {images:,}", "peak GiB"
    text = f"{where}\n\n{markdown_table(header, rows)}"
    for setting, reason in left_out:
        text += f"\nNot measured: {', '.join(_cells(setting))} ({reason})."
    return text + "\n" if left_out else text


def _cells(setting: Setting) -> list[str]:
    architecture = ARCHITECTURES[setting.model]
    return [
        architecture.name,
        str(setting.batch),
        str(setting.steps or architecture.steps),
        setting.dtype,
        "yes" if setting.channels_last else "no",
        "yes" if setting.compiled else "no",
    ]


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("torch", "diffusers", "transformers")
    )
    return f"{name}, {versions}; 512 x 512 pixels, random weights."


def _run_measurement(options: argparse.Namespace, images: int) -> None:
    if options.document:
        check_document(options.document, COMMAND)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--device {options.device}: torch sees no GPU; run it where nvidia-smi lists one, or "
            "with --device cpu, which takes minutes an image"
        )
    device = torch.device(options.device)
    settings = SETTINGS
    if device.type == "cpu":  # half precision is slower there, and batches are no faster
        settings = tuple(Setting(model, 1, dtype="float32") for model in ARCHITECTURES)
    results, left_out = measure_all(device, settings, options.budget)
    text = measured_tables(results, left_out, images, _machine(device))
    print(text, end="")
    if options.document:
        replace_tables(options.document, COMMAND, text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--categories", type=int, default=1203, help="default: %(default)s (LVIS)")
    parser.add_argument("--per-category", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--kept", type=float, default=1.0, help="share that passes the filters")
    parser.add_argument("--seconds", type=float, help="your own seconds per image")
    parser.add_argument("--measure", action="store_true", help="measure on --device")
    parser.add_argument("--device", default="cuda", help="of --measure; default: %(default)s")
    parser.add_argument(
        "--budget", type=float, default=300, help="no setting is begun after so many seconds"
    )
    parser.add_argument("--document", type=Path, help="put what was measured between its marks")
    options = parser.parse_args(arguments)
    images = options.categories * options.per_category
    if options.measure:
        _run_measurement(options, images)
        return
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
