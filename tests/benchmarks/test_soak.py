"""Whether a training stays as it began: the arithmetic, and looking at a process."""

import os
from pathlib import Path

import numpy as np
import pytest
from soak import Sample, Slope, describe, draw, look, throughput


def samples(count: int, leak: float = 0.0) -> list[Sample]:
    """One every 36 s, of one step per CPU second; with a leak in MB an hour."""
    return [
        Sample(36.0 * i, i + 1, i + 1.0, 500 + leak * i / 100, 100 + i, 30, i, 8, 3)
        for i in range(count)
    ]


def test_a_leak_is_a_slope() -> None:
    hours = np.arange(100) / 100
    slope = Slope(hours, 7 + 20 * hours)
    assert slope.per_hour == pytest.approx(20) and slope.error == pytest.approx(0, abs=1e-9)
    noise = np.random.default_rng(0).normal(size=100)
    assert abs(Slope(hours, noise).per_hour) < 3 * Slope(hours, noise).error
    text = describe(samples(101, leak=12.0))
    assert "MB: 506, slope +12.0 +- 0.0 an hour" in text and "threads: 8, slope +0.0" in text


def test_throughput_is_by_cpu_time() -> None:
    assert throughput(samples(101)) == pytest.approx([1] * 10)
    slow = [
        Sample(s.seconds, s.steps, s.cpu_seconds**1.5, *[getattr(s, n) for n in REST])
        for s in samples(101)
    ]
    rates = throughput(slow)
    assert rates[-1] < 0.5 * rates[0]


REST = ("memory_mb", "mapped_mb", "handles", "shards", "threads", "processes")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_a_process_is_looked_at(tmp_path: Path) -> None:
    before = look(os.getpid(), tmp_path, 0.0)
    with (tmp_path / "a.arrow").open("w"), (tmp_path / "other").open("w"):
        after = look(os.getpid(), tmp_path, 0.0)
    assert (after.handles, after.shards) == (before.handles + 1, before.shards + 1)
    assert before.memory_mb > 1 and before.mapped_mb > 1 and before.threads >= 1
    assert before.steps == 0 and before.processes >= 1


def test_a_picture(tmp_path: Path) -> None:
    draw(samples(101), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 1000
