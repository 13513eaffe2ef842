"""Values of detectron2's own keys that it takes without a word, and fails on later or never."""

from __future__ import annotations

import math
from collections.abc import Callable

from detectron2.config import CfgNode

from gal_d2.errors import UserError

# Key -> what holds of a sound value, and how a sentence says that.
_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "SOLVER.IMS_PER_BATCH": (lambda v: v >= 1, "1 or more"),
    "SOLVER.MAX_ITER": (lambda v: v >= 1, "1 or more"),
    "SOLVER.BASE_LR": (lambda v: v > 0, "a finite number above 0"),
    "SOLVER.WEIGHT_DECAY": (lambda v: v >= 0, "a finite number of 0 or more"),
    "SOLVER.MOMENTUM": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "SOLVER.WARMUP_ITERS": (lambda v: v >= 0, "0 or more"),
    "SOLVER.WARMUP_FACTOR": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "SOLVER.GAMMA": (lambda v: v > 0, "a finite number above 0"),
    "SOLVER.CHECKPOINT_PERIOD": (lambda v: v >= 1, "1 or more"),
    "SOLVER.EMA.DECAY": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (lambda v: v > 0, "a finite number above 0"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (lambda v: v > 0, "above 0"),
    "DATALOADER.NUM_WORKERS": (lambda v: v >= 0, "0 or more"),
    "DATALOADER.REPEAT_THRESHOLD": (lambda v: v >= 0, "0 or more"),
    "TEST.DETECTIONS_PER_IMAGE": (lambda v: v >= 1, "1 or more"),
    "TEST.EVAL_PERIOD": (lambda v: v >= 0, "0 (at the end alone) or more"),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (lambda v: v >= 1, "1 or more"),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": (lambda v: v >= 1, "1 or more"),
    "MODEL.RPN.POSITIVE_FRACTION": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "MODEL.RPN.NMS_THRESH": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": (lambda v: v >= 1, "1 or more"),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (lambda v: v >= 1, "1 or more"),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": (lambda v: v >= 1, "1 or more"),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (lambda v: v >= 1, "1 or more"),
    "MODEL.FPN.OUT_CHANNELS": (lambda v: v >= 1, "1 or more"),
    "MODEL.ROI_BOX_HEAD.FC_DIM": (lambda v: v >= 1, "1 or more"),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": (lambda v: v >= 1, "1 or more"),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": (lambda v: v >= 0, "0 or more"),
    "INPUT.MIN_SIZE_TEST": (lambda v: v >= 0, "0 (images as they are) or more"),
    "INPUT.MAX_SIZE_TEST": (lambda v: v >= 1, "1 or more"),
    "INPUT.MAX_SIZE_TRAIN": (lambda v: v >= 1, "1 or more"),
    "GAL.DATA.LSJ.IMAGE_SIZE": (lambda v: v >= 16, "16 pixels or more"),
    "GAL.DATA.LSJ.MIN_SCALE": (lambda v: v > 0, "a finite number above 0"),
    "GAL.DATA.LSJ.MAX_SCALE": (lambda v: v > 0, "a finite number above 0"),
    "GAL.SCORER.PICTURE_PERIOD": (lambda v: v >= 0, "0 (no pictures) or more"),
    "GAL.SNAPSHOTS.PERIOD": (lambda v: v >= 1, "1 or more"),
}
_LR_SCHEDULERS = ("WarmupCosineLR", "WarmupMultiStepLR")


def check_config(cfg: CfgNode) -> None:
    """Check what can be checked without the data.

    Raises:
        UserError: a value makes no sense; the sentence names the key, the value and the remedy.
    """
    for key, (holds, expected) in _RULES.items():
        node = cfg
        for part in key.split("."):
            node = node[part]
        if not (isinstance(node, int | float) and math.isfinite(node) and holds(node)):
            raise UserError(f"{key} is {node}: set it to {expected}.")
    if cfg.GAL.DATA.LSJ.MIN_SCALE > cfg.GAL.DATA.LSJ.MAX_SCALE:
        raise UserError(
            f"GAL.DATA.LSJ.MIN_SCALE is {cfg.GAL.DATA.LSJ.MIN_SCALE}, above MAX_SCALE, "
            f"{cfg.GAL.DATA.LSJ.MAX_SCALE}: exchange them."
        )
    if cfg.SOLVER.LR_SCHEDULER_NAME not in _LR_SCHEDULERS:
        raise UserError(
            f"SOLVER.LR_SCHEDULER_NAME is '{cfg.SOLVER.LR_SCHEDULER_NAME}': choose from "
            f"{', '.join(_LR_SCHEDULERS)}."
        )
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise UserError(
            f'INPUT.MIN_SIZE_TRAIN is {cfg.INPUT.MIN_SIZE_TRAIN}: give pixels, as in "(640,)".'
        )
    require_wandb(cfg.GAL.WANDB)
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty: name the folder that results go to.")


def require_wandb(project: str) -> None:
    """Make sure that Weights & Biases is there, if ``GAL.WANDB`` names a project.

    Raises:
        UserError: it is not.
    """
    if not project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"GAL.WANDB is '{project}', but the package wandb is not installed: install it "
            "(pip install wandb), or leave the key empty."
        ) from error
