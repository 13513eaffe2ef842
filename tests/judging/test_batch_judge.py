"""The published recipe: what it compares, what it does with the answer, and no trace of it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.copy_paste.fields import InstanceSource
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.judging.batch_judge import BatchJudge, classification_gradient, trainable
from gal_d2.selection.ledger import Ledger
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import launch

# All proposals are sampled: nothing depends on chance.
ALL_ROIS = (
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "512", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
)
OPTIONS = (
    *SMALL_MODEL,
    *FROM_SCRATCH,
    *("MODEL.PIXEL_STD", "[57.375,57.12,58.395]", "SOLVER.AMP.ENABLED", "False"),
    *("GAL.SCORER.PROBE.FRACTION", "0.0", "GAL.COPY_PASTE.MIN_PASTES", "2"),
    *("GAL.COPY_PASTE.MAX_PASTES", "4", "SOLVER.IMS_PER_BATCH", "4"),
)


@pytest.fixture
def config(lvis_root, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(lvis_root)

    def make(*options: str):
        options = [*OPTIONS, "OUTPUT_DIR", str(tmp_path / "output"), *options]
        return load_config(str(repository / "configs/lvis_batch.yaml"), options)

    return make


def make_model(cfg):
    torch.manual_seed(0)
    return build_model(cfg).train()


def make_batches(cfg, count: int = 1) -> list[list[dict]]:
    return list(itertools.islice(iter(GALTrainer.build_train_loader(cfg, seed=3)), count))


def is_pasted(sample: dict) -> torch.Tensor:
    return sample["instances"].instance_source == InstanceSource.PASTED


def test_samples_bring_what_is_needed(config):
    ((first, *_),) = make_batches(config())
    pasted = set(first["instances"].gt_classes[is_pasted(first)].tolist())
    (probe,) = first["probe"]
    assert pasted & set(probe["instances"].gt_classes.tolist())
    assert not is_pasted(probe).any() and probe["num_pasted"] == 0
    assert is_pasted(first).any() and not is_pasted(first["unpasted"]).any()


def test_gradient_is_that_of_the_models_own_loss(config):
    cfg = config(
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "False", "MODEL.RESNETS.NORM", "FrozenBN", *ALL_ROIS
    )
    model, (batch,) = make_model(cfg), make_batches(cfg)
    with EventStorage():
        loss = model(batch)["loss_cls"]
    expected = torch.autograd.grad(loss, trainable(model), allow_unused=True)
    expected = torch.cat(
        [
            torch.zeros(w.numel()) if g is None else g.flatten()
            for g, w in zip(expected, trainable(model), strict=True)
        ]
    )
    result = classification_gradient(model, batch, pasted_only=False)
    assert result.num_rois > 100
    torch.testing.assert_close(result.total / result.num_rois, expected, rtol=1e-3, atol=1e-6)


def test_images_add_up_and_background_does_not_count(config):
    cfg = config(*ALL_ROIS)
    model, (batch,) = make_model(cfg), make_batches(cfg)
    together = classification_gradient(model, batch, pasted_only=True)
    alone = [classification_gradient(model, [sample], pasted_only=True) for sample in batch]
    torch.testing.assert_close(
        sum(part.total for part in alone), together.total, rtol=1e-3, atol=1e-5
    )
    assert sum(part.num_rois for part in alone) == together.num_rois
    for counts, sample in zip(together.rois_of, batch, strict=True):
        assert (counts[is_pasted(sample)] >= 1).all()  # its own box is among the proposals
        assert (counts[~is_pasted(sample)] == 0).all()
    assert sum(int(counts.sum()) for counts in together.rois_of) == together.num_rois
    nothing = classification_gradient(
        model, [sample["unpasted"] for sample in batch], pasted_only=True
    )
    assert nothing.num_rois == 0 and nothing.total.abs().sum() == 0


def test_a_pass_leaves_no_trace(config):
    cfg = config()
    model, (batch,) = make_model(cfg), make_batches(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    with EventStorage() as storage:
        classification_gradient(model, batch, pasted_only=False)
        assert not storage.latest()
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(module.training for module in model.modules())
    assert not batch[0]["instances"].has("gt_index")


def test_lower_precision_points_the_same_way(config):
    cfg = config(*ALL_ROIS)
    model, (batch,) = make_model(cfg), make_batches(cfg)
    full, half = (
        classification_gradient(
            model, batch, pasted_only=False, autocast_dtype=dtype, loss_scale=scale
        ).total
        for dtype, scale in ((None, 1.0), (torch.bfloat16, 1024.0))
    )
    assert torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.98
    assert half.norm() / full.norm() == pytest.approx(1.0, abs=0.1)


def test_every_stage_of_a_cascade_counts(config):
    cfg = config(
        *("MODEL.ROI_HEADS.NAME", "GALCascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
    )
    model, (batch,) = make_model(cfg), make_batches(cfg)
    result = classification_gradient(model, batch, pasted_only=False)
    assert result.num_rois > 2 * cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE * len(batch)
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    parts = result.total.split([w.numel() for w in trainable(model)])
    norms = {name: part.norm() for name, part in zip(names, parts, strict=True)}
    for stage in range(3):
        assert norms[f"roi_heads.box_predictor.{stage}.cls_score.weight"] > 0
    assert norms["backbone.bottom_up.stem.conv1.weight"] > 0
    assert all(norm == 0 for name, norm in norms.items() if "mask" in name or "rpn" in name)


def test_a_rejected_batch_is_replaced_by_its_images_without_pastes(config, tmp_path):
    cfg = config("GAL.ACCEPT.THRESHOLD", "2.0", *ALL_ROIS)  # no cosine reaches it
    judge = BatchJudge(cfg, make_model(cfg), seed=0)
    judge.resume(0)
    (batch,) = make_batches(cfg)
    result = judge.start_step(0, batch)
    assert all(new is sample["unpasted"] for new, sample in zip(result, batch, strict=True))
    assert not judge.decision.accept and -1 <= judge.decision.cosine <= 1
    judge.ledger.flush()
    (rows,) = (table.to_pydict() for table in Ledger(tmp_path / "output/ledger").tables())
    assert len(rows["pool_id"]) == sum(sample["num_pasted"] for sample in batch)
    assert rows["score"] == pytest.approx([judge.decision.cosine] * len(rows["score"]))
    assert set(rows["accept"]) == {False} and set(rows["threshold"]) == {2.0}
    assert set(rows["policy"]) == {"threshold"} and min(rows["num_rois"]) >= 1
    expected = [i for s in batch for i in s["instances"].pool_id[is_pasted(s)].tolist()]
    assert rows["pool_id"] == expected
    assert judge.metrics() == {"gal/threshold": 2.0}


def test_an_accepted_batch_stays(config):
    cfg = config("GAL.ACCEPT.THRESHOLD", "-1.0")
    judge = BatchJudge(cfg, make_model(cfg), seed=0)
    (batch,) = make_batches(cfg)
    assert judge.start_step(0, batch) is batch and judge.decision.accept


def test_without_pastes_there_is_nothing_to_reject(config):
    cfg = config("GAL.ACCEPT.THRESHOLD", "2.0", "GAL.COPY_PASTE.MIN_PASTES", "0")
    cfg.GAL.COPY_PASTE.MAX_PASTES = 0
    judge = BatchJudge(cfg, make_model(cfg), seed=0)
    (batch,) = make_batches(cfg)
    assert judge.start_step(0, batch) is batch
    assert math.isnan(judge.decision.cosine) and judge.cache.value is None
    assert len(judge.judged.contribution) == 0 and judge.metrics() == {}


def test_a_gradient_that_is_not_finite_is_named_and_left_out(config, caplog):
    cfg = config("GAL.ACCEPT.THRESHOLD", "2.0")
    judge = BatchJudge(cfg, make_model(cfg), seed=0)
    judge.loss_scale = lambda: math.inf  # as if fp16 had overflowed
    (batch,) = make_batches(cfg)
    assert judge.start_step(0, batch) is batch
    assert judge.cache.value is None and math.isnan(judge.decision.cosine)
    assert "whole-model gradient on probe images is not finite" in caplog.text
    assert f"image {batch[0]['image_id']}" in caplog.text


def test_state_is_restored(config, caplog):
    cfg = config("GAL.ACCEPT.POLICY", "percentile")
    judge = BatchJudge(cfg, make_model(cfg), seed=0)
    batches = make_batches(cfg, 3)
    for step, batch in enumerate(batches[:2]):
        judge.start_step(step, batch)
    other = BatchJudge(cfg, make_model(cfg), seed=0)
    other.load_state_dict(judge.state_dict())
    for each in (judge, other):
        each.start_step(2, batches[2])
    assert other.decision.cosine == judge.decision.cosine
    assert torch.equal(other.cache.value, judge.cache.value)
    recent = [each.rule.state_dict()["recent"] for each in (judge, other)]
    for key, tensor in recent[0].items():
        assert torch.equal(tensor.nan_to_num(), recent[1][key].nan_to_num())
    fresh = BatchJudge(cfg, make_model(cfg), seed=0)
    fresh.load_state_dict({"scorer": {}, "policy": {}})
    assert "made with GAL.ACCEPT.UNIT 'instance'" in caplog.text and fresh.cache.value is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("GAL.ACCEPT.UNIT", "image"), "UNIT is 'image': choose instance or batch"),
        (("GAL.ACCEPT.POLICY", "quantile"), "'batch' set it to one of percentile, threshold"),
        (("GAL.ACCEPT.BATCH_MOMENTUM", "1.0"), r"BATCH_MOMENTUM is 1.0: .*\[0, 1\)"),
        (("MODEL.ROI_HEADS.NAME", "StandardROIHeads"), "GALROIHeads or GALCascadeROIHeads"),
        (("GAL.COPY_PASTE.ENABLED", "False"), "COPY_PASTE.ENABLED is off"),
    ],
)
def test_options_that_make_no_sense(config, options, message):
    cfg = config(*options)
    with pytest.raises(UserError, match=message):
        GALTrainer.build_judge(cfg, make_model(cfg), seed=0)


def judge_batches(cfg, folder) -> None:
    judge = BatchJudge(cfg, make_model(cfg), seed=0)
    decisions = []
    for step, batch in enumerate(make_batches(cfg, 3)):
        judge.start_step(step, batch)
        decisions.append((judge.decision.cosine, judge.decision.accept))
    name = f"{comm.get_world_size()}-{comm.get_rank()}.pth"
    torch.save({"decisions": decisions, "cache": judge.cache.value}, folder / name)


def test_the_number_of_processes_does_not_matter(config, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cfg = config()
    launch(judge_batches, num_gpus=0, num_cpu_processes=2, args=(cfg, tmp_path))
    launch(judge_batches, num_gpus=0, num_cpu_processes=1, args=(cfg, tmp_path))
    one, *two = (torch.load(tmp_path / f"{name}.pth") for name in ("1-0", "2-0", "2-1"))
    assert two[0]["decisions"] == two[1]["decisions"]
    assert torch.equal(two[0]["cache"], two[1]["cache"])
    for (cosine, accept), (expected, expected_accept) in zip(
        two[0]["decisions"], one["decisions"], strict=True
    ):
        assert cosine == pytest.approx(expected, abs=1e-4) and accept == expected_accept
    torch.testing.assert_close(two[0]["cache"], one["cache"], rtol=1e-3, atol=1e-6)
