"""How good are the best and how bad the worst cut-outs of an offline ranking? Needs the truth.

Reads ledgers (of tools/score_pool.py or of trainings; one for each seed) and the truth file of the
miniature's pool, and prints, by category, how many of the top and of the bottom are good, and the
AUC of a good against a bad cut-out.

    tools/score_pool.py --config-file configs/miniature_gal.yaml \
      MODEL.WEIGHTS output/miniature_gal/model_final.pth
    python benchmarks/ranking.py output/miniature_gal/pool_scores
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from documents import check_document, markdown_table, show
from separation import auc, spread

from gal_d2.datasets.registration import load_metadata
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ranking import criteria, rank
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.truth import DEFAULT_FILE, GOOD, PoolTruth

COMMAND = "benchmarks/ranking.py"


def good_by_rank(ledger: Ledger, category_id: int, by: str, truth: PoolTruth) -> np.ndarray:
    """(N,) bool, best first: which of a category's scored cut-outs are good."""
    table = rank(ledger, category_id, by)
    known = table.filter(table["value"].is_valid())
    return truth.kind[truth.rows(known["pool_id"].to_numpy())] == GOOD


def figures(good: np.ndarray, top: int) -> tuple[float, float, float, float]:
    """Share of good ones, good ones in the top and in the bottom, AUC (NaN: of one kind only)."""
    return good.mean(), good[:top].sum(), good[-top:].sum(), auc(good, -np.arange(len(good)))


def report(ledgers: list[Ledger], truth: PoolTruth, dataset: str, by: str, top: int) -> str:
    """A table with a row for each category that was scored, and their mean; means over ledgers."""
    metadata = load_metadata(dataset)
    ids = sorted(metadata.thing_dataset_id_to_contiguous_id)
    scored = set(ledgers[0].by_instance()["category_id"].to_pylist())
    cells, rows = [], []
    for category_id, name, group in zip(
        ids, metadata.thing_classes, metadata.category_frequency, strict=True
    ):
        if category_id not in scored:
            continue
        of_ledgers = [
            figures(good_by_rank(ledger, category_id, by, truth), top) for ledger in ledgers
        ]
        rows.append(of_ledgers)
        share, best, worst, area = np.mean(of_ledgers, axis=0)
        cells.append(
            [f"{name} ({group})", f"{share:.2f}", f"{best:.1f}", f"{worst:.1f}", f"{area:.2f}"]
        )
    means = np.mean(rows, axis=0)  # (ledgers, 4)
    cells.append(
        ["mean", *(spread(column, n) for column, n in zip(means.T, (2, 1, 1, 2), strict=True))]
    )
    return markdown_table(
        [f"by {by}", "good of all", "good in top", "good in bottom", "AUC"], cells
    )


def main(args: argparse.Namespace) -> None:
    if args.document:
        check_document(args.document, COMMAND)
    truth, ledgers = PoolTruth.read(args.truth), [Ledger(path) for path in args.ledgers]
    criterion = args.by or list(criteria(ledgers[0]))
    tables = [report(ledgers, truth, args.dataset, by, args.top) for by in criterion]
    text = f"Top and bottom {args.top} of each category"
    if len(ledgers) > 1:
        text += f", means over {len(ledgers)} ledgers ± their standard deviation"
    text += ".\n\n" + "\n".join(tables)
    show(text, args.document, COMMAND)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ledgers", type=Path, nargs="+")
    parser.add_argument("--truth", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--dataset", default="miniature_train")
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--by", action="append", help="default: everything the ledger has")
    parser.add_argument("--document", type=Path, help="Markdown file to put the tables into")
    run_tool(main, parser.parse_args())
