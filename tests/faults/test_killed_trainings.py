"""Trainings that are killed again and again equal one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import assert_same

HERE = Path(__file__).parent

KILLS = {"trainer": 13, "audition": 5, "worker": 5}


@pytest.mark.slow
def test_killed_and_resumed_they_are_bit_for_bit_the_same(
    lvis_root: Path, repository: Path, tmp_path: Path, tried
) -> None:
    """By kills of the trainer at any point, during auditions, and of its loader's workers."""
    command = [sys.executable, "-W", "ignore", str(HERE / "killed_trainings.py"), str(repository)]
    process = subprocess.run(
        [*command, str(tmp_path), *map(str, KILLS.values())],
        cwd=lvis_root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads((tmp_path / "kills.json").read_text()) == KILLS
    for kind, count in KILLS.items():
        tried[f"kill {kind}"] += count
    runs = sorted(path for path in tmp_path.glob("parts*") if path.is_dir())
    assert runs
    for run in runs:
        assert_same(tmp_path / "whole", run)
