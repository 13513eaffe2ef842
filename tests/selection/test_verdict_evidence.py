"""A verdict outweighs scores, in the posterior, in its snapshots and in what is drawn."""

from __future__ import annotations

import numpy as np
from scored import scored

from gal_d2.judging.auditions import choose_for_audition
from gal_d2.selection.posterior import Posterior
from gal_d2.selection.posterior_view import PosteriorView, posterior_source
from gal_d2.selection.snapshots import Snapshots

JUDGED = np.array([2, 5, 77]), np.array([-1, 1, -1], np.int8)


def learned(rounds: int = 8) -> Posterior:
    """Of cut-outs 0 to 9, the higher the id the better the scores."""
    posterior = Posterior(1)
    for step in range(rounds):
        noise = np.random.default_rng(step).normal(size=10)
        posterior.update(scored(np.arange(10), np.arange(10) + 0.1 * noise, area=1e6), step)
    return posterior


def test_a_verdict_stands_above_scores():
    posterior = learned()
    before = posterior.get(np.arange(10))
    posterior.judged = JUDGED
    belief = posterior.get(np.array([1, 2, 5, 9, 77]))
    assert belief.mean[0] == before.mean[1] and belief.std[0] == before.std[1]
    assert belief.mean[1] == belief.mean[4] == -3 and belief.mean[1] < before.mean.min()
    assert belief.mean[2] == 1 > before.mean[5]
    assert belief.mean[3] == before.mean[9]
    assert (belief.std[[1, 2, 4]] <= 0.1).all()
    assert belief.count.tolist() == [8, 8, 8, 8, 0]
    assert len(posterior) == 10  # a verdict is no score


def test_better_scores_still_tell_good_ones_apart():
    posterior = learned()
    best = posterior.get(np.array([9])).mean[0, 0]
    posterior.judged = np.array([5, 9]), np.ones(2, np.int8)
    assert posterior.get(np.array([5, 9])).mean[:, 0].tolist() == [1.0, max(1.0, best)]


def test_a_judged_cut_out_is_not_auditioned_for_what_is_known():
    posterior = learned()
    posterior.judged = np.array([8, 9]), np.array([-1, 1], np.int8)
    rows = np.tile(np.array([6, 7, 8, 9]), (50, 1))
    asked = choose_for_audition(rows, posterior, np.random.default_rng(0), 9)
    assert set(asked.tolist()) <= {6, 7}


def test_snapshots_and_checkpoints_have_it(tmp_path):
    posterior = learned()
    snapshots = Snapshots(tmp_path, period=1, lag=0)
    source = posterior_source(posterior.take_changes)
    for number, judged in enumerate([JUDGED, (JUDGED[0][:1], JUDGED[1][:1])]):
        posterior.judged = judged
        arrays = {f"posterior.{name}": array for name, array in source(number).items()}
        snapshots.write(number, arrays)
    view, ids = PosteriorView(snapshots), np.array([[2, 5], [77, 9]])
    view.follow(0)
    assert (view.moments(ids)[0][..., 0] == -3).tolist() == [[True, False], [True, False]]
    assert view.moments(ids)[0][0, 1, 0] == 1
    view.follow(1)  # one was taken back
    assert view.moments(ids)[0][0, 1] == view.scored_moments(ids)[0][0, 1]
    assert np.allclose(view.moments(ids)[0], posterior.get(ids.ravel()).mean.reshape(2, 2, 1))

    restored = Posterior(1)
    restored.load_state_dict(posterior.state_dict())
    assert (restored.get(ids.ravel()).mean == posterior.get(ids.ravel()).mean).all()


def test_states_of_earlier_releases_have_no_verdicts(tmp_path):
    posterior = learned()
    state = {k: v for k, v in posterior.state_dict().items() if not k.startswith("judged")}
    restored = Posterior(1)
    restored.load_state_dict(state)
    assert len(restored.judged[0]) == 0 and len(restored) == 10
    arrays = posterior_source(posterior.take_changes)(0)
    snapshots = Snapshots(tmp_path, period=1, lag=0)
    kept = {f"posterior.{k}": a for k, a in arrays.items() if not k.startswith("judged")}
    snapshots.write(0, kept)
    view = PosteriorView(snapshots)
    view.follow(0)
    assert np.allclose(view.moments(np.arange(10))[0], posterior.get(np.arange(10)).mean)
