"""benchmarks/scoring.py: what it compares gives the same gradients, and its sections run."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def benchmark(repository):
    spec = importlib.util.spec_from_file_location(
        "scoring_benchmark", repository / "benchmarks" / "scoring.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(autouse=True)
def _same_random_numbers():
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_three_ways_give_the_same_gradients(benchmark):
    problem = benchmark.MaskProblem(benchmark.QUICK, 3, k=None)
    one_pass = problem.projected()
    one_by_one = list(problem.one_by_one())
    vmapped = problem.vmapped()

    assert list(vmapped) == list(problem.weights)
    for j, (name, layer) in enumerate(problem.gradients.layouts["mask"].slices.items()):
        full = torch.stack([row[j] for row in one_by_one])
        torch.testing.assert_close(vmapped[f"{name}.weight"], full, rtol=1e-4, atol=1e-7)
        full = full.flatten(1).double()
        row = one_pass[:, layer].double()  # in an order of its own: inner products must agree
        torch.testing.assert_close(row @ row.T, full @ full.T, rtol=1e-4, atol=1e-10)
        assert (full.norm(dim=1) > 0).all()


def test_filled_scorer_scores_all_and_has_relabelled_rows(benchmark):
    heads, features = benchmark.build_heads(benchmark.QUICK, 5)
    scorer = benchmark.ContributionScorer(heads, num_partners=2)
    assert scorer.cache.partner_every == 50
    benchmark.fill(scorer, torch.Generator().manual_seed(0))
    assert scorer.cache.partner_every == 50
    assert (scorer.cache.partners >= 0).all()
    assert len(scorer.cache.counterfactuals(torch.arange(5), 64)[0]) == 5 * 2

    rng = np.random.default_rng(0)
    targets = [benchmark.make_targets(rng, benchmark.QUICK.image, 1, 2, 5) for _ in range(2)]
    contribution = scorer.step(features, targets)
    assert len(contribution) == 4
    assert contribution.score.isfinite().all()
    assert contribution.phi.isfinite().all()


def test_step(benchmark):
    sizes = dataclasses.replace(benchmark.QUICK, rounds=1)
    seconds, relabelled = benchmark.measure_step(sizes)
    assert set(seconds) == {"without", "with", "published", "scoring", "deciding"}
    assert all(len(values) == 1 for values in seconds.values())
    assert 0 < seconds["scoring"][0] < seconds["with"][0]
    assert 0 < seconds["deciding"][0] < seconds["published"][0]
    assert relabelled > 0


def test_growth_writes_a_plot(benchmark, tmp_path, capsys):
    sizes = dataclasses.replace(
        benchmark.QUICK, repeats=1, growth_pasted=(2, 4), growth_classes=(5, 10)
    )
    output = tmp_path / "new" / "plot.png"
    benchmark.report_growth(sizes, output)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert "| classes | 10 |" in capsys.readouterr().out


def test_exponent_of_a_power_law(benchmark):
    x = [1, 2, 5]
    assert benchmark.exponent(x, [3 * n**0.5 for n in x]) == pytest.approx(0.5)
    assert benchmark.exponent([10, 20], [4.0, 8.0]) == pytest.approx(1.0)


def test_peak_memory_counts_what_was_freed_again(benchmark):
    with benchmark.PeakMemory() as memory:
        torch.ones(64 * 2**20, dtype=torch.uint8)
    assert 60 < memory.megabytes < 100


def test_alternate_leaves_the_first_round_out(benchmark):
    calls = []
    seconds = benchmark.alternate({"a": lambda: calls.append("a"), "b": lambda: None}, 2)
    assert calls == ["a"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_what_is_printed_is_collected(benchmark):
    with benchmark.Tee() as tee:
        benchmark.print_table(["a", "b"], [[1, 2]])
    assert tee.text == "| a | b |\n|---|---|\n| 1 | 2 |\n\n"
