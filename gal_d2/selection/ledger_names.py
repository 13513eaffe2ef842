"""Category names in a ledger's Parquet files: :mod:`gal_d2.datasets.category_identity`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gal_d2.datasets.category_identity import (
    Names,
    Renumbering,
    names_in,
    require_same,
    with_names,
)

COLUMN = "category_id"


def keep_names(table: pa.Table, names: Names | None) -> pa.Table:
    """The table with the names of its category ids in its schema."""
    return table.replace_schema_metadata(with_names(table.schema, names).metadata)


def ids_of_now(table: pa.Table, as_now: Renumbering) -> pa.Table:
    """The table with the category ids of now; rows of categories that are none any more are left
    out. A table without the column stays as it is.

    Raises:
        UserError: nobody can tell what an id means now.
    """
    if COLUMN not in table.column_names:
        return table
    stored = table[COLUMN].to_numpy()
    category_ids, is_there = as_now(stored, names_in(table.schema))
    if category_ids is stored:
        return table
    position = table.column_names.index(COLUMN)
    table = table.set_column(position, COLUMN, pa.array(category_ids))
    return table.filter(pa.array(is_there))


def require_ledger_names(paths: Sequence[Path], names: Names | None) -> None:
    """Refuse to add rows to files whose ids mean other categories; damaged ones are passed over.

    Raises:
        UserError: they do.
    """
    for path in paths[:1]:  # they have one writer's names, which were compared in their turn
        try:
            kept = names_in(pq.read_schema(path))
        except (OSError, pa.ArrowException):
            continue
        require_same(kept, names, f"the ledger {path.parent}", "choose another folder")
