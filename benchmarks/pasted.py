"""What did a training run paste, good or bad? Needs the truth about its pool.

Reads the ledger of a run and the truth file of the miniature's pool, and prints by category the
share of good cut-outs in the pool and among what was pasted, by quarter of the training, and how
many different ones the last quarter pasted.

    python benchmarks/pasted.py output/miniature_gal
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
from documents import markdown_table

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_metadata
from gal_d2.selection.ledger import Ledger
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.truth import DEFAULT_FILE, GOOD, PoolTruth

QUARTERS = ("1st quarter", "2nd", "3rd", "4th")


def quarter_of(step: np.ndarray) -> np.ndarray:
    """(N,) 0 to 3, of steps that begin at 0.

    Example:
        >>> quarter_of(np.arange(8)).tolist()
        [0, 0, 1, 1, 2, 2, 3, 3]
    """
    return 4 * step // (step.max() + 1)


def row_of(is_good: np.ndarray, quarter: np.ndarray, pool_id: np.ndarray, in_pool: np.ndarray):
    """Cells of a row: good in the pool, good by quarter, different ones in the last quarter."""
    shares = [is_good[quarter == q].mean() if (quarter == q).any() else np.nan for q in range(4)]
    late = len(np.unique(pool_id[quarter == 3]))
    return [f"{in_pool.mean():.2f}", *(f"{share:.2f}" for share in shares), late]


def main(args: argparse.Namespace) -> None:
    truth = PoolTruth.read(args.truth)
    tables = Ledger(args.run / "ledger").tables(["pool_id", "category_id", "step"])
    table = pa.concat_tables(tables)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    rows = truth.rows(columns["pool_id"])
    is_good, quarter = truth.kind[rows] == GOOD, quarter_of(columns["step"])
    category_of = dict(
        zip(columns["pool_id"].tolist(), columns["category_id"].tolist(), strict=True)
    )
    pasted_once = np.array([category_of.get(i, -1) for i in truth.pool_id.tolist()])
    in_pool = truth.kind == GOOD
    cells = [["all", *row_of(is_good, quarter, columns["pool_id"], in_pool)]]
    for category, name in CategoryNames.from_file(
        load_metadata(args.dataset).json_file
    ).names.items():
        mine = columns["category_id"] == category
        if mine.any():
            values = (is_good[mine], quarter[mine], columns["pool_id"][mine])
            cells.append([name, *row_of(*values, in_pool[pasted_once == category])])
    print(f"{args.run}: share of good cut-outs among {len(is_good):,} pastes\n")
    print(markdown_table(["", "in the pool", *QUARTERS, "different ones in the 4th"], cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument("--truth", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--dataset", default="miniature_train")
    run_tool(main, parser.parse_args())
