"""How probable "good" is, learnt from verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from gal_d2.review.calibration import HOPELESS, Calibration, calibrate


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_nothing_said_is_the_expected_curve():
    calibration = calibrate(np.empty(0), np.empty(0, np.int64), np.empty(0, bool))
    assert calibration == Calibration()
    assert calibration.probability(np.array([0.0]), 5).tolist() == [0.5]


def test_a_curve_is_found_again():
    rng = np.random.default_rng(0)
    value = rng.normal(size=4000)
    category = rng.integers(2, size=4000)
    true = sigmoid(-1.0 + 1.5 * value + np.where(category == 1, 0.8, -0.8))
    calibration = calibrate(value, category, rng.random(4000) < true)
    grid = np.linspace(-2, 2, 9)
    for number, shift in ((1, 0.8), (0, -0.8)):
        wanted = sigmoid(-1.0 + 1.5 * grid + shift)
        assert np.allclose(calibration.probability(grid, number), wanted, atol=0.05)
    assert calibration.verdicts == 4000


def test_what_was_shown_does_not_bias_it():
    """Of good and bad values alike only the better ones were shown."""
    rng = np.random.default_rng(1)
    value = rng.normal(size=6000)
    good = rng.random(6000) < sigmoid(-0.5 + 2.0 * value)
    shown = value > 0
    some = calibrate(value[shown], np.zeros(shown.sum(), np.int64), good[shown])
    grid = np.linspace(-1, 1, 5)
    assert np.allclose(some.probability(grid, 0), sigmoid(-0.5 + 2 * grid), atol=0.1)


@pytest.mark.parametrize("good", [True, False])
def test_a_few_of_one_kind_move_it_and_no_more(good):
    calibration = calibrate(np.zeros(3), np.full(3, 7), np.full(3, good))
    p = float(calibration.probability(np.zeros(1), 7)[0])
    assert (0.55 < p < 0.95) if good else (0.05 < p < 0.45)
    assert calibration.slope > 0


def test_the_order_is_never_turned_around():
    value = np.linspace(-2, 2, 200)
    calibration = calibrate(value, np.zeros(200, np.int64), value < 0)
    assert calibration.slope == 0.1


def test_hopeless_is_one_in_twenty():
    calibration = Calibration(level=-1.0, slope=2.0, by_category={7: 0.5})
    for category in (7, 8):
        limit = calibration.hopeless_below(category)
        assert calibration.probability(np.array([limit]), category)[0] == pytest.approx(HOPELESS)
