"""benchmarks/scoring.py: what it compares gives the same gradients, and its sections run."""

from __future__ import annotations

import dataclasses
import mmap

import numpy as np
import pytest
import torch
from measuring import PeakMemory, alternate, print_table
from scoring import Tee
from scoring_growth import exponent, report_growth
from scoring_heads import MaskProblem
from scoring_problem import QUICK, build_heads, fill, make_targets
from scoring_step import measure_step

from gal_d2.scoring.scorer import ContributionScorer


@pytest.fixture(autouse=True)
def _same_random_numbers():
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_three_ways_give_the_same_gradients():
    problem = MaskProblem(QUICK, 3, k=None)
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


def test_filled_scorer_scores_all_and_has_relabelled_rows():
    heads, features = build_heads(QUICK, 5)
    scorer = ContributionScorer(heads, num_partners=2)
    assert scorer.cache.partner_every == 50
    fill(scorer, torch.Generator().manual_seed(0))
    assert scorer.cache.partner_every == 50
    assert (scorer.cache.partners >= 0).all()
    assert len(scorer.cache.counterfactuals(torch.arange(5), 64)[0]) == 5 * 2

    rng = np.random.default_rng(0)
    targets = [make_targets(rng, QUICK.image, 1, 2, 5) for _ in range(2)]
    contribution = scorer.step(features, targets)
    assert len(contribution) == 4
    assert contribution.score.isfinite().all()
    assert contribution.phi.isfinite().all()


def test_step():
    sizes = dataclasses.replace(QUICK, rounds=1)
    seconds, relabelled = measure_step(sizes)
    assert set(seconds) == {"without", "with", "published", "scoring", "deciding"}
    assert all(len(values) == 1 for values in seconds.values())
    assert 0 < seconds["scoring"][0] < seconds["with"][0]
    assert 0 < seconds["deciding"][0] < seconds["published"][0]
    assert relabelled > 0


def test_growth_writes_a_plot(tmp_path, capsys):
    sizes = dataclasses.replace(QUICK, repeats=1, growth_pasted=(2, 4), growth_classes=(5, 10))
    output = tmp_path / "new" / "plot.png"
    report_growth(sizes, output)
    assert output.read_bytes().startswith(b"\x89PNG")
    assert "| classes | 10 |" in capsys.readouterr().out


def test_exponent_of_a_power_law():
    x = [1, 2, 5]
    assert exponent(x, [3 * n**0.5 for n in x]) == pytest.approx(0.5)
    assert exponent([10, 20], [4.0, 8.0]) == pytest.approx(1.0)


def test_peak_memory_counts_what_was_freed_again():
    size = 64 * 2**20
    # Not from the heap: it may have as much to reuse, left by other tests.
    with PeakMemory() as memory, mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
    assert 60 < memory.megabytes < 100


def test_alternate_leaves_the_first_round_out():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: None}, 2)
    assert calls == ["a"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_what_is_printed_is_collected():
    with Tee() as tee:
        print_table(["a", "b"], [[1, 2]])
    assert tee.text == "| a | b |\n|---|---|\n| 1 | 2 |\n\n"
