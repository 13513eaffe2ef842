"""benchmarks/discrimination.py: its figures, on runs made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from discrimination_results import Run, class_aucs, evidence_so_far, mean_auc
from discrimination_runs import train as train_condition
from separation import acceptance, auc, spread
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.testbeds.truth import PoolTruth


@pytest.fixture
def columns():
    """Two categories; the second is ambiguous and its second score is missing."""
    return {
        "step": np.array([0, 0, 1, 1, 2, 2, 3, 3]),
        "pool_id": np.array([1, 2, 3, 1, 5, 6, 7, 5]),
        "category_id": np.array([1, 1, 1, 1, 2, 2, 2, 2]),
        "kind": np.array(
            ["good", "noise", "wrong_object", "good"] + ["good", "good", "wrong_object", "good"]
        ),
        "ambiguous": np.array([False] * 4 + [True] * 4),
        "score": np.array([0.5, 0.1, 0.6, 0.7, 0.9, np.nan, 0.2, 0.1]),
        "head_loss_mask": np.array([0.2, 0.9, 0.2, 0.1, 0.5, 0.5, 0.4, 0.6]),
        "accept": np.array([1, 0, 1, 1, 1, 1, 0, 0], dtype=bool),
    }


def test_auc_is_within_a_class_and_against_one_kind(columns):
    aucs = class_aucs(columns, "score", "wrong_object")
    assert aucs == {1: 0.5, 2: 0.5}
    assert mean_auc(columns, "score", "noise") == 1.0  # the second class has none
    assert class_aucs(columns, "-head_loss_mask", "noise")[1] == 1.0
    assert np.isnan(mean_auc(columns, "score", "misplaced_mask"))


def test_ambiguous_ones_are_the_wrong_objects_of_ambiguous_categories(columns):
    columns["score"][7] = 0.3
    aucs = class_aucs(columns, "score", "ambiguous")
    assert np.isnan(aucs[1]) and aucs[2] == 1.0


def test_shares_of_what_was_accepted(columns):
    shares = acceptance(columns)
    assert shares == pytest.approx(
        {
            "good accepted": 4 / 5,
            "bad accepted": 1 / 3,
            "bad of pasted": 3 / 8,
            "bad of accepted": 1 / 5,
        }
    )


def test_evidence_so_far_includes_the_step_and_knows_the_area(columns):
    found = evidence_so_far(columns, "score")
    assert np.isnan(found[5]) and np.isfinite(np.delete(found, 5)).all()
    assert found[0] == pytest.approx(-found[1]) and found[0] > 0  # above and below their mean
    assert found[3] > found[2]  # a good score that confirms an earlier one
    columns["area"] = np.array([1024.0, 1024, 10, 1024, 10, 10, 10, 10])
    weak = evidence_so_far(columns, "score")
    assert weak[0] == found[0] and abs(weak[2]) < abs(found[2])


def test_a_part_of_the_training_is_cut_out_by_step(columns):
    run = Run(4, columns, {})
    assert run.between(0.5, 1)["pool_id"].tolist() == [5, 6, 7, 5]


def test_spread_over_seeds():
    assert spread([0.5]) == "0.50"
    assert spread([0.5, 0.7]) == "0.60 ± 0.14"
    assert spread([np.nan, np.nan]) == "-"


def test_auc_leaves_out_what_has_no_score():
    assert auc(np.array([True, False, True]), np.array([0.3, 0.1, np.nan])) == 1.0
    assert np.isnan(auc(np.array([True, True]), np.array([0.3, 0.1])))


@pytest.mark.usefixtures("train")  # its loggers
def test_a_run_records_how_alike_each_paste_is(
    repository, miniature, miniature_options, tmp_path, monkeypatch
):
    monkeypatch.chdir(repository)
    options = [
        *(*miniature_options, *SMALL_MODEL, *FROM_SCRATCH, "SOLVER.MAX_ITER", "3"),
        *("SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.WARMUP_ITERS", "1", "TEST.EVAL_PERIOD", "0"),
        *("GAL.POOL.ROOT", str(miniature / "pool"), "GAL.COPY_PASTE.MIN_PASTES", "4"),
    ]
    train_condition(tmp_path / "run", "polluted", 0, options)
    run = Run.read(tmp_path / "run", PoolTruth.read(miniature / "pool_truth.parquet"))
    similarity, step = run.columns["similarity"], run.columns["step"]
    assert run.steps == 3 and len(similarity) == len(step) > 10
    assert np.isnan(similarity[step == 0]).all()  # no real object was seen before
    known = similarity[np.isfinite(similarity)]
    assert len(known) and (np.abs(known) <= 1 + 1e-6).all()
