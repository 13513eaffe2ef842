"""Reads what a pool's candidates really are; only reports may know it, never a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gal_d2.errors import UserError

GOOD = "good"
DEFAULT_FILE = Path("datasets/miniature/pool_truth.parquet")


@dataclass(frozen=True)
class PoolTruth:
    """Of N cut-outs, by ascending pool id.

    Attributes:
        pool_id: (N,) int64.
        kind: (N,) str, :data:`GOOD`, or what is the matter: of the miniature one of
            :data:`gal_d2.testbeds.miniature.faults.KINDS`, of the street set "wrong_object" or
            "stray".
        ambiguous: (N,) bool, whether the pool confuses its category with a similar one.
    """

    pool_id: np.ndarray
    kind: np.ndarray
    ambiguous: np.ndarray

    @classmethod
    def read(cls, path: Path = DEFAULT_FILE) -> PoolTruth:
        """The truth file that a tool has put beside its pool.

        Raises:
            UserError: it is not there.
        """
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: run tools/prepare_miniature.py, or "
                "tools/prepare_street.py --truth."
            )
        table = pq.read_table(path, columns=["pool_id", "kind", "ambiguous"]).sort_by("pool_id")
        pool_id, kind, ambiguous = (column.to_numpy() for column in table.columns)
        return cls(pool_id, kind.astype(str), ambiguous.astype(bool))

    def rows(self, pool_ids: np.ndarray) -> np.ndarray:
        """(M,) int64 index of each of M cut-outs.

        Raises:
            UserError: one is not in the truth file.
        """
        rows = np.searchsorted(self.pool_id, pool_ids).clip(max=len(self.pool_id) - 1)
        unknown = self.pool_id[rows] != pool_ids
        if unknown.any():
            raise UserError(
                f"cut-out {pool_ids[unknown][0]} is not in the truth file: it was written for "
                "another pool (tools/prepare_miniature.py, tools/prepare_street.py --truth)."
            )
        return rows
