from __future__ import annotations

import math
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


def update(store: EvidenceStore, rows: list[tuple], step: int = 0) -> None:
    """Rows of pool id, class and score, and of the visible area where it is not large."""
    ids, classes, scores, areas = zip(
        *((*row, math.inf) if len(row) == 3 else row for row in rows), strict=True
    )
    tensors = (torch.tensor(column) for column in (ids, classes, scores))
    store.update(*tensors, torch.tensor(areas, dtype=torch.float32), step)


class WrittenOut:
    """The formulas of the module, score by score; of one class."""

    def __init__(self, prior_count: float, full_area: float) -> None:
        self.prior_count, self.full_area = prior_count, full_area
        self.level, self.rows, self.relative = None, {}, []

    def update(self, scores: list[tuple[int, float, float]], step: int) -> None:
        """(id, score, area) of a step."""
        mean = sum(score for _, score, _ in scores) / len(scores)
        kept = (1 - 1 / 64) ** len(scores)
        total, weight = self.level or (0.0, 0.0)
        self.level = kept * total + (1 - kept) * mean, kept * weight + 1 - kept
        level = self.level[0] / self.level[1]
        for pool_id, score, area in scores:
            weight = (step + 1) * min(1, area / self.full_area)
            self.rows.setdefault(pool_id, []).append((weight, score - level))
            self.relative.append(score - level)
        self.step = step

    def shrunk(self, pool_id: int) -> float:
        rows = self.rows.get(pool_id, [])
        weight = sum(w for w, _ in rows) + self.prior_count * (self.step + 1)
        return sum(w * r for w, r in rows) / weight


def test_the_estimate_written_out():
    store, expected = EvidenceStore(2, prior_count=2.0, full_area=100.0), WrittenOut(2.0, 100.0)
    steps = [
        [(7, 1.0, 100.0), (9, 0.0, 25.0)],
        [(7, 0.25, 400.0), (7, 0.5, 50.0)],
        [(9, -1.0, 10.0), (3, 0.75, 100.0)],
    ]
    for step, rows in enumerate(steps):
        update(store, [(i, 1, score, area) for i, score, area in rows], step=4 * step)
        expected.update(rows, 4 * step)
    ids = [7, 9, 3, 1234]
    found = store.get(ids, [1] * 4)
    np.testing.assert_array_equal(found.count, [3, 2, 1, 0])
    np.testing.assert_allclose(found.shrunk, [expected.shrunk(i) for i in ids], atol=1e-12)
    np.testing.assert_allclose(found.level, expected.level[0] / expected.level[1])
    np.testing.assert_allclose(found.spread, np.std(expected.relative, ddof=1))
    for i, mean in zip(ids[:3], found.mean, strict=False):
        weights, relative = zip(*expected.rows[i], strict=True)
        assert mean == pytest.approx(np.average(relative, weights=weights))
    assert np.isnan(found.mean[3]) and found.shrunk[3] == 0
    assert np.isnan(store.get([7], [0]).level)


def test_a_score_counts_relative_to_its_time():
    """All rise as the model learns; who is better at any time stays better."""
    store, rng = EvidenceStore(1), np.random.default_rng(0)
    for step in range(200):
        ids = rng.choice(40, 8, replace=False)
        early_only = ids[(ids >= 20) | (step < 60)]
        update(store, [(int(i), 0, 0.002 * step + 0.1 * (i % 2)) for i in early_only], step)
    estimate = store.get(np.arange(40), np.zeros(40, int)).shrunk
    assert estimate[1::2].min() > estimate[::2].max()


def test_nothing_known():
    found = EvidenceStore(2).get([3], [1])
    assert np.isnan(found.mean).all() and np.isnan(found.level).all()
    assert found.count.tolist() == found.shrunk.tolist() == [0]


def test_missing_scores_and_objects_from_elsewhere_leave_no_trace():
    store = EvidenceStore(1)
    update(store, [(1, 0, np.nan), (2, 0, np.inf), (-1, 0, 0.5)])
    assert len(store) == 0
    nothing = torch.empty(0)
    store.update(nothing.long(), nothing.long(), nothing, nothing, 0)
    assert len(store) == 0
    assert store.get([1], [0]).shrunk.tolist() == [0]


def test_a_class_that_does_not_exist():
    with pytest.raises(ValueError, match="classes"):
        update(EvidenceStore(1), [(1, 1, 0.0)])
    for name in ("prior_count", "full_area"):
        with pytest.raises(ValueError, match=name):
            EvidenceStore(1, **{name: 0})


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
    store, expected = EvidenceStore(1), WrittenOut(0.5, 1024.0)
    for number, step in enumerate(steps):
        update(store, [(pool_id, 0, score) for pool_id, score in step], number)
        expected.update([(*row, math.inf) for row in step], number)
    ids = list(expected.rows)
    found = store.get(ids, [0] * len(ids))
    np.testing.assert_array_equal(found.count, [len(rows) for rows in expected.rows.values()])
    np.testing.assert_allclose(found.shrunk, [expected.shrunk(i) for i in ids], atol=1e-9)
    assert len(store) == len(ids)


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
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_restored_from_a_weights_only_checkpoint(tmp_path):
    store = EvidenceStore(2)
    update(store, [(7, 0, 1.0), (3, 1, 0.5), (7, 0, 0.25)])
    torch.save(store.state_dict(), tmp_path / "evidence.pth")
    restored = EvidenceStore(2)
    restored.load_state_dict(torch.load(tmp_path / "evidence.pth", weights_only=True))
    for both in (store, restored):
        update(both, [(3, 1, -1.0, 300.0), (99, 1, 0.5)], step=5)
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
    areas = torch.full((count,), 500.0)
    store.update(everything, everything % 1203, torch.zeros(count), areas, 0)
    ids = everything[:2000]
    start = time.perf_counter()
    for _ in range(10):
        store.update(ids, ids % 1203, torch.ones(2000), areas[:2000], 1)
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
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.7])
    areas = torch.tensor([90.0, 2000.0, 500.0, torch.nan, 700.0])
    store.update(ids[own], classes[own], scores[own], areas[own], 3)
    torch.save(store.state_dict(), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_hold_what_one_would(tmp_path):
    mp.spawn(_worker, (os.fspath(tmp_path),), nprocs=2)
    alone = EvidenceStore(2)
    rows = [(4, 0, 0.1, 90.0), (4, 0, 0.2), (1 << 62, 1, 0.3, 500.0), (6, 1, 0.4)]
    update(alone, [*rows, (4, 0, 0.7, 700.0)], step=3)
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
