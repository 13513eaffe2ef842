from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from gal_d2.scoring import evidence
from gal_d2.scoring.evidence import EvidenceStore, sampling_weights


def update(store: EvidenceStore, rows: list[tuple[int, int, float]]) -> None:
    ids, classes, scores = zip(*rows, strict=True)
    store.update(torch.tensor(ids), torch.tensor(classes), torch.tensor(scores))


def test_mean_and_shrunk_mean():
    store = EvidenceStore(2, prior_count=2.0)
    update(store, [(7, 0, 1.0), (9, 0, 0.0), (5, 1, -1.0)])
    update(store, [(7, 0, 0.0), (7, 0, 0.5)])
    # All: sum 0.5 of 5. Class 0: sum 1.5 of 4, worth 2 more of the overall 0.1. Class 1: -1 of 1.
    class_mean = np.array([(1.5 + 2 * 0.1) / 6, (-1 + 2 * 0.1) / 3])
    found = store.get([7, 9, 5, 1234], [0, 0, 1, 1])
    np.testing.assert_array_equal(found.count, [3, 1, 1, 0])
    np.testing.assert_allclose(found.mean, [0.5, 0.0, -1.0, np.nan])
    np.testing.assert_allclose(found.class_mean, class_mean[[0, 0, 1, 1]])
    expected = [
        (1.5 + 2 * class_mean[0]) / 5,
        (0 + 2 * class_mean[0]) / 3,
        (-1 + 2 * class_mean[1]) / 3,
        class_mean[1],
    ]
    np.testing.assert_allclose(found.shrunk, expected)
    std = np.std([1, 0, 0, 0.5], ddof=1)
    np.testing.assert_allclose(found.class_std, [std, std, np.nan, np.nan])


def test_nothing_known():
    found = EvidenceStore(2).get([3], [1])
    assert np.isnan(found.mean).all() and np.isnan(found.shrunk).all()
    assert found.count.tolist() == [0]


def test_missing_scores_and_objects_from_elsewhere_leave_no_trace():
    store = EvidenceStore(1)
    update(store, [(1, 0, np.nan), (2, 0, np.inf), (-1, 0, 0.5)])
    assert len(store) == 0
    store.update(*(torch.empty(0, dtype=torch.int64) for _ in range(2)), torch.empty(0))
    assert len(store) == 0
    assert np.isnan(store.get([1], [0]).shrunk).all()


def test_a_class_that_does_not_exist():
    with pytest.raises(ValueError, match="classes"):
        update(EvidenceStore(1), [(1, 1, 0.0)])
    with pytest.raises(ValueError, match="prior_count"):
        EvidenceStore(1, prior_count=0)


observations = st.lists(
    st.tuples(
        st.sampled_from([0, 3, 5, 8, (1 << 62) + 1, (1 << 62) + 2]), st.floats(-1, 1, width=32)
    ),
    min_size=1,
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(observations, min_size=1, max_size=5), merge_at=st.integers(1, 6))
def test_agrees_with_plain_lists(steps, merge_at, monkeypatch_module):
    monkeypatch_module.setattr(evidence, "_MERGE_AT", merge_at)
    store = EvidenceStore(1)
    seen: dict[int, list[float]] = {}
    for step in steps:
        update(store, [(pool_id, 0, score) for pool_id, score in step])
        for pool_id, score in step:
            seen.setdefault(pool_id, []).append(score)
    found = store.get(list(seen), [0] * len(seen))
    np.testing.assert_array_equal(found.count, [len(scores) for scores in seen.values()])
    np.testing.assert_allclose(found.mean, [np.mean(scores) for scores in seen.values()], atol=1e-9)
    assert len(store) == len(seen)
    overall = np.mean([score for scores in seen.values() for score in scores])
    low, high = np.minimum(found.mean, overall), np.maximum(found.mean, overall)
    assert (found.shrunk >= low - 1e-9).all() and (found.shrunk <= high + 1e-9).all()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@settings(deadline=None, max_examples=40)
@given(rows=observations, data=st.data())
def test_bits_do_not_depend_on_the_order_of_the_rows_of_a_step(rows, data):
    stores = [EvidenceStore(1), EvidenceStore(1)]
    for store, order in zip(stores, (rows, data.draw(st.permutations(rows))), strict=True):
        update(store, [(pool_id, 0, score) for pool_id, score in order])
    first, second = (store.state_dict() for store in stores)
    assert all(torch.equal(first[key], second[key]) for key in first if key != "class_moments")
    assert torch.equal(first["class_moments"], second["class_moments"])


def test_restored_from_a_weights_only_checkpoint(tmp_path):
    store = EvidenceStore(2)
    update(store, [(7, 0, 1.0), (3, 1, 0.5), (7, 0, 0.25)])
    torch.save(store.state_dict(), tmp_path / "evidence.pth")
    restored = EvidenceStore(2)
    restored.load_state_dict(torch.load(tmp_path / "evidence.pth", weights_only=True))
    for both in (store, restored):
        update(both, [(3, 1, -1.0), (99, 1, 0.5)])
    first, second = store.state_dict(), restored.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_state_of_other_classes_is_refused_with_a_warning(caplog):
    other = EvidenceStore(3)
    update(other, [(1, 0, 0.0)])
    store = EvidenceStore(2)
    store.load_state_dict(other.state_dict())
    store.load_state_dict({})
    assert "for 3 classes" in caplog.text and "for none classes" in caplog.text
    assert len(store) == 0


def test_a_step_stays_cheap_with_a_pool_of_the_published_size():
    store = EvidenceStore(1203)
    count = 1_200_000
    generator = torch.Generator().manual_seed(0)
    everything = torch.randperm(count, generator=generator) * 7919
    store.update(everything, everything % 1203, torch.zeros(count))
    ids = everything[:2000]
    start = time.perf_counter()
    for _ in range(10):
        store.update(ids, ids % 1203, torch.ones(2000))
    assert (time.perf_counter() - start) / 10 < 0.05  # about 2 ms on one core
    assert len(store) == count
    assert store.get(ids[:1], [0]).count.tolist() == [11]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store_file = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store_file, rank=rank, world_size=2)
    store = EvidenceStore(2)
    own = slice(rank, None, 2)
    ids, classes = torch.tensor([4, 4, 1 << 62, 6, 4]), torch.tensor([0, 0, 1, 1, 0])
    store.update(ids[own], classes[own], torch.tensor([0.1, 0.2, 0.3, 0.4, 0.7])[own])
    torch.save(store.state_dict(), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_hold_what_one_would(tmp_path):
    mp.spawn(_worker, (os.fspath(tmp_path),), nprocs=2)
    alone = EvidenceStore(2)
    update(alone, [(4, 0, 0.1), (4, 0, 0.2), (1 << 62, 1, 0.3), (6, 1, 0.4), (4, 0, 0.7)])
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pth")
        assert all(torch.equal(state[key], value) for key, value in alone.state_dict().items())


def test_weights_of_the_docstring():
    weights = sampling_weights(np.array([np.nan, -0.4, -0.4, 0.4]), np.array([0, 1, 40, 40]))
    np.testing.assert_allclose(weights.round(2), [1.0, 0.82, 0.2, 0.99])


means = st.floats(-1, 1)
counts = st.integers(0, 10_000)
options = st.fixed_dictionaries(
    {
        "reference": st.floats(-1, 1),
        "scale": st.floats(1e-3, 10),
        "floor": st.floats(1e-3, 1),
        "prior_count": st.floats(0.1, 100),
    }
)


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(st.tuples(means, counts), min_size=1, max_size=20), kwargs=options)
def test_nothing_starves_and_nothing_beats_the_unseen(rows, kwargs):
    mean, count = (np.array(column) for column in zip(*rows, strict=True))
    weights = sampling_weights(mean, count, **kwargs)
    assert (weights >= kwargs["floor"]).all() and (weights <= 1).all()
    assert (weights[count == 0] == 1).all()


@settings(deadline=None, max_examples=200)
@given(pair=st.tuples(means, means), count=counts, kwargs=options)
def test_a_better_score_is_never_drawn_less(pair, count, kwargs):
    weights = sampling_weights(np.array(sorted(pair)), np.array([count, count]), **kwargs)
    assert weights[0] <= weights[1] + 1e-12


@settings(deadline=None, max_examples=200)
@given(mean=means, pair=st.tuples(counts, counts), kwargs=options)
def test_more_evidence_never_means_more_draws(mean, pair, kwargs):
    weights = sampling_weights(np.array([mean, mean]), np.array(sorted(pair)), **kwargs)
    assert weights[1] <= weights[0] + 1e-12


def test_a_poor_one_is_drawn_less_and_less():
    weights = sampling_weights(np.full(6, -1.0), np.array([0, 1, 2, 5, 50, 5000]), floor=0.05)
    assert (np.diff(weights) < -0.01).all()
    assert weights[-1] == pytest.approx(0.05, abs=2e-3)


def test_weights_without_a_reference_or_spread_are_those_of_a_new_one():
    nan = np.array([np.nan])
    assert sampling_weights(np.array([-1.0]), np.array([9]), reference=nan).tolist() == [1.0]
    for scale in (nan, 0.0):
        assert sampling_weights(np.array([-1.0]), np.array([9]), scale=scale).tolist() == [1.0]


def test_weights_of_a_store_compare_within_the_class():
    store = EvidenceStore(3, prior_count=1.0)
    update(store, [(1, 0, 0.9), (2, 0, 0.7), (1, 0, 0.9), (2, 0, 0.7)])  # a class of high level
    update(store, [(3, 1, 0.1), (4, 1, -0.1), (3, 1, 0.1), (4, 1, -0.1)])
    update(store, [(6, 2, 0.5)])
    weights = store.sampling_weights([1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 2], floor=0.2)
    assert weights[1] < weights[0] < 1 and weights[3] < weights[2] < 1
    assert weights[2] > weights[1]
    assert weights[4] == 1 and weights[5] == 1  # never seen; alone in its class


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"floor": 0.0}, "floor"),
        ({"floor": 1.1}, "floor"),
        ({"scale": -1.0}, "scale"),
        ({"prior_count": 0.0}, "prior_count"),
        ({"count": np.array([-1])}, "count"),
    ],
)
def test_arguments_out_of_range(kwargs, name):
    arguments = {"mean": np.array([0.0]), "count": np.array([1])} | kwargs
    with pytest.raises(ValueError, match=name):
        sampling_weights(**arguments)
