"""The images of a training, in the order of its sampler, and those of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from gal_d2.copy_paste.mapper import CopyPasteMapper
from gal_d2.copy_paste.stream import TrainingLoader
from gal_d2.datasets.evaluation_mapper import EvaluationMapper
from gal_d2.datasets.probe import split_probe
from gal_d2.datasets.records import repeat_factors
from gal_d2.engine.progress import EvaluationLoader
from gal_d2.errors import UserError
from gal_d2.setup.start_checks import load_training_dicts


def build_train_loader(cfg: CfgNode, seed: int) -> TrainingLoader:
    """The training stream of this process.

    Raises:
        UserError: a data set of ``cfg.DATASETS.TRAIN`` is not there, or the batch size does
            not divide among the processes.
    """
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes "
            f"cannot share: make it a multiple of {world_size}."
        )
    dicts = load_training_dicts(cfg)
    dicts, probe = split_probe(cfg, dicts)
    return TrainingLoader(
        DatasetFromList(dicts, copy=False),
        CopyPasteMapper(cfg, dataset_dicts=dicts, probe_dicts=probe),
        training_order(cfg, dicts),
        seed=seed,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
        is_wide=np.array([d["width"] > d["height"] for d in dicts])
        if cfg.DATALOADER.ASPECT_RATIO_GROUPING
        else None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def training_order(cfg: CfgNode, dicts: list[dict]) -> Callable[[int], Iterable[int]]:
    """What gives, from a seed, the endless order of dataset indices for this process.

    Uniform or by repeat factor. It does not keep ``dicts``.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        size = len(dicts)
        return lambda seed: TrainingSampler(size, seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = repeat_factors(dicts, cfg.DATALOADER.REPEAT_THRESHOLD)
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is '{name}': choose TrainingSampler or "
        "RepeatFactorTrainingSampler."
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> EvaluationLoader:
    """The images of a data set in their order, each once."""
    loader = build_detection_test_loader(cfg, dataset_name, mapper=EvaluationMapper(cfg))
    return EvaluationLoader(loader, dataset_name)
