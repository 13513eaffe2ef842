"""A run of tools/convert_pool.py: pools in the formats of other programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial

from tqdm import tqdm

from gal_d2.datasets.annotation_file import read_category_names
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import register_instances, require_dataset
from gal_d2.errors import UserError
from gal_d2.exchange_formats.coco import CutReport, pool_from_coco, pool_to_coco
from gal_d2.exchange_formats.parquet import pool_to_parquet
from gal_d2.exchange_formats.xpaste import pool_to_xpaste
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.ledger import Ledger


def progress_bar(unit: str) -> Callable[[Iterable], Iterable]:
    return partial(tqdm, unit=f" {unit}", disable=None)


def open_pool(args: argparse.Namespace) -> InstancePool:
    names = None if args.annotations is None else read_category_names(args.annotations)
    return InstancePool(args.pool, names=names)


def to_coco(args: argparse.Namespace) -> None:
    ledger = None if args.ledger is None else Ledger(args.ledger)
    bar = progress_bar("cut-outs")
    print(pool_to_coco(open_pool(args), args.folder, ledger=ledger, progress=bar))


def to_xpaste(args: argparse.Namespace) -> None:
    if args.annotations is None:
        raise UserError(
            "to-xpaste needs --annotations: X-Paste numbers the classes of a whole data set."
        )
    ids = read_category_names(args.annotations)
    print(pool_to_xpaste(open_pool(args), args.folder, ids, progress=progress_bar("cut-outs")))


def to_parquet(args: argparse.Namespace) -> None:
    print(f"{args.file}: {pool_to_parquet(open_pool(args), args.file):,} cut-outs")


def from_coco(args: argparse.Namespace) -> None:
    if args.min_size < 1:
        raise UserError(f"--min-size is {args.min_size}: set it to 1 or more.")
    name = args.annotations.stem
    root = args.image_root or args.annotations.parent
    register_instances(name, args.annotations, root, replace=True)
    require_dataset(name)
    only = None
    if args.categories:
        names = CategoryNames.from_file(args.annotations)
        only = set(names.resolve_all(args.categories, "--categories"))
    bar = progress_bar("images")
    report = pool_from_coco(name, args.pool, min_size=args.min_size, only=only, progress=bar)
    print_report(args, report)


def print_report(args: argparse.Namespace, report: CutReport) -> None:
    names = read_category_names(args.annotations)
    for category_id, count in sorted(report.added.items()):
        print(f"{category_id:>7}  {count:>9,}  {names[category_id]}")
    print(
        f"{args.pool}: {report.added.total():,} cut-outs of {len(report.added):,} categories "
        f"added, {report.already_stored:,} were stored already, {report.left_out:,} objects left "
        "out (crowds, without a mask, or small)"
    )
    for path, reason in report.unreadable.items():
        print(f"skipped {path}: {reason}")
    if not report.added and not report.already_stored:
        raise UserError(
            f"{args.annotations} has no object of at least {args.min_size:g} px with a mask to cut "
            "out: lower --min-size, or annotate masks."
        )


COMMANDS = {
    "to-coco": to_coco,
    "from-coco": from_coco,
    "to-xpaste": to_xpaste,
    "to-parquet": to_parquet,
}


def convert_pool(args: argparse.Namespace) -> None:
    """Do what the arguments of tools/convert_pool.py say.

    Raises:
        UserError: an option is wrong, or there is nothing to convert.
    """
    COMMANDS[args.command](args)
