"""What a pool knows of its cut-outs besides their images, as one table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gal_d2.pool.index import PoolIndex
from gal_d2.pool.shard import METADATA_COLUMNS, SCHEMA, CorruptShardError, read_metadata

logger = logging.getLogger(__name__)


def metadata_table(
    root: Path, shards: Sequence[str], index: PoolIndex, columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows of :meth:`gal_d2.pool.instance_pool.InstancePool.metadata`.

    Args:
        root: the pool's folder.
        shards: names of its shards, by the numbers that ``index`` has.
        index: of the pool; its category ids are those of now.
        columns: names out of ``METADATA_COLUMNS``; all of them by default.

    Raises:
        ValueError: an unknown column.
    """
    wanted = list(METADATA_COLUMNS if columns is None else dict.fromkeys(columns))
    unknown = [name for name in wanted if name not in METADATA_COLUMNS]
    if unknown or not wanted:
        raise ValueError(f"no columns {unknown}; choose from {', '.join(METADATA_COLUMNS)}")
    by_shard = np.argsort(index.shard, kind="stable")
    bounds = np.searchsorted(index.shard[by_shard], np.arange(len(shards) + 1))
    tables, positions = [], []
    for number, name in enumerate(shards):
        here = by_shard[bounds[number] : bounds[number + 1]]
        try:
            table = read_metadata(root / name, wanted, index.row[here])
        except CorruptShardError as error:
            logger.warning("no metadata of shard %s: %s", root / name, error)
            continue
        if "category_id" in wanted:
            category_ids = pa.array(index.categories[index.category_index[here]])
            position = wanted.index("category_id")
            table = table.set_column(position, SCHEMA.field("category_id"), category_ids)
        tables.append(table)
        positions.append(here)
    if not tables:
        return pa.schema([SCHEMA.field(name) for name in wanted]).empty_table()
    order = np.argsort(np.concatenate(positions))
    return pa.concat_tables(tables).take(pa.array(order))
