"""tools/noise_experiment.py as a user calls it, on few digits."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from PIL import Image

SMALL = [
    *("--real", "20", "--held-out", "20", "--candidates", "40", "--test", "40"),
    *("--steps", "10", "--noise-scales", "0", "1", "--seeds", "0", "1"),
]


def noise_experiment(repository, tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(repository / "tools/noise_experiment.py"), *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )


def test_figure_tables_and_numbers(repository, tmp_path):
    done = noise_experiment(repository, tmp_path, *SMALL, "--figure", "figure.png")
    assert done.returncode == 0, done.stderr[-2000:]
    output = tmp_path / "output/noise_experiment/digits"
    assert Image.open(tmp_path / "figure.png").width > 500
    assert done.stdout.strip() == (output / "tables.md").read_text().strip()
    assert "| selected: class, held-out |" in done.stdout
    numbers = np.load(output / "results.npz")
    assert numbers["scores class/held-out"].shape == (2, 80)  # both seeds together
    assert numbers["accuracy oracle"].shape == (2, 2)


def test_a_mistake_is_one_sentence(repository, tmp_path):
    done = noise_experiment(repository, tmp_path, *SMALL, "--candidates", "5000")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "but digits has 1797" in done.stderr.strip().splitlines()[-1]
