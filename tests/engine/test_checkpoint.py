"""A start takes what fits and says the rest; a trained model fits as a whole or is refused."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from small_model import FROM_SCRATCH, SMALL_MODEL
from torch import nn

from gal_d2.engine.checkpoint import CheckpointStore, local_weights
from gal_d2.engine.ema import ModelEMA
from gal_d2.errors import UserError
from gal_d2.setup.configuration import load_config

THREE, OTHER_THREE, FIVE = ["cup", "bun", "cat"], ["cup", "cat", "bun"], ["a", "b", "c", "d", "e"]


class Detector(nn.Module):
    """The names of a detector's layers that matter here."""

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(width, num_classes + 1)
        self.roi_heads.box_predictor.bbox_pred = nn.Linear(width, 4 * num_classes)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``store(classes, model, ...)``: a store of a model of these classes; seeds differ."""
    names: dict[str, list[str]] = {}
    no_classes: dict[str, list[str]] = {}

    class Metadata:
        def __init__(self, name: str) -> None:
            self.thing_classes = names[name]

    monkeypatch.setattr("gal_d2.engine.checkpoint.load_metadata", Metadata)
    monkeypatch.setattr("gal_d2.engine.checkpoint.names_left_out", no_classes.get)

    def make(
        classes: list[str], model: nn.Module | None = None, left_out: Sequence[str] = (), **more
    ) -> CheckpointStore:
        cfg = load_config("", ["OUTPUT_DIR", str(tmp_path)])
        names["mine"], no_classes["mine"] = classes, list(left_out)
        return CheckpointStore(model or Detector(len(classes)), cfg, "mine", **more)

    return make


def saved(store, classes: list[str], tmp_path: Path, **more) -> str:
    store(classes, **more).save("three")
    return str(tmp_path / "three.pth")


def test_a_checkpoint_keeps_classes_and_config(store, tmp_path: Path):
    checkpoint = torch.load(saved(store, THREE, tmp_path), weights_only=True)
    assert checkpoint["classes"] == THREE
    assert f"OUTPUT_DIR: {tmp_path}" in checkpoint["config"]


def test_a_trained_model_of_these_classes_loads(store, tmp_path: Path, caplog):
    path = saved(store, THREE, tmp_path)
    other = store(THREE)
    other.load_trained(path)
    stored = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(v, stored[k]) for k, v in other.model.state_dict().items())
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_another_number_of_classes(store, tmp_path: Path):
    path = saved(store, THREE, tmp_path)
    with pytest.raises(UserError, match=r"three.pth' has 3 classes, data set 'mine' 5 ") as error:
        store(FIVE).load_trained(path)
    assert "cls_score.weight is (4, 4), here (6, 4)" in str(error.value)
    assert "bbox_pred.weight is (12, 4), here (20, 4)" in str(error.value)


def test_the_number_is_known_of_a_checkpoint_without_names_too(store, tmp_path: Path):
    path = saved(store, THREE, tmp_path)
    torch.save({"model": torch.load(path)["model"]}, path)
    with pytest.raises(UserError, match=r"has 3 classes, data set 'mine' 5 "):
        store(FIVE).load_trained(path)


def test_as_many_classes_with_other_names_or_in_another_order(store, tmp_path: Path):
    path = saved(store, THREE, tmp_path)
    with pytest.raises(UserError, match=r"class 1 is 'bun' there and 'cat'.*2 of 3 differ"):
        store(OTHER_THREE).load_trained(path)


def test_the_same_classes_of_annotations_that_list_more(store, tmp_path: Path):
    """Categories without annotations are no classes, and the model is still not one for them."""
    path = saved(store, THREE, tmp_path, left_out=["things"])
    store(THREE).load_trained(path)
    store(THREE, left_out=["things"]).load_trained(path)
    with pytest.raises(
        UserError, match=r"has 3 classes, data set 'mine' lists 5 categories.* told of fox: name"
    ):
        store(THREE, left_out=["things", "fox"]).load_trained(path)
    store(THREE, left_out=["things", "fox"]).load_start(path)  # a new training may start from it


def test_without_names_there_is_a_warning(store, tmp_path: Path, caplog):
    path = saved(store, THREE, tmp_path)
    torch.save({"model": torch.load(path)["model"]}, path)
    store(OTHER_THREE).load_trained(path)
    assert "does not say which classes" in caplog.text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.pop("backbone.0.weight"), "it lacks backbone.0.weight"),
        (lambda m: m.pop("roi_heads.box_predictor.cls_score.bias"), "it lacks roi_heads.box_pred"),
        (
            lambda m: m.update({"backbone.0.weight": torch.zeros(5, 3, 1, 1)}),
            r"does not fit the model \(backbone.0.weight is \(5, 3, 1, 1\), here \(4, 3, 1, 1\)\)",
        ),
    ],
)
def test_a_model_that_fits_partly(store, tmp_path: Path, change, sentence):
    path = saved(store, THREE, tmp_path)
    checkpoint = torch.load(path)
    change(checkpoint["model"])
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=sentence):
        store(THREE).load_trained(path)


def test_more_than_the_model_has_is_said(store, tmp_path: Path, caplog):
    path = saved(store, THREE, tmp_path)
    checkpoint = torch.load(path)
    checkpoint["model"]["roi_heads.mask_head.predictor.weight"] = torch.zeros(3)
    del checkpoint["model"]["backbone.1.num_batches_tracked"]  # counts, and is not used
    torch.save(checkpoint, path)
    store(THREE).load_trained(path)
    assert "is not used: roi_heads.mask_head.predictor.weight." in caplog.text


def test_an_average_that_does_not_fit(store, tmp_path: Path):
    model = Detector(3)
    ema = ModelEMA(model, 0.9)
    ema.reset()
    path = saved(store, THREE, tmp_path, model=model, ema=ema)
    other = Detector(3)
    store(THREE, other, ema=ModelEMA(other, 0.9)).load_trained(path, ["ema"])
    checkpoint = torch.load(path)
    checkpoint["ema"]["average"] = Detector(5).state_dict()
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"an average of weights .*cls_score.*EMA.ENABLED False"):
        store(THREE, other, ema=ModelEMA(other, 0.9)).load_trained(path, ["ema"])
    store(THREE, other).load_trained(path)  # where it is not asked for, it does not matter


def test_a_model_without_an_average_is_named(store, tmp_path: Path, caplog):
    path = saved(store, THREE, tmp_path)
    model = Detector(3)
    store(THREE, model, ema=ModelEMA(model, 0.9)).load_trained(path, ["ema"])
    assert "has no average of weights (SOLVER.EMA)" in caplog.text


def test_a_start_takes_what_fits_and_says_the_rest_in_one_line(store, tmp_path: Path, caplog):
    path = saved(store, THREE, tmp_path)
    start = store(FIVE)
    start.load_start(path)
    stored = torch.load(path)["model"]
    assert torch.equal(start.model.backbone[0].weight, stored["backbone.0.weight"])
    (line,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "three.pth': 6 of 10 tensors are loaded" in line and "\n" not in line
    assert "roi_heads.box_predictor.cls_score" in line and "bbox_pred" in line


def test_a_start_leaves_the_layers_of_other_classes_out(store, tmp_path: Path, caplog):
    path = saved(store, THREE, tmp_path)
    start = store(OTHER_THREE)
    before = start.model.roi_heads.box_predictor.cls_score.weight.clone()
    start.load_start(path)
    stored = torch.load(path)["model"]
    assert torch.equal(start.model.roi_heads.box_predictor.cls_score.weight, before)
    assert torch.equal(start.model.backbone[0].weight, stored["backbone.0.weight"])
    assert "class 1 is 'bun' there and 'cat'" in caplog.text
    same = store(THREE)
    same.load_start(path)
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(same.model.state_dict()[name], stored[name])


def test_a_start_from_a_backbone_of_the_zoo(store, tmp_path: Path):
    weight = np.full((4, 3, 1, 1), 0.5, np.float32)
    with (tmp_path / "zoo.pkl").open("wb") as file:
        pickle.dump({"model": {"backbone.0.weight": weight}, "__author__": "someone"}, file)
    start = store(THREE)
    start.load_start(str(tmp_path / "zoo.pkl"))
    assert (start.model.backbone[0].weight == 0.5).all()


def test_a_start_from_what_fits_nowhere(store, tmp_path: Path):
    torch.save({"model": {"encoder.weight": torch.zeros(3)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"nothing of MODEL.WEIGHTS '.*x.pth' fits.*encoder.weight"):
        store(THREE).load_start(str(tmp_path / "x.pth"))


def test_a_start_from_nothing(store):
    store(THREE).load_start("")
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty: name the checkpoint"):
        store(THREE).load_trained("")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None, [1], {"model": {"a": "b"}}])
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_file_that_is_no_checkpoint(store, tmp_path: Path, content, suffix):
    path = tmp_path / f"x{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    for load in ("load_start", "load_trained"):
        with pytest.raises(UserError, match=rf"MODEL.WEIGHTS '.*x{suffix}' is no checkpoint"):
            getattr(store(THREE), load)(str(path))


def test_a_truncated_checkpoint(store, tmp_path: Path):
    path = Path(saved(store, THREE, tmp_path))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="is no checkpoint that can be read"):
        store(THREE).load_trained(str(path))


def test_weights_that_are_not_there(store, tmp_path: Path):
    for load in ("load_start", "load_trained"):
        with pytest.raises(
            UserError, match=r"MODEL.WEIGHTS is 'nowhere.pth', which does not exist"
        ):
            getattr(store(THREE), load)("nowhere.pth")


@pytest.mark.parametrize("url", ["detectron2://ImageNetPretrained/MSRA/R-50.pkl", "https://x.y/z"])
def test_weights_that_cannot_be_fetched(url, monkeypatch: pytest.MonkeyPatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("gal_d2.engine.checkpoint.PathManager.get_local_path", no_network)
    with pytest.raises(
        UserError, match=rf"MODEL.WEIGHTS is '{url}', which cannot be fetched \(Name or.*network"
    ):
        local_weights(url)


def test_a_url_of_no_known_kind():
    with pytest.raises(UserError, match="MODEL.WEIGHTS is 'catalog://nothing', which cannot be"):
        local_weights("catalog://nothing")


def test_the_last_checkpoint_is_gone(store, tmp_path: Path):
    Path(saved(store, THREE, tmp_path)).unlink()
    with pytest.raises(UserError, match=r"last_checkpoint names .*three.pth, which does not exist"):
        store(THREE).load_last()


def test_resuming_with_other_classes(store, tmp_path: Path):
    trainer = nn.Linear(1, 1)  # anything that has a state
    store(THREE, trainer=trainer).save("model_0000009")
    store(THREE, trainer=trainer).load_last()
    with pytest.raises(UserError, match="the checkpoint .*model_0000009.pth was trained on other"):
        store(OTHER_THREE, trainer=trainer).load_last()
    with pytest.raises(UserError, match="3 classes there, 5 in data set 'mine'"):
        store(FIVE, trainer=trainer).load_last()


# -- In the trainer


@pytest.fixture
def cfg(lvis_root: Path, repository: Path, tmp_path: Path, monkeypatch) -> CfgNode:
    from gal_d2.setup.setup import resolve_datasets

    monkeypatch.chdir(lvis_root)
    options = [*SMALL_MODEL, *FROM_SCRATCH, "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config(str(repository / "configs/lvis_baseline.yaml"), options)
    resolve_datasets(cfg)
    return cfg


def test_every_use_of_a_trained_model_checks_its_classes(cfg: CfgNode, tmp_path: Path):
    from gal_d2.engine.trainer import GALTrainer

    model = GALTrainer.build_model(cfg)
    CheckpointStore(model, cfg, "lvis_v1_train").save("whole")
    cfg.MODEL.WEIGHTS = str(tmp_path / "whole.pth")
    GALTrainer.load_model(cfg)
    GALTrainer.load_model(cfg, split="TEST")
    checkpoint = torch.load(cfg.MODEL.WEIGHTS)
    checkpoint["classes"][7] = "another"
    torch.save(checkpoint, cfg.MODEL.WEIGHTS)
    with pytest.raises(UserError, match="class 7 is 'another' there"):
        GALTrainer.load_model(cfg)
    with pytest.raises(UserError, match="class 7 is 'another' there"):
        GALTrainer.evaluate_checkpoint(cfg)
