#!/usr/bin/env python3
"""Make one HTML page about a run: what ran, AP, pastes, the pool, cut-outs, the generator, time.

tools/report.py output/miniature_gal
tools/report.py output/miniature_gal output/miniature_copypaste output/miniature_baseline

The page, OUTPUT_DIR/report.html, is about the first run and shows the others beside it. It needs no
other file and no network. A training writes it at its end, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gal_d2.setup.launch import run_tool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="OUTPUT_DIR", help="folder of the run")
    parser.add_argument(
        "others", type=Path, nargs="*", metavar="OTHER", help="folders to compare it with"
    )
    parser.add_argument("--output", type=Path, help="the page (OUTPUT_DIR/report.html)")
    parser.add_argument(
        "--pool", type=Path, help="folder of the pool (where the run's config or log say)"
    )
    return parser.parse_args(arguments)


def main(args: argparse.Namespace) -> None:
    # Here: --help and a mistyped option do not wait for torch.
    from gal_d2.reporting.report import write_report

    path = write_report(args.run, args.others, output=args.output, pool=args.pool)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser.")


if __name__ == "__main__":
    run_tool(main, parse_arguments())
