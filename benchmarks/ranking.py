"""How good are the best and how bad the worst cut-outs of an offline ranking? Needs the truth.

Reads a ledger (of tools/score_pool.py or of a training) and the truth file of the miniature's pool,
and prints, by category, how many of the top and of the bottom are good, and the AUC of a good
against a bad cut-out.

    tools/score_pool.py --config-file configs/miniature_copypaste.yaml \
      MODEL.WEIGHTS output/miniature_copypaste/model_final.pth
    python benchmarks/ranking.py output/miniature_copypaste/pool_scores
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from gal_d2.data.datasets import load_metadata
from gal_d2.engine.launch import run_tool
from gal_d2.errors import UserError
from gal_d2.scoring.ledger import Ledger
from gal_d2.scoring.ranking import criteria, rank

GOOD = "good"


def read_truth(path: Path) -> dict[int, str]:
    """Kind of each cut-out by pool id."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: run tools/prepare_miniature.py.")
    table = pq.read_table(path, columns=["pool_id", "kind"])
    return dict(zip(table["pool_id"].to_pylist(), table["kind"].to_pylist(), strict=True))


def good_by_rank(ledger: Ledger, category_id: int, by: str, truth: dict[int, str]) -> np.ndarray:
    """(N,) bool, best first: which of a category's scored cut-outs are good."""
    table = rank(ledger, category_id, by)
    known = table.filter(table["value"].is_valid())
    return np.array([truth[pool_id] == GOOD for pool_id in known["pool_id"].to_pylist()])


def figures(good: np.ndarray, top: int) -> tuple[float, float, float, float]:
    """Share of good ones, good ones in the top and in the bottom, AUC (NaN: of one kind only)."""
    auc = np.nan
    if 0 < good.sum() < len(good):
        auc = roc_auc_score(good, -np.arange(len(good)))
    return good.mean(), good[:top].sum(), good[-top:].sum(), auc


def main(args: argparse.Namespace) -> None:
    truth = read_truth(args.truth)
    ledger = Ledger(args.ledger)
    metadata = load_metadata(args.dataset)
    ids = sorted(metadata.thing_dataset_id_to_contiguous_id)
    scored = set(ledger.by_instance()["category_id"].to_pylist())
    for by in args.by or list(criteria(ledger)):
        print(f"\nby {by}, top and bottom {args.top}:\n")
        print("| category | good of all | good in top | good in bottom | AUC |")
        print("|---" * 5 + "|")
        rows = []
        for category_id, name, group in zip(
            ids, metadata.thing_classes, metadata.category_frequency, strict=True
        ):
            if category_id not in scored:
                continue
            rows.append(figures(good_by_rank(ledger, category_id, by, truth), args.top))
            share, best, worst, auc = rows[-1]
            print(f"| {name} ({group}) | {share:.2f} | {best} | {worst} | {auc:.2f} |")
        share, best, worst, auc = np.mean(rows, axis=0)
        print(f"| mean | {share:.2f} | {best:.1f} | {worst:.1f} | {auc:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--truth", type=Path, default=Path("datasets/miniature/pool_truth.parquet"))
    parser.add_argument("--dataset", default="miniature_train")
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--by", action="append", help="default: everything the ledger has")
    run_tool(main, parser.parse_args())
