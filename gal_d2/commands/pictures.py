"""Draws what a config trains on and what a model predicts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.visualizer import GenericMask

from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.files.image_file import UnreadableImageError, read_training_image
from gal_d2.visualization.samples import prediction_sheet, training_sheet

logger = logging.getLogger(__name__)


def draw_training_images(cfg: CfgNode, count: int = 12) -> np.ndarray:
    """The first images of a run's training stream: (H, W, 3) uint8 RGB."""
    loader = GALTrainer.build_train_loader(cfg, seed=max(cfg.SEED, 0))
    samples = itertools.chain.from_iterable(loader)
    return training_sheet(
        list(itertools.islice(samples, count)),
        MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes,
        image_format=cfg.INPUT.FORMAT,
    )


def draw_predictions(
    cfg: CfgNode, model: GeneralizedRCNN | Callable, count: int = 6, seed: int = 0
) -> np.ndarray:
    """A model's predictions on random images of ``cfg.DATASETS.TEST``: (H, W, 3) uint8 RGB."""
    name = cfg.DATASETS.TEST[0]
    class_names = MetadataCatalog.get(name).thing_classes
    dicts = DatasetCatalog.get(name)
    chosen = np.random.default_rng(seed).permutation(len(dicts))[:count]
    loader = GALTrainer.build_test_loader(cfg, name)
    images, truths, predictions = [], [], []
    model.eval()
    for index in chosen:
        record = dicts[index]
        try:
            image = read_training_image(record, "RGB")
        except UnreadableImageError as error:
            logger.warning("%s No predictions are drawn on it.", error)
            continue
        sample = loader.dataset[int(index)]
        with torch.no_grad():
            predictions.append(model([sample])[0]["instances"].to("cpu"))
        images.append(image)
        size = record["height"], record["width"]
        annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        masks = np.zeros((len(annotations), *size), dtype=bool)
        for k, annotation in enumerate(annotations):
            masks[k] = GenericMask(annotation["segmentation"], *size).mask
        truths.append((masks, [a["category_id"] for a in annotations]))
    if not images:
        raise UserError(f"None of {len(chosen)} images of '{name}' can be read; check its folder.")
    return prediction_sheet(images, truths, predictions, class_names)
