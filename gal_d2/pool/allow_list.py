"""Allow-lists: files that name the cut-outs of a pool that may be pasted."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gal_d2.datasets.category_identity import Names, names_in, require_same, with_names
from gal_d2.errors import UserError
from gal_d2.files.atomic_file import replacing
from gal_d2.pool.instance_pool import InstancePool

logger = logging.getLogger(__name__)


def write_allow_list(
    path: str | os.PathLike, pool_ids: np.ndarray, names: Names | None = None
) -> None:
    """Write ids (N,) for :func:`read_allow_list`: a Parquet file with the column ``pool_id``.

    Args:
        path: of the file.
        pool_ids: (N,) int64.
        names: of the pool's categories by id, kept in the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"pool_id": pa.array(np.sort(np.asarray(pool_ids, np.int64)))})
    table = table.cast(with_names(table.schema, names))
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_allow_list(path: str | os.PathLike) -> np.ndarray:
    """(N,) int64 pool ids that ``tools/filter_pool.py`` kept.

    Raises:
        UserError: the file is missing or not such a list.
    """
    try:
        return pq.read_table(path, columns=["pool_id"])["pool_id"].to_numpy().astype(np.int64)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the allow-list {path} cannot be read ({reason}); give a file that "
            "tools/filter_pool.py --allow-list wrote"
        ) from error


def check_allow_list(path: str, only: np.ndarray, pool: InstancePool, names: Names) -> None:
    """Compare what ids meant when an allow-list was made with what they mean in the pool."""
    kept = names_in(pq.read_schema(path))
    of_pool = [stored for stored in pool.kept_names if stored is not None]
    for stored in of_pool or [names]:
        require_same(
            *(kept, stored, f"the allow-list {path} (GAL.POOL.ALLOW_LIST)"),
            f"make it anew from the pool {pool.root} with tools/filter_pool.py",
        )
    missing = int((~pool.contains(only)).sum())
    if missing:
        logger.warning(
            "%d of the %d cut-outs of the allow-list %s are not in the instance pool %s, or are of "
            "no category of now.",
            *(missing, len(only), path, pool.root),
        )
