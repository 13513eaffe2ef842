"""Arithmetic behind the report's parts about the pool."""

from __future__ import annotations

import numpy as np
import pytest

from gal_d2.reporting.belief import PoolBelief, auc, by_category
from gal_d2.reporting.config_table import between, from_defaults
from gal_d2.reporting.cut_outs import SHOWN, disagreements, select
from gal_d2.reporting.pastes import Tally
from gal_d2.reporting.run import Run, Series
from gal_d2.reporting.time_use import read_time


def tally(rows: list[tuple[int, int, int, float]]) -> Tally:
    """Of (pool id, category, window, score)."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Tally.of_rows(*columns[:3], columns[3].astype(np.float64))


ROWS = [(5, 1, 0, 0.5), (5, 1, 1, 0.1), (3, 1, 0, 0.1), (3, 1, 1, np.nan), (9, 2, 0, 2.0)]


def test_a_tally_by_hand():
    found = tally(ROWS)
    assert found.pool_id.tolist() == [3, 5, 9] and found.category_id.tolist() == [1, 1, 2]
    assert found.pasted.tolist() == [2, 2, 1] and found.scored.tolist() == [1, 2, 1]
    assert found.mean.tolist() == pytest.approx([0.1, 0.3, 2.0])
    # Less the category's mean at the time, 0.3 in window 0 and 0.1 in window 1.
    assert found.offset.tolist() == pytest.approx([-0.2, 0.2, 0.0])
    assert found.std.tolist() == pytest.approx([0.0, 0.1, 0.0])


def test_tallies_add_up():
    both, parts = tally(ROWS), tally(ROWS[:2] + ROWS[4:]) + tally(ROWS[2:4])
    for name in ("pool_id", "category_id", "pasted", "scored", "total"):
        assert getattr(parts, name).tolist() == pytest.approx(getattr(both, name).tolist())


def test_scores_that_only_drift_are_not_disputed():
    rows = []
    for window in range(4):
        rows += [(1, 7, window, window + 0.1), (2, 7, window, window - 0.1)]  # both rise
        rows += [(3, 7, window, window + (-1) ** window)]  # up and down
        rows += [(4, 7, window, window - (-1) ** window)]
    found = disagreements(tally([*rows, (8, 7, 0, 0.0)]))
    assert found[2] > 1.0 > 0.3 > found[0] and found[3] > 1.0 > 0.3 > found[1]
    assert np.isnan(found[4])  # one score cannot disagree


def test_best_and_worst_are_of_several_categories():
    rows = [(100 * c + n, c, 0, 10.0 * c + n) for c in range(1, 9) for n in range(5)]
    chosen = select(tally(rows), None)
    assert [s.pool_id for s in chosen.best[:4]] == [804, 803, 704, 703]
    assert [s.pool_id for s in chosen.worst[:3]] == [100, 101, 200]
    assert len(chosen.best) == len(chosen.worst) == SHOWN
    best, worst = chosen.by_category[3]
    assert [s.pool_id for s in best] == [304, 303] and [s.pool_id for s in worst] == [300, 301]


def test_one_category_alone_fills_the_rows():
    chosen = select(tally([(n, 1, 0, float(n)) for n in range(20)]), None)
    assert [s.pool_id for s in chosen.best] == list(range(19, 7, -1))


def test_the_posterior_outranks_the_mean_score():
    belief = PoolBelief(
        np.array([3, 5]), np.array([1, 1]), np.array([2.0, -2.0]), np.array([0.1, 0.2])
    )
    chosen = select(tally(ROWS), belief)
    assert [(s.pool_id, s.value, s.std) for s in chosen.best] == [(3, 2.0, 0.1), (5, -2.0, 0.2)]


def test_separation_and_auc_of_a_category():
    value = np.array([-1.0, -1.0, 1.0, 1.0, 0.0, 0.0])
    belief = PoolBelief(
        np.arange(7), np.array([4] * 6 + [5]), np.append(value, 3.0), np.full(7, 0.5)
    )
    found = by_category(belief, None)
    variance = np.var(value)
    assert found[4].separation == pytest.approx(variance / (variance + 0.25))
    assert found[4].better == pytest.approx(1 / 3) and found[4].histogram.sum() == 6
    assert np.isnan(found[5].separation) and np.isnan(found[4].auc)
    assert auc(np.array([1.0, 2.0, 2.0]), np.array([False, False, True])) == 0.75


def test_time_by_part():
    steps = np.array([10, 20])
    metrics = {
        "time": Series(steps, np.array([1.0, 1.0])),
        "data_time": Series(steps, np.array([0.2, 0.0])),
        "gal/time_share": Series(steps, np.array([0.5, 0.5])),
        "gal/audition_seconds": Series(np.array([20]), np.array([3.0])),
    }
    use = read_time(Run(folder=None, name="r", config={"GAL.AUDITION.PERIOD": 10}, metrics=metrics))
    assert use.total == pytest.approx(
        {
            "loading": 2.0,
            "scoring": 10 * 0.4 + 10 * 0.5,
            "forward, backward, update": 10 * 0.4 + 10 * 0.5,
            "auditions": 10 * 0.3,  # none before the first round
        }
    )


def test_options_that_differ():
    first = Run(None, "a", {"SEED": 1, "SOLVER.MAX_ITER": 5, "OUTPUT_DIR": "x", "GAL.GONE": [1]})
    second = Run(None, "b", {"SEED": 2, "SOLVER.MAX_ITER": 5, "OUTPUT_DIR": "y"})
    assert between([first, second]) == [
        ("GAL.GONE", ["[1]", "(no such option)"]),
        ("SEED", ["1", "2"]),
    ]
    assert from_defaults(first) == [
        ("GAL.GONE", "(no such option)", "[1]"),
        ("SEED", "-1", "1"),
        ("SOLVER.MAX_ITER", "40000", "5"),
    ]
