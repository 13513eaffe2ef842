"""A run of tools/filter_pool.py: the best cut-outs of a pool, by any score that is recorded."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.pool.allow_list import write_allow_list
from gal_d2.pool.cut_out import CorruptCutOutError, CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import PoolVerdicts, signs_of
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ranking import (
    LOSS,
    KeepRule,
    criteria,
    instance_values,
    keep_by_category,
    values_by_id,
)

logger = logging.getLogger("gal_d2")


def recorded_values(pool: InstancePool, ledger_folder: Path | None, by: str) -> dict[int, float]:
    """By pool id, the score that is filtered by, higher is better."""
    ledger = Ledger(ledger_folder) if ledger_folder else None
    if ledger is not None and by in criteria(ledger):
        values = values_by_id(instance_values(ledger, by), by)
        if not pool.contains(np.fromiter(values, np.int64, len(values))).any():
            raise UserError(
                f"no scored cut-out of the ledger {ledger_folder} is in the instance pool "
                f"{pool.root}: give the pool that was scored."
            )
        return values
    table = pool.metadata(["pool_id", "scores"])
    values, known = {}, set()
    pairs = zip(table["pool_id"].to_pylist(), table["scores"].to_pylist(), strict=True)
    for pool_id, scores in pairs:
        scores = dict(scores)
        known |= scores.keys()
        if by in scores:
            values[pool_id] = scores[by]
    if not values:
        in_ledger = ", ".join(criteria(ledger)) if ledger is not None else "no --ledger was given"
        raise UserError(
            f"--by is '{by}', but neither the ledger ({in_ledger}) nor the pool "
            f"({', '.join(sorted(known)) or 'it has no scores'}) records it: choose another one."
        )
    return values


def filter_pool(args: argparse.Namespace) -> None:
    """Do what the arguments of tools/filter_pool.py say.

    Raises:
        UserError: an option is wrong, or nothing has the score that is asked for.
    """
    if args.allow_list is None and args.output is None:
        raise UserError("give --allow-list, --output or both: what is kept has to go somewhere.")
    threshold = args.threshold
    if threshold is not None and args.by == LOSS:
        threshold = -threshold
    rule = KeepRule(threshold, args.quantile, args.top, args.at_least, args.keep_unscored)
    pool = InstancePool(args.pool)
    annotated = CategoryNames.from_file(args.annotations).names if args.annotations else None
    pool.require_names(annotated)
    names = pool.category_names or annotated
    if args.output is not None and args.output.absolute() == pool.root:
        raise UserError(f"--output is the pool itself, {pool.root}: choose another folder.")
    values = recorded_values(pool, args.ledger, args.by)
    pool_ids = pool.all_ids()
    categories = pool.category_of(pool_ids)
    kept = keep_with_verdicts(pool, categories, values, rule)
    if args.allow_list is not None:
        write_allow_list(args.allow_list, pool_ids[kept], names)
    if args.output is not None:
        copy(pool, pool_ids[kept], args.output, names)
    scored = np.isin(pool_ids, np.fromiter(values, np.int64, len(values)))
    print(f"{'id':>7}  {'in pool':>9}  {'scored':>9}  {'kept':>9}")
    for category in np.unique(categories).tolist():
        mine = categories == category
        print(
            f"{category:>7}  {mine.sum():>9,}  {scored[mine].sum():>9,}  {kept[mine].sum():>9,}  "
            f"{(names or {}).get(category, '')}".rstrip()
        )
    for what, path in (("allow-list", args.allow_list), ("pool", args.output)):
        if path is not None:
            print(f"{what}: {path}")
    print(f"kept {kept.sum():,} of {len(kept):,} cut-outs, {scored.sum():,} of which had a score")


def keep_with_verdicts(
    pool: InstancePool, categories: np.ndarray, values: Mapping[int, float], rule: KeepRule
) -> np.ndarray:
    """(N,) bool over a pool: by the rule, but what people judged good stays, and bad goes.

    Good ones count as the best of their category, so that ``top`` counts them, too.

    Args:
        pool: of N cut-outs, with its verdicts.
        categories: (N,) int64.
        values, rule: as for :func:`gal_d2.selection.ranking.keep_by_category`.
    """
    pool_ids = pool.all_ids()
    signs = signs_of(pool_ids, PoolVerdicts(pool)())
    best = max((value for value in values.values() if np.isfinite(value)), default=0.0) + 1
    values = {**values, **dict.fromkeys(pool_ids[signs > 0].tolist(), best)}
    candidates = signs >= 0
    kept = np.zeros(len(pool_ids), bool)
    kept[candidates] = keep_by_category(pool_ids[candidates], categories[candidates], values, rule)
    if signs.any():
        print(f"by verdicts: {(signs > 0).sum():,} stay, {(signs < 0).sum():,} go")
    return kept | (signs > 0)


def copy(
    pool: InstancePool, pool_ids: np.ndarray, root: Path, names: dict[int, str] | None = None
) -> None:
    """Copy cut-outs as they are stored; their ids stay. What is there already is skipped."""
    known = InstancePool(root, allow_empty=True)
    with PoolWriter(root, known=known, names=names) as writer:
        for pool_id in tqdm(pool_ids.tolist(), unit=" cut-outs", disable=None):
            try:
                stored = pool.get_encoded(pool_id)
            except CorruptCutOutError as error:
                logger.warning("left out: %s", error)
                continue
            writer.add_encoded(
                stored["category_id"],
                stored["image"],
                stored["height"],
                stored["width"],
                source=CutOutSource(*(stored[name] for name in CutOutSource.__dataclass_fields__)),
                scores=dict(stored["scores"]),
            )
