from __future__ import annotations

import gc
import itertools
import json
import weakref

import pytest
import torch

from gal_d2.engine.loaders import training_order
from gal_d2.errors import UserError
from gal_d2.setup.configuration import load_config
from gal_d2.setup.setup import resolve_datasets, resolve_device


def test_every_config_in_the_repository_loads(repository):
    files = sorted((repository / "configs").glob("*.yaml"))
    assert len(files) >= 7
    for file in files:
        load_config(str(file))


def test_a_missing_config_file_is_named():
    with pytest.raises(UserError, match=r"'configs/nowhere.yaml' does not exist"):
        load_config("configs/nowhere.yaml")


def test_an_unknown_key_names_file_and_key(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("VERSION: 2\nGAL:\n  POOOL: 1\n")
    with pytest.raises(UserError, match=r"mine.yaml: .*GAL.POOOL"):
        load_config(str(file))


@pytest.mark.parametrize("opts", [["GAL.NOWHERE", "1"], ["SOLVER.BASE_LR"], ["SEED", "abc"]])
def test_bad_options_are_the_command_lines_fault(opts):
    with pytest.raises(UserError, match="command line option"):
        load_config("", opts)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("GAL:\n  COPY_PASTE:\n    MAX_PASTES:\n", r"GAL.COPY_PASTE.MAX_PASTES is null.*is 19"),
        (f"SOLVER:\n  MAX_ITER: {10**400}\n", r"SOLVER.MAX_ITER has the number 1000.*too large"),
    ],
)
def test_values_that_yacs_lets_through(tmp_path, line, sentence):
    (tmp_path / "c.yaml").write_text(line)
    with pytest.raises(UserError, match=sentence):
        load_config(str(tmp_path / "c.yaml"))


def test_text_over_a_null_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("GAL:\n  COPY_PASTE:\n    MIN_SIZE:\n")
    assert load_config(str(tmp_path / "c.yaml"), ["GAL.COPY_PASTE.MIN_SIZE", "5"])
    with pytest.raises(UserError, match=r"GAL.COPY_PASTE.MIN_SIZE is '': give a number"):
        load_config(str(tmp_path / "c.yaml"), ["GAL.COPY_PASTE.MIN_SIZE", ""])


def test_cuda_without_a_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config("")
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(UserError, match="MODEL.DEVICE cpu"):
        resolve_device(cfg)
    cfg.MODEL.DEVICE = "auto"
    resolve_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"


def test_own_data_takes_two_keys(lvis_root):
    """The two keys register the data and set the class count, here LVIS's files under new names."""
    data = lvis_root / "datasets"
    cfg = load_config("")
    cfg.GAL.DATA.TRAIN = (str(data / "lvis/lvis_v1_train.json"), str(data / "coco"))
    cfg.GAL.DATA.VAL = (str(data / "lvis/lvis_v1_val.json"), str(data / "coco"))
    resolve_datasets(cfg)
    assert cfg.DATASETS.TRAIN == ("gal_train",) and cfg.DATASETS.TEST == ("gal_val",)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1203


def test_evaluating_own_data_needs_no_other(lvis_root, monkeypatch, tmp_path):
    """The config's own data sets, which are not there, are not asked for."""
    monkeypatch.chdir(tmp_path)
    data = lvis_root / "datasets"
    cfg = load_config("")
    cfg.DATASETS.TEST = ("lvis_v1_val",)
    cfg.GAL.DATA.VAL = (str(data / "lvis/lvis_v1_val.json"), str(data / "coco"))
    resolve_datasets(cfg, split="TEST")
    assert cfg.DATASETS.TEST == ("gal_val",) and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1203


def test_half_a_pair_is_an_error():
    cfg = load_config("")
    cfg.GAL.DATA.TRAIN = ("annotations.json",)
    with pytest.raises(UserError, match="give two paths"):
        resolve_datasets(cfg)


def test_own_data_without_validation_is_not_evaluated(lvis_root):
    """The config's own test set is of other data."""
    data = lvis_root / "datasets"
    cfg = load_config("")
    cfg.DATASETS.TEST = ("lvis_v1_val",)
    cfg.GAL.DATA.TRAIN = (str(data / "lvis/lvis_v1_train.json"), str(data / "coco"))
    resolve_datasets(cfg)
    assert cfg.DATASETS.TEST == ()
    with pytest.raises(UserError, match=r"DATASETS\.TEST is empty: give GAL\.DATA\.VAL"):
        resolve_datasets(cfg, split="TEST")


def test_an_exporters_root_category_is_no_class(tmp_path):
    content = {
        "images": [{"id": 1, "height": 20, "width": 20, "file_name": "1.png"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]]}
        ],
        "categories": [{"id": 0, "name": "things"}, {"id": 1, "name": "bun"}],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    (tmp_path / "1.png").touch()
    cfg = load_config("")
    cfg.GAL.DATA.TRAIN = (str(path), str(tmp_path))
    resolve_datasets(cfg)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_the_loader_lets_go_of_the_annotations(sampler):
    """As Python objects they would fill each process's memory."""

    class Record(dict):  # a plain dict cannot be watched
        pass

    cfg = load_config("", ["DATALOADER.SAMPLER_TRAIN", sampler])
    dicts = [Record(annotations=[{"category_id": k % 2}]) for k in range(4)]
    watched = [weakref.ref(record) for record in dicts]
    order = training_order(cfg, dicts)
    del dicts
    gc.collect()
    assert not any(record() for record in watched)
    assert set(itertools.islice(iter(order(3)), 40)) == {0, 1, 2, 3}
    first, second = (list(itertools.islice(iter(order(3)), 20)) for _ in range(2))
    assert first == second
