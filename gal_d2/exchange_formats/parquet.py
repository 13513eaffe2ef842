"""A pool as one Parquet file, for pandas, Polars, DuckDB and Hugging Face ``datasets``."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gal_d2.files.atomic_file import replacing
from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import BAD, GOOD, PoolVerdicts, signs_of

_ROWS = 512  # of a row group
_TEXTS = ("generator", "model", "prompt", "origin")
_WORDS = {1: GOOD, -1: BAD, 0: ""}


def pool_to_parquet(pool: InstancePool, path: str | os.PathLike) -> int:
    """Write a row for each cut-out, in the order of their ids.

    Columns: ``pool_id``, ``category_id``, ``category`` (its name, "" if it has none), ``height``,
    ``width``, ``generator``, ``model``, ``prompt``, ``seed``, ``origin``, ``verdict`` ("good",
    "bad" or ""), ``score_<name>`` of each filter, and ``image``, the bytes of a WebP file with
    alpha.

    Returns:
        The number of rows; corrupt cut-outs are left out.
    """
    scores = pool.metadata(["scores"])["scores"].to_pylist()
    filters = sorted({name for row in scores for name, _ in row})
    schema = pa.schema(
        [
            *((name, pa.int64()) for name in ("pool_id", "category_id")),
            ("category", pa.string()),
            *((name, pa.int32()) for name in ("height", "width")),
            *((name, pa.string()) for name in _TEXTS),
            ("seed", pa.uint64()),
            ("verdict", pa.string()),
            *((f"score_{name}", pa.float64()) for name in filters),
            ("image", pa.binary()),
        ]
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, number = pool.all_ids(), 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first in range(0, len(ids), _ROWS):
            rows = _rows(pool, ids[first : first + _ROWS])
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            number += len(rows)
    return number


def _rows(pool: InstancePool, ids) -> list[dict]:
    names = pool.category_names or {}
    signs = signs_of(ids, PoolVerdicts(pool)()).tolist()
    rows = []
    for pool_id, category_id, sign in zip(
        ids.tolist(), pool.category_of(ids).tolist(), signs, strict=True
    ):
        try:
            row = pool.get_encoded(pool_id)
        except CorruptCutOutError:
            continue  # the pool has said so
        row |= {"category_id": category_id, "category": names.get(category_id, "")}
        row |= {f"score_{name}": score for name, score in row.pop("scores")}
        rows.append(row | {"verdict": _WORDS[sign]})
    return rows
