"""Which cut-outs are auditioned, and that an audition is what an offline pass does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scored import scored
from small_pool import fill

from gal_d2.judging.auditions import Waiting, choose_for_audition
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.posterior import AUDITION, Posterior


def believe(posterior: Posterior, scores: dict[int, float], times: int) -> None:
    rows = scored(list(scores), list(scores.values()), area=1e6)
    for _ in range(times):
        posterior.update(rows, posterior.step, source=AUDITION)


def test_what_is_poor_for_sure_is_not_asked_again():
    posterior = Posterior(1)
    believe(posterior, {1: 1.0, 2: -1.0, 3: 1.0, 4: -1.0}, times=30)
    believe(posterior, {5: 1.0}, times=1)
    rng = np.random.default_rng(0)
    candidates = np.tile(np.array([[1, 2, 4, 5, 9]]), (50, 1))
    # 9 was never scored: of the better half, it is known least.
    assert choose_for_audition(candidates, posterior, rng, 10).tolist() == [9]
    candidates = np.tile(np.array([[1, 2, 3, 4, 5]]), (50, 1))
    assert choose_for_audition(candidates, posterior, rng, 10).tolist() == [5]


def test_of_a_new_pool_all_are_asked_alike_and_none_twice():
    posterior, rng = Posterior(1), np.random.default_rng(0)
    counts = np.zeros(40)
    for _ in range(200):
        chosen = choose_for_audition(rng.integers(40, size=(20, 8)), posterior, rng, 10)
        assert len(np.unique(chosen)) == len(chosen)
        counts[chosen] += 1
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()


def test_a_class_that_becomes_known_late_catches_up():
    posterior, rng = Posterior(2), np.random.default_rng(0)
    classes = np.repeat([0, 1], 20)
    for step in range(60):
        known = [0] if step < 30 else [0, 1]
        of_row = rng.choice(known, size=12)
        rows = np.stack([rng.choice(np.flatnonzero(classes == c), size=8) for c in of_row])
        chosen = choose_for_audition(rows, posterior, rng, 6)
        scores = scored(chosen, rng.normal(size=len(chosen)), area=1e6, gt_class=classes[chosen])
        posterior.update(scores, step, source=AUDITION)
    early, late = (posterior.auditions(np.flatnonzero(classes == c)).mean() for c in (0, 1))
    assert late > 0.5 * early


def test_what_waits_in_a_growing_pool_is_what_all_of_it_would_say(tmp_path: Path):
    posterior, pool = Posterior(1), InstancePool(tmp_path, allow_empty=True)
    waiting, rng = Waiting(posterior), np.random.default_rng(0)
    assert waiting.of(pool).tolist() == []
    for step in range(6):
        fill(tmp_path, range(5 * step, 5 * step + 7), max_rows=4)  # two of them once more
        pool.refresh()
        found = waiting.of(pool)
        assert found.tolist() == [i for i in pool.all_ids() if posterior.auditions([i]) == 0]
        believe(posterior, dict.fromkeys(rng.choice(found, 4, replace=False).tolist(), 1.0), 1)


@pytest.mark.parametrize(
    ("off", "is_auditioned"),
    [
        (["GAL.COPY_PASTE.ENABLED", "GAL.SCORER.ENABLED"], False),
        ([], True),
    ],
)
def test_without_pastes_there_are_no_auditions(train, lvis_root, tmp_path, off, is_auditioned):
    """configs/lvis_gal.yaml, with parts of it switched off."""
    options = [value for key in off for value in (key, "False")]
    train(
        lvis_root,
        "lvis_gal",
        *("SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path)),
        *("GAL.AUDITION.PERIOD", "1", "GAL.AUDITION.IMAGES", "1.0"),
        *("GAL.ACCEPT.WARM_UP.MIN_AGE", "0", *options),
    )
    assert (tmp_path / "auditions").exists() == is_auditioned
