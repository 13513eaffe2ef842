"""Snapshots hold changes only, and a reader sees the whole of them."""

from __future__ import annotations

import pickle

import numpy as np
from scored import scored

from gal_d2.scoring.contribution import Contribution
from gal_d2.selection import snapshots as snapshots_module
from gal_d2.selection.posterior import AUDITION, TRAINING, Posterior
from gal_d2.selection.posterior_view import PosteriorView, posterior_source
from gal_d2.selection.snapshots import Snapshots


def contribution(ids: np.ndarray, scores: np.ndarray) -> Contribution:
    return scored(ids, scores, area=1e6)


def write_run(folder, steps: range, posterior: Posterior, rng) -> Snapshots:
    """A posterior that learns from a few cut-outs a step; a snapshot after each."""
    snapshots = Snapshots(folder, period=1, lag=0)
    source = posterior_source(posterior.take_changes)
    for step in steps:
        ids = rng.choice(200, size=5, replace=False)
        scores = contribution(ids, rng.normal(size=5))
        posterior.update(scores, step, source=AUDITION if step % 2 else TRAINING)
        arrays = source(step)
        snapshots.write(step, {f"posterior.{name}": array for name, array in arrays.items()})
    return snapshots


def same(view: PosteriorView, posterior: Posterior) -> bool:
    asked = np.arange(210)
    belief = posterior.get(asked)
    mean, std = view.moments(asked)
    return np.allclose(mean, belief.mean, atol=1e-6) and np.allclose(std, belief.std, atol=1e-6)


def test_changes_add_up_to_the_posterior(tmp_path, monkeypatch):
    monkeypatch.setattr("gal_d2.selection.posterior_view.KEYFRAME", 8)
    posterior = Posterior(1)
    snapshots = write_run(tmp_path, range(30), posterior, np.random.default_rng(0))
    following, late = PosteriorView(snapshots), PosteriorView(snapshots)
    for step in range(30):
        following.follow(step)
    late.follow(29)
    assert same(following, posterior) and same(late, posterior)
    expected = np.append(posterior.helping(), np.nan).astype(np.float32)
    assert np.array_equal(late.helping(np.array([0, 1])), expected, equal_nan=True)
    copied = pickle.loads(pickle.dumps(following))
    copied.follow(29)
    assert same(copied, posterior)
    # Back to an earlier step: a resumed run's samples.
    following.follow(12)
    late.follow(12)
    asked = np.arange(200)
    assert (following.moments(asked)[0] == late.moments(asked)[0]).all()
    sizes = [len(snapshots.read(number)["posterior.pool_ids"]) for number in (15, 16)]
    assert sizes[0] == 5 < sizes[1]


def test_a_resumed_run_starts_with_all_of_it(tmp_path):
    posterior = Posterior(1)
    write_run(tmp_path, range(10), posterior, np.random.default_rng(0))
    restored = Posterior(1)
    restored.load_state_dict(posterior.state_dict())
    snapshots = write_run(tmp_path, range(10, 12), restored, np.random.default_rng(1))
    view = PosteriorView(snapshots)
    view.follow(11)
    assert same(view, restored)


def test_what_the_chain_needs_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots_module, "KEYFRAME", 4)
    snapshots = Snapshots(tmp_path, period=5, lag=2)
    for number in range(15):
        snapshots.write(number, {})
    snapshots.prune(47, 70)  # the steps after 47 see 7, which starts at 4; 70 sees 12
    assert snapshots.numbers() == [*range(4, 10), 12, 13, 14]
    assert snapshots.resume(47) == []
    snapshots.path(5).unlink()
    assert snapshots.resume(47) == [5, 6, 7, 8, 9]  # what follows on it is of no use


def test_without_a_training_nothing_is_known(tmp_path):
    view = PosteriorView(Snapshots(tmp_path, period=5))
    view.follow(3)
    mean, _ = view.moments(np.array([4, 5]))
    assert (mean == 0).all()
