"""Copy-paste in a plain detectron2 script, as docs/copy_paste.md shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from pycocotools import mask as mask_utils

import gal_d2
from gal_d2.copy_paste.stand_alone import measure_dicts
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource

NAME = "somebodys_train"
CATEGORIES = {3: "bun", 8: "boot"}  # ids as in their JSON
SIDE = 64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Somebody's COCO file and images, and their pool, whose category ids are others."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(4):
        file_name = f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(file_name)
        images.append({"id": number, "file_name": file_name, "height": SIDE, "width": SIDE})
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": (3, 8)[number % 2],
                "bbox": [8, 8, 32, 16],
                "area": 512,
                "iscrowd": 0,
                "segmentation": [[8, 8, 40, 8, 40, 24, 8, 24]],
            }
        )
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    Path("train.json").write_text(json.dumps(content))
    with gal_d2.PoolWriter("mine/pool", names={1: "boot", 2: "bun"}) as writer:
        for number in range(6):
            rgba = rng.integers(0, 255, (20, 24, 4), dtype=np.uint8)
            rgba[2:-2, 2:-2, 3] = 255
            writer.add(1, rgba, source=CutOutSource("test", seed=number))
    register_coco_instances(NAME, {}, "train.json", str(tmp_path))
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def plain_config() -> CfgNode:
    """A small Mask R-CNN without any key of GAL-D2."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN = (SIDE,)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CATEGORIES)
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 2
    cfg.OUTPUT_DIR = "output"
    return cfg


def test_the_documents_script_trains_on_pasted_objects(folder: Path, repository: Path) -> None:
    text = (repository / "docs/copy_paste.md").read_text()
    namespace: dict = {}
    exec(re.search(r"```python\n(import gal_d2.*?)```", text, re.S)[1], namespace)
    Path("output").mkdir()
    trainer = namespace["Trainer"](plain_config())
    batches = []
    forward = trainer.model.forward

    def forward_and_keep(batch: list[dict]) -> dict:
        batches.append(batch)
        return forward(batch)

    trainer.model.forward = forward_and_keep
    trainer.train()

    assert trainer.iter == 2 and len(batches) == 2
    samples = [sample for batch in batches for sample in batch]
    pasted = [s["instances"][s["instances"].instance_source == 1] for s in samples]
    assert sum(map(len, pasted)) > 0
    # The pool's category 1 is "boot", the second class of the data set.
    assert all((instances.gt_classes == 1).all() for instances in pasted)
    losses = trainer.storage.latest()
    assert np.isfinite(losses["total_loss"][0]) and losses["loss_mask"][0] > 0


def test_options_and_augmentations_of_ones_own(folder: Path) -> None:
    options = gal_d2.PasteOptions(min_pastes=3, max_pastes=3, min_visible_area=0, max_box_shift=99)
    mapper = gal_d2.CopyPasteMapper.from_pool(
        plain_config(), "mine/pool", augmentations=[], options=options
    )
    sample = mapper({**DatasetCatalog.get(NAME)[0], "sample_seed": 1})
    assert sample["image"].shape == (3, SIDE, SIDE)
    assert 0 < sample["num_pasted"] <= 3


def test_sizes_are_those_of_the_data_set() -> None:
    square = np.zeros((10, 10), np.uint8, order="F")
    square[:5, :2] = 1
    record = {
        "height": 10,
        "width": 10,
        "annotations": [
            {"category_id": 0, "segmentation": [[0, 0, 5, 0, 5, 5, 0, 5]]},
            {"category_id": 0, "segmentation": mask_utils.encode(square)},
            {"category_id": 0, "segmentation": {"counts": [91, 9], "size": [10, 10]}},
            {"category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]], "iscrowd": 1},
            {"category_id": 1, "bbox": [0, 0, 5, 5]},
        ],
    }
    measured = measure_dicts([{"height": 5, "width": 5}, record], 2)
    assert measured.instance_count.tolist() == [3, 0]
    assert measured.image_count.tolist() == [1, 0]
    assert measured.scale_mean[0] == pytest.approx((0.5 + 0.1**0.5 + 0.3) / 3)


@pytest.mark.parametrize(
    "record, message",
    [
        ({"file_name": "a.png", "annotations": []}, "a.png has no 'height' and 'width'"),
        (
            {
                "file_name": "a.png",
                "height": 5,
                "width": 5,
                "annotations": [{"category_id": 2, "segmentation": [[0, 0, 1, 0, 1, 1]]}],
            },
            "a.png has category_id 2, but there are 2 classes",
        ),
    ],
)
def test_dicts_that_cannot_be_measured_are_named(record: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_dicts([record], 2)


def test_what_it_cannot_do_is_said(folder: Path) -> None:
    cfg = plain_config()
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(UserError, match="KEYPOINT_ON is True"):
        gal_d2.CopyPasteMapper.from_pool(cfg, "mine/pool")
    cfg = plain_config()
    DatasetCatalog.register("nameless", lambda: [])
    cfg.DATASETS.TRAIN = ("nameless",)
    try:
        with pytest.raises(UserError, match="'nameless' .* has no class names"):
            gal_d2.CopyPasteMapper.from_pool(cfg, "mine/pool")
    finally:
        DatasetCatalog.remove("nameless")
