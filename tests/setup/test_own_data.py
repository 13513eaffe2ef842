"""What configs/own_data.yaml leaves open is derived from the data and the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode

from gal_d2.errors import UserError
from gal_d2.setup import own_data
from gal_d2.setup.config_check import check_config
from gal_d2.setup.configuration import load_config
from gal_d2.setup.own_data import derive
from gal_d2.setup.setup import resolve_datasets, resolve_device


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "weights_are_cached", lambda: False)
    monkeypatch.setattr(own_data, "weights_can_be_fetched", lambda: False)


def write_data(folder: Path, images: int, objects: int) -> Path:
    """A COCO file whose images have ``objects`` squares each."""
    square = [[2.0, 2.0, 9.0, 2.0, 9.0, 9.0, 2.0, 9.0]]
    content = {
        "categories": [{"id": 1, "name": "bun"}, {"id": 2, "name": "boot"}],
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(images)
        ],
        "annotations": [
            {
                "id": i * objects + k,
                "image_id": i,
                "category_id": 1 + k % 2,
                "segmentation": square,
                "bbox": [2.0, 2.0, 7.0, 7.0],
                "area": 49.0,
                "iscrowd": 0,
            }
            for i in range(images)
            for k in range(objects)
        ],
    }
    (folder / "images").mkdir(exist_ok=True)
    for i in range(images):
        (folder / f"images/{i}.png").touch()
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def config(repository: Path, folder: Path, *opts: str) -> CfgNode:
    cfg = load_config(str(repository / "configs/own_data.yaml"), ["MODEL.DEVICE", "cpu", *opts])
    cfg.GAL.DATA.TRAIN = (str(folder / "train.json"), str(folder / "images"))
    resolve_datasets(cfg)
    resolve_device(cfg)
    return cfg


def test_eight_images_on_a_cpu_without_a_network(repository: Path, tmp_path: Path) -> None:
    cfg = config(repository, write_data(tmp_path, 8, 3))
    derived = derive(cfg)
    check_config(cfg)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (2, 120)  # 30 passes
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD) == (12, 24)
    assert cfg.TEST.EVAL_PERIOD == 0  # nothing to evaluate on
    # What is pasted is drawn by what is found out, soon enough for so short a training.
    assert cfg.GAL.POOL.SAMPLER == "posterior"
    assert (cfg.GAL.SNAPSHOTS.PERIOD, cfg.GAL.AUDITION.PERIOD) == (10, 10)
    assert cfg.GAL.COPY_PASTE.MAX_PASTES == 6  # twice as many as there are objects
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT) == ("", 0)
    # Each is said.
    assert "SOLVER.MAX_ITER 120" in derived and 'MODEL.WEIGHTS ""' in derived


def test_what_the_user_sets_stays_and_takes_part(repository: Path, tmp_path: Path) -> None:
    own = ["SOLVER.MAX_ITER", "1000", "SOLVER.IMS_PER_BATCH", "4", "GAL.DATA.LSJ.IMAGE_SIZE", "96"]
    cfg = config(repository, write_data(tmp_path, 3, 1), *own)
    derived = derive(cfg)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (1000, 4)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (96, 160)
    assert cfg.SOLVER.WARMUP_ITERS == 100
    assert not any(line.startswith("SOLVER.MAX_ITER") for line in derived)


def test_larger_sets_get_larger_batches_and_more_steps(repository: Path, tmp_path: Path) -> None:
    cfg = config(repository, write_data(tmp_path, 3, 1))
    cfg.MODEL.DEVICE = "cuda"
    size = own_data.DataSize(images=10_000, objects=80_000, evaluates=True)
    values = own_data._values(cfg, size, processes=8)
    assert values["SOLVER.IMS_PER_BATCH"] == 16 and values["SOLVER.MAX_ITER"] == 18_750
    assert values["TEST.EVAL_PERIOD"] == values["SOLVER.CHECKPOINT_PERIOD"] == 3_750
    assert values["GAL.COPY_PASTE.MAX_PASTES"] == 16
    assert values["GAL.AUDITION.PERIOD"] == values["GAL.SNAPSHOTS.PERIOD"] == 100
    cfg.DATALOADER.NUM_WORKERS = 64  # they make 128 samples ahead
    assert own_data._values(cfg, size, processes=8)["GAL.SNAPSHOTS.PERIOD"] == 128
    # A batch is shared by all processes, whatever their number.
    assert own_data._values(cfg, size, processes=3)["SOLVER.IMS_PER_BATCH"] % 3 == 0


def test_weights_that_are_there_are_taken(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_data, "weights_are_cached", lambda: True)
    cfg = config(repository, write_data(tmp_path, 3, 1))
    derive(cfg)
    assert cfg.MODEL.WEIGHTS.endswith("R-50.pkl")
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NORM) == (50, "FrozenBN")


def test_a_model_is_built_as_its_run_built_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained from scratch; then the weights came, and its checkpoint is looked at."""
    cfg = config(repository, write_data(tmp_path, 3, 1))
    derive(cfg)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text(cfg.dump())
    monkeypatch.setattr(own_data, "weights_are_cached", lambda: True)
    weights = str(tmp_path / "out/model_final.pth")
    scoring = config(repository, tmp_path, "MODEL.WEIGHTS", weights)
    derive(scoring)
    assert weights == scoring.MODEL.WEIGHTS
    assert scoring.MODEL.RESNETS == cfg.MODEL.RESNETS
    assert scoring.MODEL.FPN.OUT_CHANNELS == cfg.MODEL.FPN.OUT_CHANNELS
    resumed = config(repository, tmp_path, "OUTPUT_DIR", str(tmp_path / "out"))
    derive(resumed, resume=True)
    assert (resumed.MODEL.WEIGHTS, resumed.MODEL.RESNETS) == ("", cfg.MODEL.RESNETS)


def test_other_configs_leave_nothing_open(repository: Path) -> None:
    cfg = load_config(str(repository / "configs/lvis_gal.yaml"))
    before = yaml.safe_load(cfg.dump())
    assert derive(cfg) == [] and yaml.safe_load(cfg.dump()) == before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", float("nan"), "SOLVER.BASE_LR is nan: set it to a finite number"),
        ("SOLVER.IMS_PER_BATCH", -2, "SOLVER.IMS_PER_BATCH is -2: set it to 1 or more"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "choose from WarmupCosineLR"),
        ("INPUT.MIN_SIZE_TRAIN", (), "give pixels"),
        ("GAL.DATA.LSJ.MIN_SCALE", 3.0, "above MAX_SCALE, 2.0: exchange them"),
        ("OUTPUT_DIR", "", "OUTPUT_DIR is empty"),
    ],
)
def test_values_that_make_no_sense_are_named(key: str, value: object, message: str) -> None:
    cfg = load_config("")
    check_config(cfg)
    own_data._set(cfg, key, value)
    with pytest.raises(UserError, match=message):
        check_config(cfg)
