"""Which cut-outs are auditioned, and that an audition is what an offline pass does."""

from __future__ import annotations

import numpy as np
import pytest
from scored import scored

from gal_d2.judging.auditions import choose_for_audition
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
    assert choose_for_audition(candidates, posterior, rng).tolist() == [9]
    candidates = np.tile(np.array([[1, 2, 3, 4, 5]]), (50, 1))
    assert choose_for_audition(candidates, posterior, rng).tolist() == [5]


def test_of_a_new_pool_all_are_asked_alike_and_none_twice():
    posterior, rng = Posterior(1), np.random.default_rng(0)
    counts = np.zeros(40)
    for _ in range(200):
        chosen = choose_for_audition(rng.integers(40, size=(20, 8)), posterior, rng)
        assert len(np.unique(chosen)) == len(chosen)
        counts[chosen] += 1
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()


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
