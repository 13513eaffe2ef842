"""What is worth a look, and how often a cut-out is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gal_d2.review.order import draw_shares, outlook
from gal_d2.selection.draw import choose_from_best, value_of
from gal_d2.selection.sampler import DrawRule
from gal_d2.selection.verdict_evidence import NOTHING_JUDGED


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_shares_are_those_of_the_sampler(temperature):
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(40, 2)), rng.uniform(0.1, 0.8, (40, 2))
    weights, ceilings = np.array([1.0, 0.5]), np.array([100.0, 0.5])
    rule = DrawRule(12, 3, temperature)
    shares, most = draw_shares(mean, std, weights, ceilings, rule)
    rows = 40_000
    candidates = rng.integers(40, size=(rows, rule.candidates))
    noise = rng.standard_normal((rows, rule.candidates, 2))
    quality = mean[candidates] + temperature * std[candidates] * noise
    chosen = choose_from_best(value_of(quality, weights, ceilings), rule.best, rng)
    drawn = np.bincount(candidates[np.arange(rows), chosen], minlength=40) / rows
    assert shares.sum() == pytest.approx(1) and np.abs(shares - drawn).max() < 0.012
    assert shares.max() <= most


def test_equal_ones_are_drawn_alike():
    shares, _ = draw_shares(
        np.zeros((5, 1)), np.zeros((5, 1)), np.ones(1), np.full(1, np.inf), DrawRule()
    )
    assert shares == pytest.approx(np.full(5, 0.2))


def test_gains_are_the_formula_s(beliefs):
    seen = outlook(beliefs, NOTHING_JUDGED)
    for category in (3, 12):
        rows = beliefs.category_ids == category
        share, p, gain = seen.share[rows], seen.good[rows], seen.gain[rows]
        good = share @ p
        most = draw_shares(
            beliefs.mean[rows], beliefs.std[rows], beliefs.weights, beliefs.ceilings, beliefs.rule
        )[1]
        assert gain == pytest.approx((1 - p) * share * good + p * (most - share) * (1 - good))
        # Neither what is poor for sure nor what is good and pasted anyway comes first.
        assert 5 < gain.argmax() < 29


def test_what_was_judged_has_had_its_look(beliefs):
    judged = beliefs.pool_ids[[4, 50]], np.array([1, -1], np.int8)
    seen = outlook(beliefs, judged)
    assert seen.gain[[4, 50]].tolist() == [0, 0] and seen.good[[4, 50]].tolist() == [1, 0]
    assert seen.share[50] < 1e-6 < seen.share[4] and seen.calibration.verdicts == 2


def test_rare_categories_count_double(beliefs):
    plain = outlook(beliefs, NOTHING_JUDGED)
    rare = outlook(replace(beliefs, frequency={3: "r", 12: "f"}), NOTHING_JUDGED)
    factor = np.where(beliefs.category_ids == 3, 2.0, 1.0)
    assert rare.gain == pytest.approx(plain.gain * factor)


def test_shares_that_are_known_are_used_again(beliefs):
    known: dict = {}
    outlook(beliefs, NOTHING_JUDGED, known)
    before = {category: entry[1] for category, entry in known.items()}
    boot = beliefs.pool_ids[beliefs.category_ids == 3][:1]
    judged = boot, np.array([1], np.int8)
    again = outlook(beliefs, judged, known)
    assert known[12][1] is before[12] and known[3][1] is not before[3]
    assert (again.share == outlook(beliefs, judged).share).all()
