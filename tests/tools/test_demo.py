"""tools/demo.py: the lines in which it says what choosing gained."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from scored import scored
from scripts import load_script

from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger_writer import LedgerWriter


@pytest.fixture(scope="module")
def demo(repository: Path) -> ModuleType:
    return load_script(repository / "tools/demo.py")


def test_the_share_of_good_ones_is_that_of_the_last_quarter(demo, tmp_path) -> None:
    kinds = ["good", "noise", "good", "wrong_object"]
    truth = {"pool_id": [1, 2, 3, 4], "kind": kinds, "ambiguous": [False] * 4}
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    with LedgerWriter(tmp_path / "ledger", category_ids=[5], category_frequency=["r"]) as ledger:
        for step, pasted in ((0, [2, 4, 2, 4]), (5, [2, 2, 2]), (6, [1, 3]), (7, [1, 4])):
            every = torch.ones(len(pasted), dtype=torch.bool)
            decision = Decision.uniform(every, "always")
            ledger.append(step, scored(pasted, [0.0] * len(pasted)), decision, [9])
    line = demo.good_share_line(tmp_path / "ledger", tmp_path / "truth.parquet", steps=8)
    assert "last quarter of this run: 75%" in line and line.endswith("everything: 50%")


def test_the_published_gain_is_read_from_the_results(demo, repository, tmp_path) -> None:
    config = yaml.safe_load((repository / "configs/Base-miniature.yaml").read_text())
    assert config["SOLVER"]["MAX_ITER"] == demo.STEPS
    line = demo.published_gain_line()
    assert line.startswith("mask AP +") and "docs/results.md" in line
    document = tmp_path / "results.md"
    document.write_text(
        "`miniature`, 700 steps, seeds 0\n\n"
        "| pastes | seeds | mask AP to all | mask APr to all |\n|---|---|---|---|\n"
        "| all | 3 | - | - |\n| **ours** | 3 | +1.0 ± 0.1 | +2.0 ± 0.2 |\n"
    )
    line = demo.published_gain_line(document)
    assert line.startswith("mask AP +1.0 ± 0.1, mask APr +2.0 ± 0.2 over") and "in 3 runs" in line
    document.write_text("no table")
    with pytest.raises(ValueError, match=r"results.md has no table of 700 steps"):
        demo.published_gain_line(document)
