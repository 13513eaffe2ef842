"""The mapper of evaluation: images are read as in training, and a bad one stops nothing."""

from __future__ import annotations

import logging

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from gal_d2.files.image_file import UnreadableImageError, WarnOnce, read_training_image

logger = logging.getLogger(__name__)

_PLACEHOLDER = (64, 64)  # height and width of what stands in for an image


class EvaluationMapper:
    """Maps a dataset dict to what a model takes: without "annotations", with "image".

    An image that cannot be read is named in a warning and comes as a small black one with
    "unreadable": True. :class:`gal_d2.evaluation.lvis_evaluation.LVISEvaluator` passes over it.

    Args:
        augmentations: deterministic ones, in the test's sizes.
        image_format: "RGB" or "BGR".
    """

    @configurable
    def __init__(self, *, augmentations: list[T.Augmentation], image_format: str = "BGR") -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self._warn_once = WarnOnce(logger)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "augmentations": utils.build_augmentation(cfg, is_train=False),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one dataset dict; it is not changed. "image" is uint8 (C, H, W)."""
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        try:
            image = read_training_image(dataset_dict, self.image_format)
        except UnreadableImageError as error:
            self._warn_once(dataset_dict["file_name"], f"{error} It is left out of the evaluation.")
            image = np.zeros((*_PLACEHOLDER, 3), np.uint8)
            sample |= {"unreadable": True, "height": image.shape[0], "width": image.shape[1]}
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])
        scene = T.AugInput(image)
        self.augmentations(scene)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(scene.image.transpose(2, 0, 1)))
        return sample
