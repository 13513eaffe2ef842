"""Counts the faults that were tried, and says how many at the end."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

_TRIED: Counter[str] = Counter()
_HERE = Path(__file__).parent
# Helpers of the parts that fail here.
sys.path += [str(_HERE.parent / room) for room in ("engine", "generation", "interleaving")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def tried() -> Counter[str]:
    """Number of faults by name, of all tests; names of kills start with "kill"."""
    return _TRIED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _TRIED:
        return
    kills = {name: count for name, count in _TRIED.items() if name.startswith("kill")}
    others = {name: count for name, count in _TRIED.items() if name not in kills}
    for what, counts in (("kills", kills), ("other faults", others)):
        if not counts:
            continue
        listed = ", ".join(f"{name.removeprefix('kill ')} {n}" for name, n in counts.items())
        terminalreporter.write_line(f"{sum(counts.values())} {what}: {listed}")
