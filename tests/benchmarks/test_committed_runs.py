"""The figures of README.md and docs/results.md are those of the runs in benchmarks/runs."""

from __future__ import annotations

from pathlib import Path

import comparison
import comparison_report
import pytest
from comparison_results import Results
from documents import replace_tables
from separation import spread

REPOSITORY = Path(__file__).parents[2]
RUNS = REPOSITORY / "benchmarks" / "runs" / "miniature" / comparison.RESULTS


@pytest.fixture(scope="module")
def finished() -> dict[comparison.Condition, dict[int, dict]]:
    """Records by condition and seed, both in the order of the tables."""
    lines = Results(RUNS).records
    found = {}
    for name, condition in comparison.conditions(rate=0.27).items():
        of_condition = {seed: record for (n, seed, _), record in lines.items() if n == name}
        if of_condition:
            found[condition] = dict(sorted(of_condition.items()))
    assert sum(map(len, found.values())) == len(lines)
    return found


def test_tables_of_the_results_page(finished, tmp_path):
    title = f"`miniature`, {comparison.STEPS} steps"
    page = (REPOSITORY / "docs" / "results.md").read_text()
    made = tmp_path / "results.md"
    made.write_text(page)
    replace_tables(made, comparison.COMMAND, comparison_report.report(title, finished, {}))
    assert made.read_text() == page


@pytest.mark.parametrize(("name", "words"), [("all", "| all |"), ("gal", "(`miniature_gal`) |")])
def test_rows_of_the_readme(finished, name, words):
    by_name = {condition.name: records for condition, records in finished.items()}
    (row,) = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if words in line]
    for metric in ("AP", "APr"):
        assert spread(comparison_report.last(by_name[name], "segm", metric), 1) in row
        if name != "all":
            gains = comparison_report.difference(by_name[name], by_name["all"], "segm", metric)
            assert f"{comparison_report.signed(gains)} {metric}" in row
