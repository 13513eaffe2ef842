"""Makes the pictures of docs/report.md, parts of a report as a browser shows them. Needs chromium.

python benchmarks/report_pictures.py output/miniature_gal output/miniature_copypaste
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from browser import CHROMIUM, screenshot
from PIL import Image

from gal_d2.errors import UserError
from gal_d2.reporting.report import write_report
from gal_d2.setup.launch import run_tool

# By name of the picture: the part of the page, and how much of its height is shown, in pixels.
PICTURES = {"report_precision": ("precision", 700), "report_cut_outs": ("cutouts", 790)}
WIDTH = 1400


def main(args: argparse.Namespace) -> None:
    if CHROMIUM is None:
        raise UserError("chromium is not installed: install it to make the pictures.")
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_report(args.run, args.others, output=page, pool=args.pool)
        for name, (part, height) in PICTURES.items():
            path = args.output / f"{name}.png"
            screenshot(page, path, f"#only={part}", (WIDTH, height))
            shrink(path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def shrink(path: Path) -> None:
    """Cut off empty rows below, and pack it well."""
    picture = Image.open(path).convert("RGB")
    rows = np.asarray(picture)
    used = np.flatnonzero((rows != rows[-1:, :1]).any(axis=(1, 2)))
    bottom = min(int(used[-1]) + 24, picture.height) if len(used) else picture.height
    picture.crop((0, 0, picture.width, bottom)).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="OUTPUT_DIR")
    parser.add_argument("others", type=Path, nargs="*", metavar="OTHER")
    parser.add_argument("--pool", type=Path, help="folder of the pool")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    run_tool(main, parser.parse_args())
