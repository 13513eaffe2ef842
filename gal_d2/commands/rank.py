"""A run of tools/rank_instances.py: the best and the worst cut-outs of a category."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from detectron2.config import CfgNode
from detectron2.utils import comm

from gal_d2.commands.offline_options import OfflineOptions
from gal_d2.commands.offline_record import scores_digest
from gal_d2.commands.score_pool import open_pool, score_pool
from gal_d2.datasets.category_identity import dataset_names
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_metadata
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.files.file_name import as_file_name
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import BAD, GOOD, PoolVerdicts, signs_of
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ranking import criteria, histories, names_of, rank
from gal_d2.setup.configuration import load_config
from gal_d2.setup.setup import resolve_datasets, setup
from gal_d2.visualization.ranking import (
    RankedCutOut,
    best_and_worst,
    save_best_and_worst,
    save_gallery,
)

logger = logging.getLogger("gal_d2")

TEXTS = ("prompt", "model", "generator")


def resolve_category(cfg: CfgNode, texts: list[str] | None) -> tuple[int, str]:
    """Id and name of the one category that is asked for."""
    if not texts or len(texts) > 1:
        raise UserError("give one --category to rank.")
    names = CategoryNames.from_file(load_metadata(cfg.DATASETS.TRAIN[0]).json_file)
    (category_id,) = names.resolve_all(texts, "--category")
    return category_id, names.names[category_id]


def rank_category(args: argparse.Namespace) -> None:
    """Do what the arguments of tools/rank_instances.py say.

    Raises:
        UserError: an option is wrong, or there is nothing to rank.
    """
    if args.ledger is not None:
        cfg = load_config(args.config_file, args.opts)
        resolve_datasets(cfg)
        category_id, name = resolve_category(cfg, args.category)
        pool, _ = open_pool(cfg, [category_id])
        source = f"ledger {args.ledger}"
        folder = args.ledger
    else:
        if "MODEL.WEIGHTS" not in args.opts:
            raise UserError("give --ledger, or MODEL.WEIGHTS of a trained model to score with.")
        cfg = setup(args)
        category_id, name = resolve_category(cfg, args.category)
        pool, _ = open_pool(cfg, [category_id])
        source = "/".join(Path(cfg.MODEL.WEIGHTS).parts[-2:])
        options = OfflineOptions.from_arguments(cfg, args)
        model = GALTrainer.load_model(cfg)
        # A folder for each model and set of options: a model that was trained anew is no mistake.
        folder = Path(cfg.OUTPUT_DIR) / "ranking/scores"
        folder /= f"{as_file_name(name)}-{scores_digest(cfg, model, options)}"
        score_pool(cfg, model, folder, options)
    if comm.is_main_process():
        title = f"{name}: cut-outs ranked by {Path(args.config_file).stem}, {source}"
        output = args.output or Path(cfg.OUTPUT_DIR) / "ranking"
        stem = output / as_file_name(name)
        ledger = Ledger(folder, dataset_names(cfg.DATASETS.TRAIN[0]))
        write(ledger, pool, category_id, args.by, args.top, stem, title, args.dpi)


def write(
    ledger: Ledger,
    pool: InstancePool,
    category_id: int,
    by: str,
    top: int,
    stem: Path,
    title: str,
    dpi: int = 200,
) -> None:
    """Picture, tables and page of a category; ``stem`` is their path without the suffix."""
    if top < 1:
        raise UserError(f"--top is {top}: set it to 1 or more.")
    if not 10 <= dpi <= 1200:
        raise UserError(f"--dpi is {dpi}: set it to 10 to 1200.")
    table = rank(ledger, category_id, by)
    in_pool = pool.contains(table["pool_id"].to_numpy())
    if not in_pool.any():
        raise UserError(
            f"no cut-out of the ledger {ledger.root} is in the instance pool {pool.root}: set "
            "GAL.POOL.ROOT to the pool that was scored."
        )
    table = table.filter(pa.array(in_pool))
    table = with_verdicts(with_sources(table, pool), pool)
    stem.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, stem.with_suffix(".parquet"))
    pyarrow.csv.write_csv(table, stem.with_suffix(".csv"))

    cut_outs = list(ranked_cut_outs(table, pool, histories(ledger, category_id)))
    known = [cut_out for cut_out in cut_outs if cut_out.value is not None]
    if not known:
        raise UserError(
            f"the ledger {ledger.root} has no score of this category: no real object of it had "
            "been seen, or none of its cut-outs could be pasted (tools/check_pool.py says so)."
        )
    meaning = criteria(ledger)[by]
    save_best_and_worst(
        *best_and_worst(known, top),
        stem.with_suffix(".png"),
        title=title,
        value_name=f"{meaning}, mean of a cut-out's exposures ({len(known)} cut-outs)",
        dpi=dpi,
    )
    save_gallery(cut_outs, stem.with_suffix(".html"), title=title, value_name=by)
    # Not through the log, which a ranking by a ledger does not set up.
    print(f"picture, tables and page: {stem}.png, .csv, .parquet and .html")


def with_sources(table: pa.Table, pool: InstancePool) -> pa.Table:
    """The ranking with where each cut-out came from."""
    metadata = pool.metadata(["pool_id", *TEXTS, "seed"])
    return table.join(metadata, "pool_id").sort_by(
        [("rank", "ascending"), ("pool_id", "ascending")]
    )


def with_verdicts(table: pa.Table, pool: InstancePool) -> pa.Table:
    """The ranking with what people said: the good ones first, the bad ones last, each by rank."""
    signs = signs_of(table["pool_id"].to_numpy(), PoolVerdicts(pool)())
    order = np.argsort(-signs, kind="stable")
    table = table.append_column("verdict", pa.array(np.array(["", GOOD, BAD])[signs])).take(order)
    known = table["value"].is_valid().to_numpy(zero_copy_only=False)
    ranks = pa.array(np.cumsum(known), pa.int64(), mask=~known)
    return table.set_column(table.column_names.index("rank"), "rank", ranks)


def ranked_cut_outs(table: pa.Table, pool: InstancePool, history: dict):
    """A :class:`RankedCutOut` for each row."""
    shown = names_of(table.column_names)
    for row in table.to_pylist():
        numbers = {name: row[column] for column, name in shown.items()}
        numbers |= {"accepted": row["acceptance_rate"], "exposures": row["count"]}
        yield RankedCutOut(
            pool.get_rgba(row["pool_id"]),
            row["rank"],
            row["value"],
            row["pool_id"],
            numbers,
            {name: row[name] or "" for name in ("verdict", *TEXTS)},
            [(e.step, e.score, e.accept) for e in history.get(row["pool_id"], ())],
        )
