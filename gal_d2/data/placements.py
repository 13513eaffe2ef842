"""Every cut-out of a pool on real images of its own: what an offline pass scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from torch.utils.data import Dataset

from gal_d2.data.augmentation import locate
from gal_d2.data.copy_paste import PasteOptions, paste_cutouts, prepare_paste
from gal_d2.data.fields import InstanceSource
from gal_d2.data.image_file import UnreadableImageError, WarnOnce, read_training_image
from gal_d2.data.masks import LocalMask, to_bit_masks, to_boxes
from gal_d2.data.pool import CorruptCutOutError, InstancePool
from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

_MAX_TRIES = 10  # real images that are tried in turn where one cannot be read


class PlacementDataset(Dataset):
    """A sample for each (cut-out, placement): the cut-out alone on a real image.

    Image, size, flip and position are a function of ``seed``, the cut-out's id and the placement's
    number: they depend on no other cut-out, nor on the order or the process that asks. The cut-out
    lies wholly in the image, at a size drawn as in training.

    A sample has "image" (uint8 (C, H, W)), "image_id", "height", "width", "placement" (its number),
    and "instances": the paste alone, with the fields that the training mapper gives. A cut-out that
    cannot be read, or is transparent, has an empty box and an empty mask.

    Args:
        keys: (N, 2) int64, pool id and number of the placement of each sample.
        scenes: dataset dicts of the real images.
        pool: where the cut-outs are.
        class_of_category: category id (as in the JSON) -> class index.
        scale_mean, scale_std: (C,), of sqrt(object area / image area).
        augmentations: deterministic ones, applied to the scene before pasting.
        image_format: "RGB" or "BGR".
        options: how to paste.
        seed: of the placements.
    """

    def __init__(
        self,
        keys: np.ndarray,
        *,
        scenes: Sequence[dict],
        pool: InstancePool,
        class_of_category: Mapping[int, int],
        scale_mean: np.ndarray,
        scale_std: np.ndarray,
        augmentations: Sequence[T.Augmentation | T.Transform] = (),
        image_format: str = "BGR",
        options: PasteOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.keys = np.asarray(keys, np.int64).reshape(-1, 2)
        self.scenes = scenes
        self.pool = pool
        self.class_of_category = dict(class_of_category)
        self.scale_mean, self.scale_std = scale_mean, scale_std
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.options = options or PasteOptions()
        self.seed = seed
        self._warn_once = WarnOnce(logger)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict:
        pool_id, placement_number = self.keys[index].tolist()
        rng = np.random.default_rng((self.seed, pool_id, placement_number))
        scene, image = self._read_scene(rng)
        original = image.shape[:2]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = np.array(augmented.image, order="C")
        frame = locate(transforms, original, image.shape[:2])

        category_id = int(self.pool.category_of(np.array([pool_id]))[0])
        class_index = self.class_of_category[category_id]
        mask = None
        try:
            rgba = self.pool.get(pool_id).rgba
        except CorruptCutOutError:  # the pool has logged it
            pass
        else:
            placement = prepare_paste(
                rgba,
                (float(self.scale_mean[class_index]), float(self.scale_std[class_index])),
                frame,
                self.options,
                rng,
                bgr=self.image_format == "BGR",
                inside=True,
            )
            if placement is not None:
                _, (mask,) = paste_cutouts(image, frame.region, [], [placement], self.options)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "image_id": scene["image_id"],
            "placement": placement_number,
            "height": original[0],
            "width": original[1],
            "instances": _one_instance(mask, class_index, pool_id, image.shape[:2]),
        }

    def _read_scene(self, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
        """A real image, drawn uniformly from those that can be read."""
        for _ in range(_MAX_TRIES):
            scene = self.scenes[int(rng.integers(len(self.scenes)))]
            try:
                return scene, read_training_image(scene, self.image_format)
            except UnreadableImageError as error:
                self._warn_once(scene["file_name"], f"{error} Another one is taken.")
        raise UserError(
            f"{_MAX_TRIES} real images in a row cannot be read, the last one is "
            f"{scene['file_name']}: check the image folder of DATASETS.TRAIN."
        )


def _one_instance(
    mask: LocalMask | None, class_index: int, pool_id: int, shape: tuple[int, int]
) -> Instances:
    instances = Instances(shape)
    if mask is None:
        instances.gt_boxes = Boxes(torch.zeros(1, 4))
        instances.gt_masks = BitMasks(torch.zeros(1, *shape, dtype=torch.bool))
    else:
        instances.gt_boxes = to_boxes([mask])
        instances.gt_masks = to_bit_masks([mask], *shape)
    instances.gt_classes = torch.tensor([class_index])
    instances.instance_source = torch.tensor([int(InstanceSource.PASTED)])
    instances.pool_id = torch.tensor([pool_id])
    return instances


def sample_per_category(
    dicts: Sequence[dict], num_classes: int, count: int, rng: np.random.Generator
) -> list[int]:
    """Indices of images that have at least ``count`` objects of each class, where there are.

    Goes through the images in random order and takes those with an object of a class that is not
    complete yet.

    Args:
        dicts: dataset dicts; a crowd does not count.
        num_classes: C.
        count: 0: all images that have objects.
        rng: of the order.
    """
    have = np.zeros(num_classes, np.int64)
    chosen = []
    for index in rng.permutation(len(dicts)).tolist():
        classes = [a["category_id"] for a in dicts[index]["annotations"] if not a.get("iscrowd", 0)]
        if classes and (count == 0 or (have[classes] < count).any()):
            np.add.at(have, classes, 1)
            chosen.append(index)
    return chosen
