from __future__ import annotations

import math

import gal_d2  # noqa: F401  (first: it prepares the process for detectron2)

# isort: split

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from gal_d2.config import add_gal_config
from gal_d2.errors import UserError
from gal_d2.selection.batch_rules import BatchPercentile, BatchThreshold, build_batch_rule

NAN = math.nan


def test_batch_threshold():
    rule = BatchThreshold(-0.05)
    assert rule.decide(-0.04).accept and rule.decide(-0.05).accept
    decision = rule.decide(torch.tensor(-0.06))
    assert not decision.accept and decision.threshold == -0.05
    assert decision.cosine == pytest.approx(-0.06)


def test_batch_without_a_cosine_is_accepted():
    for rule in (BatchThreshold(), BatchPercentile()):
        decision = rule.decide(NAN)
        assert decision.accept and math.isnan(decision.threshold) and math.isnan(decision.cosine)


def test_batch_percentile_looks_at_the_steps_before():
    rule = BatchPercentile(percentile=50, window=3, min_count=2)
    answers = [rule.decide(value) for value in (0.0, 1.0, 0.4, 0.6, 2.0, 0.5)]
    assert [a.accept for a in answers] == [True, True, False, True, True, False]
    # Nothing, one value (too few), median of (0 1), (0 1 .4), (1 .4 .6), (.4 .6 2).
    np.testing.assert_allclose(
        [a.threshold for a in answers], [NAN, NAN, 0.5, 0.4, 0.6, 0.6], rtol=1e-6
    )


def test_batch_percentile_accepts_equal_cosines():
    rule = BatchPercentile(percentile=90, min_count=1)
    assert all(rule.decide(0.1).accept for _ in range(5))


def test_batch_percentile_is_restored(tmp_path):
    rule = BatchPercentile(percentile=30, min_count=1)
    for value in (0.5, 0.1, 0.9):
        rule.decide(value)
    torch.save(rule.state_dict(), tmp_path / "rule.pth")
    restored = BatchPercentile(percentile=30, min_count=1)
    restored.load_state_dict(torch.load(tmp_path / "rule.pth", weights_only=True))
    assert restored.decide(0.2) == rule.decide(0.2)


def test_batch_decision_for_instances():
    decision = BatchThreshold(0.0).decide(-1.0).for_instances(2)
    assert decision.accept.tolist() == [False, False]
    assert decision.value.tolist() == [-1.0, -1.0]
    assert decision.threshold.tolist() == [0.0, 0.0]
    assert decision.policy == "threshold"


def make_config(**accept):
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.GAL.ACCEPT.UNIT = "batch"
    for key, value in accept.items():
        cfg.GAL.ACCEPT[key] = value
    return cfg


def test_batch_rules_are_built_from_a_config():
    rule = build_batch_rule(make_config(POLICY="threshold", THRESHOLD=-0.05))
    assert isinstance(rule, BatchThreshold) and rule.value == -0.05
    assert build_batch_rule(make_config(POLICY="percentile", PERCENTILE=25.0)).percentile == 25.0


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'best'.*'batch'.*percentile, threshold"):
        build_batch_rule(make_config(POLICY="best"))


def test_a_percentile_out_of_range_names_its_key():
    with pytest.raises(UserError, match=r"GAL.ACCEPT.PERCENTILE is -1: set it"):
        BatchPercentile(percentile=-1)
