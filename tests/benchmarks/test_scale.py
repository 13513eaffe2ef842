"""benchmarks/scale.py at sizes that take no time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scale
import scale_annotations

SIZES = ("on disk", "in memory", "loader keeps", "ranks x")  # in the names of what takes no time


@pytest.mark.parametrize(
    ("piece", "size"),
    [
        ("index", 1000),
        ("files", 2000),
        ("posterior", 5000),
        ("directions", 20),
        ("ledger", 200_000),
        ("annotations", 50),
    ],
)
def test_every_step_of_a_piece_is_measured(
    piece: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale_annotations, "RANKS", 2)
    monkeypatch.setattr(scale_annotations, "WORKERS", 1)
    steps = scale.Steps()
    scale.PIECES[piece](size, tmp_path, steps)
    names = [row["step"] for row in steps.rows]
    assert len(names) >= 4 and len(set(names)) == len(names)
    for row in steps.rows:
        assert row["megabytes"] >= 0
        assert math.isnan(row["seconds"]) == any(word in row["step"] for word in SIZES)


def test_the_table_names_the_powers() -> None:
    def steps(seconds: float, megabytes: float) -> list[dict]:
        return [
            {"step": "sorted", "seconds": seconds, "megabytes": megabytes},
            {"step": "found", "seconds": 0.0, "megabytes": 0.0},
        ]

    text = scale.report("pool", {1000: steps(0.01, 20.0), 100_000: steps(10.0, 2000.0)})
    header, _, first, second = text.splitlines()
    assert header.startswith("| pool (1,000, 100,000) | seconds at 1,000 |")
    assert first == "| sorted | 0.0100 | 10.0000 | 20 | 2,000 | 1.50 | 1.00 |"
    assert second.endswith("| 0 | 0 |  |  |")  # what is not measurable has no power
