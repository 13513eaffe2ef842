#!/usr/bin/env python3
"""Read all of an instance pool and list what is corrupt or can never be pasted.

The exit status is 1 if anything is.

tools/check_pool.py datasets/miniature/pool --annotations annotations/miniature_train.json

Training skips corrupt shards and cut-outs, and those that cannot be pasted (too transparent, or of
one colour). To be rid of a shard that is listed here, delete its file; its cut-outs have to be
imported or generated again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.pool.check import check_shard
from gal_d2.pool.shard import shard_names, temporary_names
from gal_d2.pool.usable import UsableCount
from gal_d2.setup.launch import run_tool


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=Path, help="the pool's folder")
    parser.add_argument(
        "--annotations", type=Path, help="LVIS or COCO annotation file, for the categories' names"
    )
    parser.add_argument(
        "--no-decode",
        action="store_true",
        help="compare bytes with ids only, several times as fast",
    )
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> int:
    root = arguments.pool
    if not root.is_dir():
        raise UserError(
            f"the instance pool {root} does not exist; fill one with tools/import_cutouts.py"
        )
    names = CategoryNames.from_file(arguments.annotations).names if arguments.annotations else {}
    foreign: dict[int, str] = {}
    unnamed = 0
    shards = shard_names(root)
    counts: Counter = Counter()
    usable: dict[int, UsableCount] = {}
    seen: set[int] = set()
    duplicates = corrupt_shards = corrupt_rows = 0
    for shard in tqdm(shards, unit=" shards", disable=None):
        report = check_shard(root / shard, decode=not arguments.no_decode)
        unnamed += report.error is None and report.names is None
        used = {category_id for _, category_id in report.sound_rows}
        for category_id in used & set(report.names or ()):
            kept = report.names[category_id]
            if names.setdefault(category_id, kept) != kept:
                foreign[category_id] = kept
        if report.error is not None:
            corrupt_shards += 1
            tqdm.write(f"corrupt shard {root / shard}: {report.error}")
        for pool_id, problem in report.corrupt_rows.values():
            corrupt_rows += 1
            tqdm.write(f"corrupt cut-out {pool_id}: {problem}")
        for pool_id, category_id in report.sound_rows:
            if pool_id in seen:
                duplicates += 1
            else:
                seen.add(pool_id)
                counts[category_id] += 1
        for category_id, count in report.usable.items():
            usable.setdefault(category_id, UsableCount()).merge(count)
    print_temporary_files(root)
    print_identity(names, foreign, unnamed)
    for category_id, count in sorted(counts.items()):
        print(f"{category_id:>7}  {count:>9,}  {names.get(category_id, '')}".rstrip())
    unusable = print_usable(usable, names)
    print(
        f"{root}: {counts.total():,} sound cut-outs of {len(counts):,} categories in "
        f"{len(shards):,} shards ({duplicates:,} stored twice); {corrupt_shards:,} corrupt shards, "
        f"{corrupt_rows:,} corrupt cut-outs"
        + ("" if arguments.no_decode else f"; {unusable:,} cannot be pasted")
    )
    return 1 if corrupt_shards or corrupt_rows or unusable else 0


def print_usable(usable: Mapping[int, UsableCount], names: Mapping[int, str]) -> int:
    """Say what of the sound cut-outs cannot be pasted; their number."""
    for category_id, count in sorted(usable.items()):
        label = f"category {category_id} {names.get(category_id, '')}".rstrip()
        if count.unusable:
            print(
                f"{label}: {count.unusable:,} of {count.looked_at:,} cut-outs can never be pasted: "
                f"{count.reasons()}"
            )
        if count.slivers:
            print(
                f"{label}: {count.slivers:,} cut-outs are more than half transparent for the most "
                "part; all that is visible of them is pasted"
            )
        if count.opaque:
            print(
                f"{label}: {count.opaque:,} cut-outs fill their whole rectangle; see whether they "
                "were cut out"
            )
        if count.one_color:
            print(f"{label}: {count.one_color:,} cut-outs are of one colour all over")
    return sum(count.unusable for count in usable.values())


def print_identity(names: dict[int, str], foreign: dict[int, str], unnamed: int) -> None:
    """Say where ids mean several categories, or nobody kept what they mean."""
    for category_id, name in sorted(foreign.items()):
        print(
            f"category id {category_id} was '{name}' when cut-outs were stored, and is "
            f"'{names[category_id]}' in the annotations or in other shards",
            file=sys.stderr,
        )
    if unnamed:
        print(f"{unnamed:,} shards of an earlier release keep no category names", file=sys.stderr)


def print_temporary_files(root: Path) -> None:
    for name in temporary_names(root):
        try:
            status = (root / name).stat()
        except FileNotFoundError:  # completed just now
            continue
        minutes = max(0.0, time.time() - status.st_mtime) / 60
        print(
            f"unfinished shard {root / name}: {status.st_size:,} bytes, last written "
            f"{minutes:,.0f} minutes ago; unless a writer is running, delete it"
        )


if __name__ == "__main__":
    sys.exit(run_tool(main, parse_arguments()))
