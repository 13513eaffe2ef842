"""benchmarks/generation_cost.py: the arithmetic of docs/generation.md."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from gal_d2.errors import UserError


@pytest.fixture(scope="module")
def benchmark(repository: Path) -> ModuleType:
    path = repository / "benchmarks" / "generation_cost.py"
    spec = importlib.util.spec_from_file_location("generation_cost", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cost_is_proportional_to_time_and_to_what_is_dropped(benchmark: ModuleType) -> None:
    assert benchmark.cost(1.8, 4000, kept=0.5) == (pytest.approx(2000), pytest.approx(2), 1)


def test_documented_figures_are_those_of_the_command(
    benchmark: ModuleType, repository: Path, capsys
) -> None:
    benchmark.main([])
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[3:]]
    assert len(rows) == len(benchmark.PUBLIC)
    text = (repository / "docs" / "generation.md").read_text()
    for cells in rows:
        assert "|" + "|".join(cells) + "|" in text


def test_own_speed(benchmark: ModuleType, capsys) -> None:
    benchmark.main(["--seconds", "0.5", "--categories", "36", "--per-category", "200"])
    assert "| yours | 7,200 | 1 | 0.14 | --seconds |" in capsys.readouterr().out


@pytest.mark.parametrize("numbers", [(0, 10, 1), (1, 0, 1), (1, 10, 0), (1, 10, 1.1)])
def test_senseless_numbers(benchmark: ModuleType, numbers: tuple) -> None:
    with pytest.raises(UserError, match="give positive numbers"):
        benchmark.cost(*numbers)
