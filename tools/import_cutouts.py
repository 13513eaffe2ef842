#!/usr/bin/env python3
"""Import cut-outs (RGBA images) into an instance pool.

tools/import_cutouts.py --folder cutouts/ --annotations lvis_v1_val.json --pool datasets/pool
tools/import_cutouts.py --xpaste pool.json --annotations lvis_v1_val.json --pool datasets/pool

--folder takes a folder with a folder of images for each category, called by the category's name, a
synonym or its id. --xpaste takes X-Paste's list: 0-based class index -> paths, where `*` before a
path marks an image that is cropped already. Run it again to go on after an interruption: what is
stored already is skipped. Several imports can run into one pool at the same time.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.importer import (
    ImportList,
    ImportReport,
    import_files,
    list_folder,
    list_xpaste,
)
from gal_d2.pool.usable import OPAQUE, describe_problems
from gal_d2.setup.launch import run_tool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    layout = parser.add_mutually_exclusive_group(required=True)
    layout.add_argument("--folder", type=Path, help="folder of category folders")
    layout.add_argument("--xpaste", type=Path, help="JSON list in X-Paste's format")
    parser.add_argument(
        "--annotations",
        type=Path,
        required=True,
        help="LVIS or COCO annotation file that lists the categories",
    )
    parser.add_argument("--pool", type=Path, required=True, help="the pool's folder")
    parser.add_argument(
        "--image-root",
        type=Path,
        help="folder that relative paths of --xpaste start from (default: where the JSON is)",
    )
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="only these (name, synonym or id)"
    )
    parser.add_argument("--generator", default="import", help="recorded with each (%(default)s)")
    parser.add_argument("--model", default="", help="recorded with each: the generator's weights")
    parser.add_argument("--prompt", default="", help="recorded with each")
    parser.add_argument(
        "--allow-opaque",
        action="store_true",
        help="take images that are opaque from corner to corner, such as pictures of posters",
    )
    parser.add_argument("--workers", type=int, default=4, help="threads (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    if parsed.workers < 1:
        parser.error(f"--workers is at least 1, got {parsed.workers}")
    return parsed


def chosen_categories(names: CategoryNames, texts: list[str] | None) -> set[int] | None:
    """Ids of the categories that --categories lists; None means all."""
    if texts is None:
        return None
    return set(names.resolve_all(texts, "--categories"))


def main(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = CategoryNames.from_file(arguments.annotations)
    only = chosen_categories(names, arguments.categories)
    if arguments.folder is not None:
        found = list_folder(arguments.folder, names, only)
    else:
        found = list_xpaste(arguments.xpaste, names, only, arguments.image_root)
    report = import_files(
        found.files,
        arguments.pool,
        CutOutSource(arguments.generator, arguments.model, arguments.prompt),
        names=names,
        workers=arguments.workers,
        allow_opaque=arguments.allow_opaque,
        progress=lambda it: tqdm(it, total=len(found.files), unit=" images", disable=None),
    )
    print_report(arguments.pool, names, found, report)
    return 0 if report.added or report.already_stored else 1


def print_report(pool: Path, names: CategoryNames, found: ImportList, report: ImportReport) -> None:
    for category_id, count in sorted(report.added.items()):
        print(f"{category_id:>7}  {count:>9,}  {names.names[category_id]}")
    print(
        f"{pool}: {report.added.total():,} cut-outs of {len(report.added):,} categories added, "
        f"{report.already_stored:,} were stored already, {len(report.failed):,} images failed"
    )
    for path, reason in report.failed.items():
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if report.problems:
        print(
            f"warning: {report.problems.total():,} images cannot be pasted and were refused: "
            f"{describe_problems(report.problems)}"
            + ("; --allow-opaque takes opaque ones" if report.problems[OPAQUE] else ""),
            file=sys.stderr,
        )
    if report.slivers:
        print(
            f"warning: {len(report.slivers):,} images are more than half transparent for the most "
            f"part, the first is {report.slivers[0]}; all that is visible of them is pasted",
            file=sys.stderr,
        )
    for name, (count, nearest) in found.unknown.items():
        print(f"unknown category '{name}' ({count:,} images){_hint(nearest)}", file=sys.stderr)
    if report.failed or found.unknown:
        images = sum(count for count, _ in found.unknown.values())
        print(
            f"warning: {len(report.failed):,} images failed; {len(found.unknown):,} unknown "
            f"categories with {images:,} images were left out",
            file=sys.stderr,
        )


def _hint(nearest: list[str]) -> str:
    return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""


if __name__ == "__main__":
    sys.exit(run_tool(main, parse_arguments()))
