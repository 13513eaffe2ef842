from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from scored import scored
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.datasets.probe import probe_samples
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.judging.build_scorer import gradient_heads
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.judging.judge import JudgedStep
from gal_d2.judging.judge_hook import decision_metrics
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.policies import QuantileAccept
from gal_d2.setup.configuration import load_config


def make_contribution(image_index: list[int], scores: list[float]) -> Contribution:
    n = len(image_index)
    zeros = torch.zeros(n)
    return scored(
        range(n),
        scores,
        image_index=torch.tensor(image_index, dtype=torch.int64),
        gt_class=torch.arange(n) % 3,
        phi=zeros,
        head_score={"box": zeros},
        head_loss={"box": zeros.clone()},
    )


def make_target(sources: list[int]) -> Instances:
    n = len(sources)
    return Instances(
        (8, 8),
        gt_boxes=Boxes(torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(n, 1)),
        gt_classes=torch.zeros(n, dtype=torch.int64),
        instance_source=torch.tensor(sources),
    )


class FakeJudge:
    class_groups = torch.tensor([0, 1, 2])
    metrics = InstanceJudge.metrics

    class scorer:
        class cache:
            steps_since_update = torch.tensor([4, -1, 2])


def test_metrics_by_frequency_group():
    judge = FakeJudge()
    contribution = make_contribution([0, 0, 0, 0], [1.0, float("nan"), 3.0, 2.0])
    decision = Decision.uniform(torch.tensor([True, False, True, False]), "test")
    judge.judged = JudgedStep(contribution, decision, 0.1)
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
    judge.judged = JudgedStep(make_contribution([], []), nothing, 0.0)
    assert decision_metrics(judge, 0.0) == {"gal/time_share": 0.0, "gal/pasted": 0.0}


def small_config(lvis_root, repository, monkeypatch, tmp_path, *options):
    monkeypatch.chdir(lvis_root)
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *options]
    return load_config(str(repository / "configs/lvis_gal.yaml"), opts)


def test_a_detector_without_roi_heads_is_refused(lvis_root, repository, monkeypatch, tmp_path):
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path)
    with pytest.raises(UserError, match="has none behind its backbone: take a GeneralizedRCNN"):
        GALTrainer.build_judge(cfg, torch.nn.Module(), seed=0)


def test_one_weight_for_each_head(lvis_root, repository, monkeypatch, tmp_path):
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, "GAL.SCORER.HEADS", "['box']")
    with pytest.raises(UserError, match="SCORE_WEIGHTS has 2 entries, GAL.SCORER.HEADS has 1"):
        InstanceJudge(cfg, torch.nn.Module(), seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("GAL.SCORER.TARGET", "val"), "GAL.SCORER.TARGET is 'val': choose train or probe"),
        (("GAL.SCORER.GRADIENTS", "some"), "GAL.SCORER.GRADIENTS is 'some': choose needed or all"),
    ],
)
def test_options_that_make_no_sense(lvis_root, repository, monkeypatch, tmp_path, options, message):
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *options)
    with pytest.raises(UserError, match=message):
        InstanceJudge(cfg, torch.nn.Module(), seed=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["box"]),
        (("GAL.SCORER.GRADIENTS", "all"), ["box", "mask"]),
        (("GAL.SCORER.SCORE_WEIGHTS", "[0.5, 0.5]"), ["box", "mask"]),
        (("GAL.POSTERIOR.SIGNALS", "['mask_score', 'box_loss']"), ["box", "mask"]),
        (("GAL.POSTERIOR.SIGNALS", "['phi']"), ["box", "mask"]),
        (
            ("GAL.SCORER.SCORE_WEIGHTS", "[0, 0]", "GAL.POSTERIOR.SIGNALS", "['mask_loss']"),
            ["box"],
        ),
    ],
)
def test_gradients_are_taken_of_the_heads_that_something_uses(
    lvis_root, repository, monkeypatch, tmp_path, options, expected
):
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *options)
    assert gradient_heads(cfg) == expected


def judged_model(cfg) -> tuple[torch.nn.Module, InstanceJudge, list[dict]]:
    torch.manual_seed(0)
    model = build_model(cfg).train()
    judge = GALTrainer.build_judge(cfg, model, seed=0)
    judge.resume(0)
    (batch,) = itertools.islice(iter(GALTrainer.build_train_loader(cfg, seed=3)), 1)
    return model, judge, batch


SMALL = (
    *SMALL_MODEL,
    *FROM_SCRATCH,
    *("MODEL.PIXEL_STD", "[57.375,57.12,58.395]", "GAL.COPY_PASTE.MIN_PASTES", "6"),
    *("GAL.SCORER.PROBE.FRACTION", "0.0", "GAL.SCORER.LOSS_WEIGHTS", "[0.0, 0.0]"),
)


def test_probe_images_are_learnt_from_and_leave_no_trace(
    lvis_root, repository, monkeypatch, tmp_path
):
    target = ("GAL.SCORER.TARGET", "probe")
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *SMALL, *target)
    model, judge, batch = judged_model(cfg)
    probe = probe_samples(batch)
    assert len(probe) == len(batch)
    model.roi_heads.judge = None
    buffers = []
    for asked in (None, judge):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.roi_heads.judge = asked
        with EventStorage():
            if asked is not None:
                judge.start_step(0, batch)
            torch.manual_seed(1)
            model(batch)
        judge.finish_step()
        buffers.append({n: v.clone() for n, v in model.state_dict().items()})
        model.load_state_dict(state)
    assert all(torch.equal(value, buffers[1][name]) for name, value in buffers[0].items())
    expected = torch.cat([s["instances"].gt_classes for s in probe]).bincount(minlength=1203)
    assert torch.equal(judge.scorer.cache.count("box").long(), expected.clamp(max=4))
    assert len(judge.judged.contribution) == sum(s["num_pasted"] for s in batch)


def test_a_forward_outside_the_step_teaches_nothing(lvis_root, repository, monkeypatch, tmp_path):
    """A hook of the user's that computes a validation loss in training mode."""
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *SMALL)
    model, judge, batch = judged_model(cfg)
    with EventStorage():
        model(batch)  # before the first step
        assert judge.judged is None and judge.scorer.cache.count("box").sum() == 0
        judge.start_step(0, batch)
        model(batch)
        assert judge.judged is None  # nobody waits for it in the forward pass
        judge.finish_step()
        learnt, judged = judge.scorer.cache.count("box").clone(), judge.judged
        assert learnt.sum() > 0
        losses = model(batch)  # after it
    assert torch.equal(judge.scorer.cache.count("box"), learnt) and judge.judged is judged
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("GAL.ACCEPT.POLICY", "quantile"), "PERIOD is 2, but with GAL.ACCEPT.POLICY 'quantile'"),
        (("GAL.ACCEPT.POLICY", "random"), "PERIOD is 2, but with GAL.ACCEPT.POLICY 'random'"),
        (("GAL.SCORER.TARGET", "probe"), "PERIOD is 2, but GAL.SCORER.TARGET is 'probe'"),
        (
            ("GAL.ACCEPT.UNIT", "batch", "GAL.ACCEPT.POLICY", "threshold"),
            "PERIOD is 2, but GAL.ACCEPT.UNIT is 'batch', which decides",
        ),
        (("GAL.SCORER.PERIOD", "0"), "GAL.SCORER.PERIOD is 0: set it to 1 or more"),
    ],
)
def test_a_period_where_decisions_wait_for_scores_is_refused(
    lvis_root, repository, monkeypatch, tmp_path, options, message
):
    options = (*SMALL, "GAL.SCORER.PERIOD", "2", *options)
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *options)
    with pytest.raises(UserError, match=message):
        GALTrainer.build_judge(cfg, build_model(cfg), seed=0)


def test_between_scored_steps_the_judge_rests(lvis_root, repository, monkeypatch, tmp_path):
    """No head is asked, nothing exchanged, nothing learnt; the ledger has the pastes."""
    options = (*SMALL, "GAL.SCORER.PERIOD", "2", "GAL.ACCEPT.WARM_UP.MIN_AGE", "0")
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *options)
    model, judge, batch = judged_model(cfg)
    begin, begun = judge.scorer.begin, []

    def noted(*inputs):  # what asks the heads, and exchanges
        begun.append(judge.step)
        return begin(*inputs)

    monkeypatch.setattr(judge.scorer, "begin", noted)
    judged, before = [], judge.scorer.state_dict()["cache"]["step"].clone()
    for step in range(4):
        judge.start_step(step, batch)
        with EventStorage():
            model(batch)
        judge.finish_step()
        judged.append(judge.judged)
        assert int(judge.scorer.cache.state_dict()["step"] - before) == (step + 1) // 2
        assert (len(judge.posterior) > 0) == (step > 0)
    assert begun == [1, 3]
    pasted = sum(sample["num_pasted"] for sample in batch)
    for at_rest, scored_step in ((judged[0], judged[1]), (judged[2], judged[3])):
        for name in ("pool_id", "image_index", "gt_class", "area"):
            first, second = (getattr(j.contribution, name) for j in (at_rest, scored_step))
            assert torch.equal(first, second)
        assert at_rest.contribution.missing.all() and at_rest.contribution.num_rois.sum() == 0
        assert at_rest.decision.accept.all()
        # The scheduler of a generator is not told twice what one score said.
        assert not judge.helpful(at_rest.contribution, at_rest.decision)[1].any()
        assert judge.helpful(scored_step.contribution, scored_step.decision)[1].any()
    judge.ledger.flush()
    ledger = Ledger(tmp_path / "ledger")
    assert len(list((tmp_path / "ledger").iterdir())) == 1  # the rows have one schema
    by_step = ledger.aggregate(["step_bin"], step_bin=1).to_pylist()
    assert [row["count"] for row in by_step] == [pasted] * 4
    assert [row["scored"] > 0 for row in by_step] == [False, False, False, True]
    losses = pa.concat_tables(ledger.tables(["head_loss_box"]))
    known = losses.filter(losses["head_loss_box"].is_valid())
    assert set(known["step"].to_pylist()) == {1, 3}


@pytest.mark.parametrize("start", [1, 2, 3])
def test_with_a_period_a_resumed_judge_goes_on_bit_for_bit(
    lvis_root, repository, monkeypatch, tmp_path, start
):
    """From a checkpoint before a scored step or before a rest, whatever the first run did last."""
    options = (*SMALL, "GAL.SCORER.PERIOD", "2", "GAL.ACCEPT.WARM_UP.MIN_AGE", "0")
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *options)
    model, first, batch = judged_model(cfg)

    def run(judge: InstanceJudge, steps: range) -> None:
        model.roi_heads.judge = judge
        for step in steps:
            judge.start_step(step, batch)
            with EventStorage():
                model(batch)
            judge.finish_step()

    weights = copy.deepcopy(model.state_dict())
    run(first, range(start))
    first.ledger.flush()
    checkpoint = copy.deepcopy(first.state_dict())
    run(first, range(start, 4))
    first.ledger.flush()
    expected = pa.concat_tables(Ledger(tmp_path / "ledger").tables()).sort_by("step")

    model.load_state_dict(weights)
    second = GALTrainer.build_judge(cfg, model, seed=0)
    second.load_state_dict(checkpoint)
    second.resume(start)  # of the ledger it takes back what comes after the checkpoint
    run(second, range(start, 4))
    second.ledger.flush()
    assert pa.concat_tables(Ledger(tmp_path / "ledger").tables()).sort_by("step").equals(expected)
    states = [dict(leaves(judge.state_dict())) for judge in (first, second)]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 10
    assert not [name for name in states[0] if not same(states[0][name], states[1][name])]


def leaves(state: dict, name: str = "") -> Iterator[tuple[str, object]]:
    """What nested dicts hold, by path."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.{key}")
        else:
            yield f"{name}.{key}", value


def same(first: object, second: object) -> bool:
    """Bit for bit; what is not known is not known in both."""
    if not isinstance(first, torch.Tensor):
        return first == second
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(
        first.nan_to_num(), second.nan_to_num()
    )


def test_scores_of_settled_classes_are_remembered_and_decided_on(
    lvis_root, repository, monkeypatch, tmp_path
):
    monkeypatch.setattr(QuantileAccept, "MIN_COUNT", 1)
    options = (
        *("GAL.ACCEPT.WARM_UP.MIN_AGE", "2", "GAL.ACCEPT.POLICY", "quantile"),
        *("GAL.POSTERIOR.SIGNALS", "['box_score', 'mask_loss']"),
        *("GAL.POSTERIOR.WEIGHTS", "[1.0, 0.5]"),
    )
    cfg = small_config(lvis_root, repository, monkeypatch, tmp_path, *SMALL, *options)
    judge = GALTrainer.build_judge(cfg, build_model(cfg), seed=0)
    judge.resume(0)
    target = make_target([1, 1, 1, 1])
    judge.start_step(0, [{"image_id": 1, "instances": target}])
    judge.scorer.cache.num_updates[:3] = torch.tensor([2, 1, 5])
    contribution = replace(
        make_contribution([0, 0, 0, 0], [0.9, 0.5, 0.5, 0.1]),
        head_score={"box": torch.tensor([0.5, 0.25, 0.25, 0.75]), "mask": torch.zeros(4)},
        head_loss={"box": torch.zeros(4), "mask": torch.full((4,), 0.25)},
        area=torch.full((4,), 2000.0),
    )
    contribution.pool_id[2] = -1
    monkeypatch.setattr(judge.scorer, "begin", lambda *args, **options: "begun")
    monkeypatch.setattr(judge.scorer, "finish", lambda begun: (contribution, contribution))
    (rejected,) = judge({}, [target])

    # Class 1 is young, and the third is not from the pool.
    assert judge.posterior.pool_ids.tolist() == [0, 3]
    # A standard deviation below and above the level of their class, of which a third goes to the
    # prior, which is worth half a score; the masks are all the same.
    means = judge.posterior.get([0, 3]).mean
    assert means.ravel().tolist() == pytest.approx([-2 / 3, 0.0, 2 / 3, 0.0])
    decision = judge.judged.decision
    assert decision.value[[0, 3]].tolist() == pytest.approx([-2 / 3, 2 / 3])
    assert decision.undecided.tolist() == [False, True, True, False]
    # By value, not by this exposure's score.
    assert decision.accept[[0, 3]].tolist() == [False, True]
    assert rejected.tolist() == [True, False, False, False]

    other = GALTrainer.build_judge(cfg, build_model(cfg), seed=0)
    other.load_state_dict(judge.state_dict())
    assert other.posterior.pool_ids.tolist() == [0, 3]
    assert (other.posterior.get([0, 3]).mean == means).all()


def test_a_checkpoint_from_before_scoring_says_so(caplog):
    judge = object.__new__(InstanceJudge)
    judge._restored = False

    class Ledger:
        resumed_at = None

        def resume(self, step):
            self.resumed_at = step

    judge.ledger = Ledger()
    with caplog.at_level(logging.WARNING, logger="gal_d2.judging.judge"):
        judge.resume(5)
    assert "made without scoring" in caplog.text and judge.ledger.resumed_at == 5
    caplog.clear()
    judge.resume(0)  # a fresh start is nothing to warn of
    assert not caplog.text
