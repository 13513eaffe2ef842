from __future__ import annotations

import logging

import pytest
import torch
from detectron2.structures import Boxes, Instances

from gal_d2.engine.judge import InstanceJudge, Verdict, decision_metrics
from gal_d2.engine.setup import load_config
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.scoring.acceptance import Decision
from gal_d2.scoring.contribution import Contribution


def make_contribution(image_index: list[int], scores: list[float]) -> Contribution:
    n = len(image_index)
    return Contribution(
        pool_id=torch.arange(n),
        image_index=torch.tensor(image_index),
        gt_class=torch.arange(n) % 3,
        phi=torch.zeros(n),
        score=torch.tensor(scores),
        head_score={"box": torch.zeros(n)},
        head_loss={"box": torch.zeros(n)},
        num_rois=torch.ones(n, dtype=torch.int64),
    )


def make_target(sources: list[int]) -> Instances:
    n = len(sources)
    return Instances(
        (8, 8),
        gt_boxes=Boxes(torch.zeros(n, 4)),
        gt_classes=torch.zeros(n, dtype=torch.int64),
        instance_source=torch.tensor(sources),
    )


def test_rejections_land_on_the_pasted_targets_of_their_image():
    contribution = make_contribution([0, 0, 2], [0.0] * 3)
    targets = [make_target([0, 1, 0, 1]), make_target([0]), make_target([1, 0])]
    rejected = torch.tensor([False, True, True])
    masks = InstanceJudge._by_target(rejected, contribution, targets)
    assert [mask.tolist() for mask in masks] == [
        [False, False, False, True],
        [False],
        [True, False],
    ]


class FakeJudge:
    class_groups = torch.tensor([0, 1, 2])
    metrics = InstanceJudge.metrics

    class scorer:
        class cache:
            age = torch.tensor([4, -1, 2])


def test_metrics_by_frequency_group():
    judge = FakeJudge()
    contribution = make_contribution([0, 0, 0, 0], [1.0, float("nan"), 3.0, 2.0])
    decision = Decision.uniform(torch.tensor([True, False, True, False]), "test")
    judge.verdict = Verdict(contribution, decision, 0.1)
    metrics = decision_metrics(judge, 0.25)
    assert metrics["gal/accepted"] == 0.5 and metrics["gal/pasted"] == 4
    # classes 0, 1, 2, 0 are of the groups r, c, f, r
    assert metrics["gal/accepted_r"] == 0.5
    assert metrics["gal/accepted_c"] == 0.0 and metrics["gal/accepted_f"] == 1.0
    assert metrics["gal/score_q50"] == 2.0  # the missing score does not count
    assert metrics["gal/cache_age"] == pytest.approx((4 + 2 + 4) / 3)
    assert metrics["gal/time_share"] == 0.25


def test_metrics_of_a_step_without_pastes():
    judge = FakeJudge()
    nothing = Decision.uniform(torch.zeros(0, dtype=torch.bool), "test")
    judge.verdict = Verdict(make_contribution([], []), nothing, 0.0)
    assert decision_metrics(judge, 0.0) == {"gal/time_share": 0.0, "gal/pasted": 0.0}


def small_config(lvis_root, repository, monkeypatch, tmp_path, *options):
    monkeypatch.chdir(lvis_root)
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *options]
    return load_config(str(repository / "configs/lvis_gal.yaml"), opts)


def test_heads_without_a_judge_are_refused(lvis_root, repository, monkeypatch, tmp_path):
    cfg = small_config(
        lvis_root, repository, monkeypatch, tmp_path, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"
    )
    with pytest.raises(UserError, match="GALROIHeads or GALCascadeROIHeads"):
        GALTrainer.build_judge(cfg, torch.nn.Module(), seed=0)


def test_one_weight_for_each_head(lvis_root, repository, monkeypatch, tmp_path):
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, "GAL.SCORER.HEADS", "['box']")
    with pytest.raises(UserError, match="SCORE_WEIGHTS has 2 entries, GAL.SCORER.HEADS has 1"):
        InstanceJudge(cfg, torch.nn.Module(), seed=0)


def test_a_checkpoint_from_before_scoring_says_so(caplog):
    judge = object.__new__(InstanceJudge)
    judge._restored = False

    class Ledger:
        resumed_at = None

        def resume(self, step):
            self.resumed_at = step

    judge.ledger = Ledger()
    with caplog.at_level(logging.WARNING, logger="gal_d2.engine.judge"):
        judge.resume(5)
    assert "made without scoring" in caplog.text and judge.ledger.resumed_at == 5
    caplog.clear()
    judge.resume(0)  # a fresh start is nothing to warn of
    assert not caplog.text
