"""Which pasted instances did a training run accept? Needs the truth about its pool.

Reads the ledger of a run and the truth file of the miniature's pool, and prints per kind of
cut-out and per category how often it was accepted once the warm-up was over, and the share of bad
ones among what was pasted and what was accepted.

    python benchmarks/acceptance.py output/miniature_gal
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from documents import markdown_table
from separation import acceptance, auc, select

from gal_d2.data.category_names import CategoryNames
from gal_d2.data.datasets import load_metadata
from gal_d2.data.miniature_truth import DEFAULT_FILE, GOOD, PoolTruth
from gal_d2.engine.launch import run_tool
from gal_d2.scoring.ledger import Ledger

COLUMNS = ["pool_id", "category_id", "accept", "undecided", "score"]


def load_decisions(run: Path, truth_file: Path, first_step: int) -> dict[str, np.ndarray]:
    """Decided instances of a ledger joined with the truth, as columns of equal length."""
    truth = PoolTruth.read(truth_file)
    table = pa.concat_tables(Ledger(run / "ledger").tables([*COLUMNS, "step"]))
    columns = {name: table[name].to_numpy() for name in table.column_names}
    rows = truth.rows(columns["pool_id"])
    columns |= {"kind": truth.kind[rows], "ambiguous": truth.ambiguous[rows]}
    chosen = (columns["step"] >= first_step) & ~columns["undecided"].astype(bool)
    return select(columns, chosen)


def rows(columns: dict[str, np.ndarray], names: dict[int, str]) -> Iterator[tuple]:
    """(what, instances, accepted good, accepted bad, bad pasted, bad among accepted, AUC)."""
    everything = np.ones(len(columns["pool_id"]), dtype=bool)
    yield "all", *figures(columns, everything)
    yield "ambiguous", *figures(columns, columns["ambiguous"])
    for category, name in names.items():
        yield name, *figures(columns, columns["category_id"] == category)


def figures(columns: dict[str, np.ndarray], chosen: np.ndarray) -> tuple:
    columns = select(columns, chosen)
    good, score = columns["kind"] == GOOD, columns["score"].astype(float)
    return len(good), *acceptance(columns).values(), auc(good, score)


def main(args: argparse.Namespace) -> None:
    columns = load_decisions(args.run, args.truth, args.first_step)
    names = CategoryNames.from_file(load_metadata(args.dataset).json_file).names
    print(f"{args.run}: {len(columns['pool_id'])} decisions from step {args.first_step} on\n")
    cells = [
        [name, count, *(f"{v:.2f}" for v in values)]
        for name, count, *values in rows(columns, names)
    ]
    print(markdown_table(["", "pasted", *acceptance(columns), "AUC"], cells))
    for kind in sorted(set(columns["kind"])):
        chosen = columns["kind"] == kind
        rate = columns["accept"].astype(bool)[chosen].mean()
        wrong = chosen | (columns["kind"] == GOOD)
        auc = figures(columns, wrong)[-1] if kind != GOOD else np.nan
        print(f"{kind}: {chosen.sum()} pasted, {rate:.2f} accepted, AUC against good {auc:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument("--truth", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--dataset", default="miniature_train")
    parser.add_argument("--first-step", type=int, default=100)
    run_tool(main, parser.parse_args())
