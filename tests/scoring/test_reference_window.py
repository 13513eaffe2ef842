from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gal_d2.scoring.reference_window import ReferenceWindow


def one_class(size: int = 4, n_min: int = 1) -> ReferenceWindow:
    return ReferenceWindow(torch.zeros(1), size=size, n_min=n_min)


def fill(window: ReferenceWindow, cls: int, values: list[float]) -> None:
    for value in values:
        window.add(torch.tensor([cls]), torch.tensor([value]))


def test_quantile_of_a_full_class_interpolates_like_numpy():
    window = one_class(size=8)
    fill(window, 0, [3.0, 1.0, 2.0, 10.0])
    classes = torch.zeros(3, dtype=torch.int64)
    qs = (0.0, 0.4, 1.0)
    for quantile, expected in zip(
        window.quantiles(classes, qs), np.quantile([1, 2, 3, 10], qs), strict=True
    ):
        np.testing.assert_allclose(quantile, [expected] * 3, rtol=1e-6)


def test_the_oldest_values_are_forgotten():
    window = one_class(size=2)
    fill(window, 0, [100.0, 1.0, 2.0])
    assert window.count().tolist() == [2]
    assert window.quantile(torch.tensor([0]), 1.0).item() == 2.0


def test_more_values_than_room_in_one_call():
    window = one_class(size=4)
    window.add(torch.zeros(50, dtype=torch.int64), torch.arange(50.0))
    assert window.count().tolist() == [4]
    kept = window.state_dict()["values"][0].tolist()
    assert len(set(kept)) == 4 and max(kept) - min(kept) > 4  # a sample, not one end of the range


def test_values_that_are_not_finite_are_left_out():
    window = one_class()
    window.add(
        torch.zeros(4, dtype=torch.int64), torch.tensor([torch.nan, torch.inf, -torch.inf, 5.0])
    )
    assert window.count().tolist() == [1]
    assert window.quantile(torch.tensor([0]), 0.5).item() == 5.0


def test_a_thin_class_borrows_from_its_group_then_from_all():
    # Classes 0 and 1 are group 0, class 2 is group 1, class 3 is alone in group 2.
    window = ReferenceWindow(torch.tensor([0, 0, 1, 2]), size=4, n_min=4)
    fill(window, 0, [1.0, 1.0, 1.0, 1.0])
    fill(window, 1, [5.0])
    fill(window, 2, [9.0, 9.0, 9.0, 9.0])
    # By class: own; 1/4 own + 3/4 median of its group (1 1 1 1 5); own; no value in its group:
    # the median of all nine (1 1 1 1 5 9 9 9 9).
    medians = window.quantile(torch.arange(4), 0.5)
    assert medians.tolist() == [1.0, 0.25 * 5 + 0.75 * 1.0, 9.0, 5.0]


def test_a_thin_group_is_itself_backed_by_all():
    window = ReferenceWindow(torch.tensor([0, 0, 1]), size=4, n_min=4)
    fill(window, 1, [2.0, 2.0])
    fill(window, 2, [8.0, 8.0, 8.0, 8.0])
    # Class 0 has none; its group has two 2s of the four needed; all six have the median 8.
    assert window.quantile(torch.tensor([0]), 0.5).item() == 0.5 * 2 + 0.5 * 8


def test_too_few_values_in_all_are_no_reference():
    window = ReferenceWindow(torch.tensor([0, 1]), size=4, n_min=3)
    fill(window, 0, [1.0, 2.0])
    assert window.quantile(torch.tensor([0, 1]), 0.5).isnan().all()
    fill(window, 1, [3.0])
    assert not window.quantile(torch.tensor([0, 1]), 0.5).isnan().any()


def test_no_rows():
    window = one_class()
    window.add(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert window.quantile(torch.empty(0, dtype=torch.int64), 0.5).shape == (0,)


rows = st.lists(st.tuples(st.integers(0, 2), st.floats(-10, 10, width=32)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(steps=st.lists(rows, min_size=1, max_size=4), data=st.data())
def test_the_window_does_not_depend_on_the_order_of_the_rows_of_a_step(steps, data):
    windows = [ReferenceWindow(torch.tensor([0, 0, 1]), size=5, n_min=2) for _ in range(2)]
    for step in steps:
        shuffled = data.draw(st.permutations(step))
        for window, order in zip(windows, (step, shuffled), strict=True):
            classes, values = zip(*order, strict=True)
            window.add(torch.tensor(classes), torch.tensor(values))
    states = [window.state_dict() for window in windows]
    for key in states[0]:
        np.testing.assert_array_equal(states[0][key], states[1][key])


@settings(deadline=None, max_examples=50)
@given(steps=st.lists(rows, min_size=1, max_size=4), q=st.floats(0, 1))
def test_quantiles_are_monotone_and_within_what_was_seen(steps, q):
    window = ReferenceWindow(torch.tensor([0, 0, 1]), size=5, n_min=1)
    for step in steps:
        classes, values = zip(*step, strict=True)
        window.add(torch.tensor(classes), torch.tensor(values))
    seen = [value for step in steps for _, value in step]
    result = window.quantile(torch.arange(3), q)
    assert (result >= min(seen)).all() and (result <= max(seen)).all()
    assert (result <= window.quantile(torch.arange(3), 1.0)).all()


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    window = ReferenceWindow(torch.tensor([0, 1]), size=3, n_min=1)
    fill(window, 0, [1.0, 2.0, 3.0, 4.0])
    torch.save(window.state_dict(), tmp_path / "state.pth")
    restored = ReferenceWindow(torch.tensor([0, 1]), size=3, n_min=1)
    restored.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    for both in (window, restored):
        fill(both, 0, [7.0])
    assert restored.state_dict()["values"][0].tolist() == window.state_dict()["values"][0].tolist()


def test_state_of_other_classes_is_refused_with_a_warning(caplog):
    window = one_class(size=4)
    window.load_state_dict(ReferenceWindow(torch.zeros(2), size=4, n_min=1).state_dict())
    window.load_state_dict({})
    assert "(2, 4)" in caplog.text and "shape none" in caplog.text
    assert window.count().tolist() == [0]


@pytest.mark.parametrize("bad", [{"size": 4, "n_min": 5}, {"size": 4, "n_min": 0}])
def test_bad_sizes(bad):
    with pytest.raises(ValueError, match="n_min"):
        ReferenceWindow(torch.zeros(1), **bad)


def test_bad_groups_and_classes():
    with pytest.raises(ValueError, match="groups"):
        ReferenceWindow(torch.zeros(2, 2))
    for bad in (-1, 1):
        with pytest.raises(ValueError, match="classes"):
            one_class().add(torch.tensor([bad]), torch.tensor([1.0]))
