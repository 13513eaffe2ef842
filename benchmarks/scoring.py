#!/usr/bin/env python3
"""Measure what scoring pasted instances costs.

    benchmarks/scoring.py step      a training step with scoring, and with the published recipe,
                                    against the same step without
    benchmarks/scoring.py heads     one-pass projected gradients of the mask head against N backward
                                    passes and torch.func's vmap(grad): time and peak memory
    benchmarks/scoring.py growth    cost of scoring against the number of instances and of classes
    benchmarks/scoring.py all
    benchmarks/scoring.py all --document docs/scoring.md --output docs/images/scoring_cost.png
                                    ... and puts the tables into that document
    benchmarks/scoring.py step --device cuda --image 800 --batch 4 --dtype float16
                                    the step as users train; --document as well. --profile adds what
                                    the GPU is busy with; under torchrun, in several processes; and
                                    further arguments are config options (MODEL.TIMM.NAME ...)

Random weights and images: the cost does not depend on what is seen, except that a random RPN finds
few objects, so that the step compared with is cheaper, and the ratio higher, than later in
training. Times are CPU time of one thread, on a GPU the time until it has done everything, given as
ratios; what is compared alternates within one run. Limits
(exit status 1 if one is missed; not with --quick): a step with scoring costs at most 1.15 times the
step without, and cost grows at most linearly.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import gal_d2.modeling  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.utils import comm
from documents import check_document, replace_tables
from scoring_growth import report_growth
from scoring_heads import METHODS, peak_memory, report_heads
from scoring_problem import FULL, QUICK, Sizes
from scoring_step import DTYPES, report_step

from gal_d2.setup.launch import run_tool

COMMAND = "benchmarks/scoring.py"


class Tee(io.TextIOBase):
    """Within the block, what is printed is collected in ``text``, too."""

    def __enter__(self) -> Tee:
        self.text = ""
        self._redirection = contextlib.redirect_stdout(self)
        self._stdout = sys.stdout
        self._redirection.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._redirection.__exit__(*exception)

    def write(self, text: str) -> int:
        self.text += text
        return self._stdout.write(text)

    def flush(self) -> None:
        self._stdout.flush()


def machine(sizes: Sizes) -> str:
    """What the figures were measured on."""
    software = f"torch {torch.__version__.split('+')[0]}, {str(sizes.dtype).partition('.')[2]}"
    if sizes.device == "cuda":
        count = comm.get_world_size()
        return f"{count} GPU{'s' * (count > 1)} ({torch.cuda.get_device_name()}), {software}"
    name = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    return f"one thread of a CPU ({name}), {software}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    quick = argparse.ArgumentParser(add_help=False)
    quick.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    sections = parser.add_subparsers(dest="section", required=True)
    for name in ("step", "heads", "growth", "all"):
        section = sections.add_parser(name, parents=[quick])
        if name in ("growth", "all"):
            section.add_argument(
                "--output", type=Path, default=Path("output/benchmarks/scoring.png"), help="plot"
            )
        if name in ("step", "all"):
            section.add_argument(
                "--document", type=Path, help="Markdown file to put the tables into"
            )
        if name == "step":
            section.add_argument("options", nargs="*", help="config options: KEY VALUE ...")
            section.add_argument("--profile", action="store_true", help="what takes longest")
            section.add_argument("--rounds", type=int, help="steps of each kind")
            section.add_argument("--device", choices=("cpu", "cuda"), default=FULL.device)
            section.add_argument("--image", type=int, help="side of the images, pixels")
            section.add_argument("--batch", type=int, help="images of a step")
            section.add_argument(
                "--dtype", choices=DTYPES, default="float32", help="of autocast (%(default)s)"
            )
    memory = sections.add_parser("memory", parents=[quick], help="one figure of `heads`, in MB")
    memory.add_argument("method", choices=METHODS)
    memory.add_argument("instances", type=int)
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    sizes = QUICK if arguments.quick else FULL
    command = COMMAND
    if arguments.section == "step":
        command = f"{COMMAND} step --device {arguments.device}"
        sizes = dataclasses.replace(
            sizes,
            image=arguments.image or sizes.image,
            batch=arguments.batch or sizes.batch,
            rounds=arguments.rounds or sizes.rounds,
            model=(*sizes.model, *arguments.options),
            profile=arguments.profile,
            device=arguments.device,
            dtype=getattr(torch, arguments.dtype),
        )
    if arguments.section == "memory":
        print(peak_memory(sizes, arguments.method, arguments.instances))
        return 0
    reports = {
        "step": lambda: report_step(sizes),
        "heads": lambda: report_heads(sizes),
        "growth": lambda: report_growth(sizes, arguments.output),
    }
    chosen = list(reports) if arguments.section == "all" else [arguments.section]
    with contextlib.ExitStack() as stack:
        if torch.distributed.is_torchelastic_launched():
            if sizes.device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if sizes.device == "cuda" else "gloo")
            stack.callback(dist.destroy_process_group)
            if comm.get_rank() > 0:  # they compute, the first one speaks
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        return run(arguments, sizes, command, {name: reports[name] for name in chosen})


def run(
    arguments: argparse.Namespace,
    sizes: Sizes,
    command: str,
    reports: Mapping[str, Callable[[], bool]],
) -> int:
    """Measure, print, and put into the document."""
    document = getattr(arguments, "document", None)
    if document:
        check_document(document, command)
    with Tee() as tee:
        print(f"Measured on {machine(sizes)}.\n")
        missed = [name for name, report in reports.items() if not report() and not arguments.quick]
    if document:
        replace_tables(document, command, tee.text)
    for name in missed:
        print(f"{name}: misses its limit", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(run_tool(main, parse_arguments()))
