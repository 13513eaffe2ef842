"""A quicker scorer must give the scores that the plain one gave."""

from __future__ import annotations

import numpy as np
import pytest
from recorded import FILE, record


@pytest.fixture(scope="module")
def recorded():
    with np.load(FILE) as file:
        return dict(file)


def test_scores_are_those_that_were_recorded(tiny, recorded):
    found = record(tiny)
    assert found.keys() == recorded.keys()
    for name, expected in recorded.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_record_is_of_scores_and_of_missing_ones(recorded):
    steps = [name for name in recorded if name.startswith("step") and name.endswith("/score")]
    scores = np.concatenate([recorded[name] for name in steps])
    assert np.isfinite(scores).sum() > 20 and np.isnan(scores).sum() > 5
    assert (recorded["cache/partners"] >= 0).any() and (recorded["cache/negative.box"] != 0).any()
