"""From the command line to a checked, complete config."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from gal_d2.datasets.registration import load_metadata, register_instances, require_dataset
from gal_d2.errors import UserError
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.config_check import check_config
from gal_d2.setup.configuration import load_config
from gal_d2.setup.console import quiet_console
from gal_d2.setup.output_folder import claim, keeping_config
from gal_d2.setup.own_data import derive

logger = logging.getLogger(__name__)

__all__ = ["argument_parser", "load_config", "resolve_datasets", "setup"]


def setup(args: argparse.Namespace, add_config: Callable[[CfgNode], None] | None = None) -> CfgNode:
    """The config of a run, with its data sets registered, logging and seeds set up.

    Args:
        args: of :func:`argument_parser`.
        add_config: adds the keys of a user's project to the defaults.

    Raises:
        UserError: a config file, key, data set or device that is not there; or an OUTPUT_DIR with
            the results of another training.
    """
    cfg = load_config(args.config_file, args.opts, add_config)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    resolve_datasets(cfg, split="TEST" if args.eval_only else "TRAIN")
    resolve_device(cfg)
    derived = derive(cfg, comm.get_world_size(), resume=args.resume)
    check_config(cfg)
    resolve_pool(cfg)
    if cfg.MODEL.TIMM.NAME:
        cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.freeze()
    trains = hasattr(args, "overwrite") and not args.eval_only
    if trains:
        claim(cfg, resume=args.resume, overwrite=args.overwrite)
    rank = comm.get_rank()
    # With the arguments that detectron2 uses, so that it adds no second handler.
    for name in ({"name": "gal_d2"}, {"name": "fvcore"}, {}):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, **name)
    quiet_console()
    with contextlib.nullcontext() if trains else keeping_config(cfg.OUTPUT_DIR):
        default_setup(cfg, args)
    if derived:
        logger.info("Derived from the data and the machine: %s", ", ".join(derived))
    return cfg


def resolve_datasets(cfg: CfgNode, split: str = "TRAIN") -> None:
    """Register ``GAL.DATA``, make sure that the data are there and that the class count fits.

    Args:
        cfg: changed in place.
        split: which of ``DATASETS`` this run needs, "TRAIN" or "TEST".
    """
    for key, replaced in (("TRAIN", "TRAIN"), ("VAL", "TEST")):
        pair = cfg.GAL.DATA[key]
        if not pair:
            if key == "VAL" and cfg.GAL.DATA.TRAIN:
                cfg.DATASETS.TEST = ()  # those of the config are of other data
            continue
        if len(pair) != 2:
            raise UserError(
                f"GAL.DATA.{key} is {tuple(pair)}: give two paths, (annotation JSON, image folder)."
            )
        name = f"gal_{key.lower()}"
        # Validation takes its categories, and which of them are rare, from the training set.
        own_training_set = key == "VAL" and cfg.GAL.DATA.TRAIN
        register_instances(
            name,
            *pair,
            categories_from="gal_train" if own_training_set else None,
            annotated_only=key == "TRAIN",
            replace=True,
        )
        cfg.DATASETS[replaced] = (name,)
    if not cfg.DATASETS[split]:
        raise UserError(
            f"DATASETS.{split} is empty: give GAL.DATA.{'VAL' if split == 'TEST' else split}, two "
            "paths (annotation JSON, image folder)."
        )
    for name in cfg.DATASETS[split]:
        require_dataset(name)
    name = cfg.DATASETS[split][0]
    num_classes = len(load_metadata(name).thing_classes)
    if cfg.GAL.DATA.TRAIN if split == "TRAIN" else cfg.GAL.DATA.VAL:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    elif num_classes != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but data set "
            f"'{name}' has {num_classes} categories: set it to {num_classes}."
        )


def resolve_device(cfg: CfgNode) -> None:
    """Turn ``MODEL.DEVICE: auto`` into cuda or cpu, and check that there is a GPU where asked."""
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise UserError(
            f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}': choose auto, cpu, cuda or cuda:0."
        ) from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch sees no GPU: add `MODEL.DEVICE cpu` to "
            "the command line, or install a CUDA build of torch and its driver."
        )


def resolve_pool(cfg: CfgNode) -> None:
    """Put the pool that is filled while training into ``OUTPUT_DIR``, unless a place is named."""
    if cfg.GAL.GENERATOR.ENABLED and not cfg.GAL.POOL.ROOT:
        cfg.GAL.POOL.ROOT = str(Path(cfg.OUTPUT_DIR) / "pool")
