"""Derives what configs/own_data.yaml leaves open from the data set's size and the machine.

A value that is open is 0, -1 or "auto" there, where these mean nothing; what a user sets stays.
"""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from gal_d2.datasets.registration import load_annotation_file
from gal_d2.selection.snapshots import PREFETCH_FACTOR

# 30 passes over the training set, as for LVIS; small sets need some hundred steps all the same.
_PASSES = 30
_STEPS = {"cpu": (100, 20_000), "cuda": (1_000, 180_000)}
_IMAGE_SIZE = {"cpu": 320, "cuda": 640}
# AdamW's for 16 images; a model from scratch stands a higher one.
_RATE = 1e-4
_RATE_FROM_SCRATCH = 5e-4
_IMAGENET = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
_CACHED = "detectron2/ImageNetPretrained/MSRA/R-50.pkl"
_SERVER = ("dl.fbaipublicfiles.com", 443)


# What _choose_weights decides on besides the weights.
_MODEL_KEYS = (
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.RESNETS.NORM",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.PIXEL_STD",
    "MODEL.FPN.OUT_CHANNELS",
    "MODEL.ROI_BOX_HEAD.FC_DIM",
    "MODEL.ROI_MASK_HEAD.CONV_DIM",
    "MODEL.ROI_MASK_HEAD.NUM_CONV",
)


@dataclass(frozen=True)
class DataSize:
    """What the rules look at.

    Attributes:
        images: of the training set.
        objects: of these, without crowds.
        evaluates: whether there is a set to evaluate on.
    """

    images: int
    objects: int
    evaluates: bool


def derive(cfg: CfgNode, processes: int = 1, *, resume: bool = False) -> list[str]:
    """Fill in what is open; ``MODEL.DEVICE`` is known, and ``DATASETS`` are registered.

    Args:
        cfg: changed in place; another config than own_data.yaml leaves nothing open.
        processes: that share a batch.
        resume: a run in OUTPUT_DIR goes on; its model stays what it is.

    Returns:
        "KEY VALUE" of each value that was filled in.
    """
    before = {key: _get(cfg, key) for key in _OPEN}
    if not any(value == _OPEN[key] for key, value in before.items()):
        return []
    contents = [load_annotation_file(name) for name in cfg.DATASETS.TRAIN]
    size = DataSize(
        images=sum(len(content.images) for content in contents),
        objects=sum(content.annotations.num_objects for content in contents),
        evaluates=bool(cfg.DATASETS.TEST),
    )
    derived = []
    is_open = before["MODEL.WEIGHTS"] == _OPEN["MODEL.WEIGHTS"]
    folder = Path(cfg.OUTPUT_DIR) if is_open else Path(cfg.MODEL.WEIGHTS).parent
    adopted = (resume or not is_open) and adopt_model(cfg, folder)
    if is_open and not adopted:
        derived += _choose_weights(cfg)
    for key, value in _values(cfg, size, processes).items():
        if before[key] == _OPEN[key]:
            _set(cfg, key, value)
            derived.append(f"{key} {value}")
    return derived


# Each key that own_data.yaml leaves open, and the value that says so.
_OPEN: dict[str, object] = {
    "MODEL.WEIGHTS": "auto",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": -1.0,
    "DATALOADER.REPEAT_THRESHOLD": -1.0,
    "DATALOADER.NUM_WORKERS": -1,
    "INPUT.MIN_SIZE_TEST": -1,
    "INPUT.MAX_SIZE_TEST": -1,
    "GAL.DATA.LSJ.IMAGE_SIZE": 0,
    "GAL.COPY_PASTE.MAX_PASTES": -1,
    "GAL.SCORER.PICTURE_PERIOD": -1,
    "GAL.SNAPSHOTS.PERIOD": 0,
    "GAL.AUDITION.PERIOD": 0,
    "SOLVER.IMS_PER_BATCH": 0,
    "SOLVER.MAX_ITER": 0,
    "SOLVER.BASE_LR": 0.0,
    "SOLVER.WARMUP_ITERS": -1,
    "SOLVER.CHECKPOINT_PERIOD": 0,
    "TEST.EVAL_PERIOD": -1,
}


def _values(cfg: CfgNode, size: DataSize, processes: int) -> dict[str, object]:
    """What each open key gets; those that the user has set take part in the rules."""
    kind = "cuda" if cfg.MODEL.DEVICE.startswith("cuda") else "cpu"

    def known(key: str, derived: object) -> object:
        value = _get(cfg, key)
        return derived if value == _OPEN[key] else value

    batch = 16 if size.images >= 5_000 else 8 if size.images >= 500 else 4
    batch = min(batch, 2) if kind == "cpu" else batch
    batch = known("SOLVER.IMS_PER_BATCH", max(1, round(batch / processes)) * processes)
    least, most = _STEPS[kind]
    steps = math.ceil(_PASSES * size.images / max(batch, 1))
    steps = known("SOLVER.MAX_ITER", min(max(steps, least), most))
    # Five looks at the validation set, and as many checkpoints.
    period = max(1, math.ceil(steps / 5))
    side = known("GAL.DATA.LSJ.IMAGE_SIZE", _IMAGE_SIZE[kind])
    short = known("INPUT.MIN_SIZE_TEST", side)
    workers = known("DATALOADER.NUM_WORKERS", 0 if kind == "cpu" else min(4, os.cpu_count() or 1))
    # What is found out is used within a fiftieth of the training, but not before the samples that
    # the workers have made ahead are used up.
    loop = max(min(math.ceil(steps / 50), 100), 10, PREFETCH_FACTOR * workers)
    rate = _RATE if cfg.MODEL.WEIGHTS else _RATE_FROM_SCRATCH
    per_image = size.objects / max(size.images, 1)
    return {
        # Rare categories of a small set matter as those of LVIS: of two in a hundred images on,
        # an image is not repeated.
        "DATALOADER.REPEAT_THRESHOLD": 0.001 if size.images >= 50_000 else 0.02,
        "DATALOADER.NUM_WORKERS": workers,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001 if size.images >= 50_000 else 0.01,
        "INPUT.MIN_SIZE_TEST": short,
        "INPUT.MAX_SIZE_TEST": round(short * 5 / 3),
        "GAL.DATA.LSJ.IMAGE_SIZE": side,
        # As many as there are real objects, on average.
        "GAL.COPY_PASTE.MAX_PASTES": max(
            int(min(max(round(2 * per_image), 4), 19)), cfg.GAL.COPY_PASTE.MIN_PASTES
        ),
        "GAL.SCORER.PICTURE_PERIOD": max(20, math.ceil(steps / 20)),
        "GAL.SNAPSHOTS.PERIOD": loop,
        "GAL.AUDITION.PERIOD": loop,
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.BASE_LR": float(f"{rate * math.sqrt(batch / 16):.2g}"),
        "SOLVER.WARMUP_ITERS": min(1_000, steps // 10),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period if size.evaluates else 0,
    }


def _choose_weights(cfg: CfgNode) -> list[str]:
    """ImageNet's for the ResNet-50, from where they are; else a smaller model from scratch."""
    if cfg.MODEL.TIMM.NAME:
        cfg.MODEL.WEIGHTS = ""  # timm brings its own
        return ['MODEL.WEIGHTS ""']
    if cfg.MODEL.RESNETS.DEPTH == 50 and (weights_are_cached() or weights_can_be_fetched()):
        cfg.MODEL.WEIGHTS = _IMAGENET
        return [f"MODEL.WEIGHTS {_IMAGENET}"]
    # Frozen random layers and frozen statistics of batch normalisation would learn nothing.
    cfg.MODEL.WEIGHTS = ""
    changes: dict[str, object] = {
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    }
    if cfg.MODEL.RESNETS.DEPTH == 50 and cfg.MODEL.DEVICE == "cpu":
        # A trial: the whole model would take hours, and learn little from scratch.
        changes |= {
            "MODEL.RESNETS.DEPTH": 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.FPN.OUT_CHANNELS": 64,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 256,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 400,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
        }
    for key, value in changes.items():
        _set(cfg, key, value)
    return ['MODEL.WEIGHTS ""', *(f"{key} {value}" for key, value in changes.items())]


def adopt_model(cfg: CfgNode, folder: Path) -> bool:
    """Take over which model a run has, from the config that it left in its folder.

    Whether a model started from ImageNet's weights decides on its layers, and a tool that reads its
    checkpoint has to build the same.

    Returns:
        Whether there is such a config.
    """
    try:
        stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        values = {key: _get(stored, key) for key in _MODEL_KEYS}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return False
    for key, value in values.items():
        _set(cfg, key, value)
    if _OPEN["MODEL.WEIGHTS"] == cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = stored["MODEL"].get("WEIGHTS", "")
    return True


def weights_are_cached() -> bool:
    """Whether detectron2's download cache has the ImageNet weights."""
    from iopath.common.file_io import get_cache_dir

    return (Path(get_cache_dir()) / _CACHED).is_file()


def weights_can_be_fetched() -> bool:
    """Whether the server that has the ImageNet weights answers."""
    try:
        with socket.create_connection(_SERVER, timeout=3):
            return True
    except OSError:
        return False


def _get(cfg: CfgNode | dict, key: str) -> object:
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node


def _set(cfg: CfgNode, key: str, value: object) -> None:
    *path, last = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    node[last] = value
