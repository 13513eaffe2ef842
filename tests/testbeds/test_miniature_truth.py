from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gal_d2.errors import UserError
from gal_d2.testbeds.truth import PoolTruth


def test_rows_by_pool_id(tmp_path):
    path = tmp_path / "truth.parquet"
    rows = {"pool_id": [7, 3], "kind": ["good", "noise"], "ambiguous": [True, False]}
    pq.write_table(pa.table(rows), path)
    truth = PoolTruth.read(path)
    chosen = truth.rows(np.array([7, 3, 7]))
    assert truth.kind[chosen].tolist() == ["good", "noise", "good"]
    assert truth.ambiguous[chosen].tolist() == [True, False, True]


def test_a_cut_out_that_it_does_not_know():
    truth = PoolTruth(np.array([3, 7]), np.array(["good", "noise"]), np.array([True, False]))
    with pytest.raises(UserError, match="cut-out 4 is not in the truth file"):
        truth.rows(np.array([3, 4]))
    with pytest.raises(UserError, match="cut-out 8 is not in the truth file"):
        truth.rows(np.array([8]))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist: run tools/prepare_miniature"):
        PoolTruth.read(tmp_path / "nowhere")
