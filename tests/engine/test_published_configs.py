"""The configs of the published settings: what they say, and that each of them trains."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from small_model import FROM_SCRATCH, SMALL_MODEL

from gal_d2.modeling.roi_heads import GALCascadeROIHeads
from gal_d2.setup.configuration import load_config

MODELS = ("r50", "swinl")
CONDITIONS = ("baseline", "copypaste", "batch", "gal")
TRAINING_IMAGES = 100_170
SIZES = {"r50": 640, "swinl": 896}
STEPS = {"r50": (90_000, 64, 57.5), "swinl": (180_000, 16, 28.8)}


def load(repository, model: str, condition: str, options=()):
    return load_config(str(repository / f"configs/lvis_{model}_{condition}.yaml"), list(options))


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("model", MODELS)
def test_the_settings_are_the_published_ones(repository, model, condition):
    cfg = load(repository, model, condition)
    steps, images, epochs = STEPS[model]
    assert (steps, images) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH)
    assert round(steps * images / TRAINING_IMAGES, 1) == epochs
    assert SIZES[model] == cfg.GAL.DATA.LSJ.IMAGE_SIZE
    assert tuple(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS) == (0.6, 0.7, 0.8)
    assert cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE and cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001
    assert cfg.SOLVER.EMA.ENABLED and cfg.SOLVER.EMA.DECAY == 0.999
    assert f"output/lvis_{model}_{condition}" == cfg.OUTPUT_DIR
    if condition != "baseline":
        assert (cfg.GAL.COPY_PASTE.MIN_PASTES, cfg.GAL.COPY_PASTE.MAX_PASTES) == (0, 19)


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_model_is_built(repository, model):
    """On no device: of the size that is trained, in no time."""
    cfg = load(repository, model, "gal", ["MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", "False"])
    if cfg.MODEL.TIMM.NAME:
        cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    with torch.device("meta"):
        built = build_model(cfg)
    assert isinstance(built.roi_heads, GALCascadeROIHeads)
    assert [m.thresholds[1] for m in built.roi_heads.proposal_matchers] == [0.6, 0.7, 0.8]
    assert all(p.cls_score.out_features == 1204 for p in built.roi_heads.box_predictor)
    assert built.roi_heads.mask_head.predictor.out_channels == 1
    millions = sum(p.numel() for p in built.backbone.bottom_up.parameters()) / 1e6
    # Published without the classifier: 23.5 and 195 million; frozen norms have no parameters here.
    assert millions == pytest.approx({"r50": 23.5, "swinl": 195}[model], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("model", MODELS)
def test_each_config_takes_a_step(train, lvis_root, tmp_path, model, condition):
    """At reduced size; Swin-L as its smallest relative."""
    options = [*SMALL_MODEL, *FROM_SCRATCH, "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0"]
    options += ["OUTPUT_DIR", str(tmp_path), "GAL.SCORER.PICTURE_PERIOD", "0"]
    options += ["DATASETS.TEST", "()", "GAL.AUDITION.PERIOD", "1"]
    if model == "swinl":
        name = "swin_tiny_patch4_window7_224"
        options += ["MODEL.TIMM.NAME", name, "MODEL.TIMM.PRETRAINED", "False"]
    trainer = train(lvis_root, f"lvis_{model}_{condition}", *options)
    assert trainer.iter == 1 and (tmp_path / "model_final.pth").is_file()
