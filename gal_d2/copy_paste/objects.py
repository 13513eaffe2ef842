"""The objects of an image while it is made, and the sample that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances

from gal_d2.copy_paste.augmentation import Frame
from gal_d2.copy_paste.fields import NO_POOL_ID, InstanceSource
from gal_d2.copy_paste.masks import LocalMask, to_bit_masks, to_boxes, transform_segmentations
from gal_d2.errors import UserError


@dataclass
class SceneObjects:
    """What is known of the objects of an image, one entry each."""

    masks: list[LocalMask] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    pool_ids: list[int] = field(default_factory=list)

    def add(self, mask: LocalMask, class_index: int, source: int, pool_id: int) -> None:
        self.masks.append(mask)
        self.classes.append(class_index)
        self.sources.append(source)
        self.pool_ids.append(pool_id)

    def remaining(self, visible: Sequence[LocalMask | None]) -> SceneObjects:
        """These objects with their visible masks; without those that have none."""
        kept = SceneObjects()
        rest = zip(self.classes, self.sources, self.pool_ids, strict=True)
        for mask, others in zip(visible, rest, strict=True):
            if mask is not None:
                kept.add(mask, *others)
        return kept

    def to_instances(self, height: int, width: int) -> Instances:
        instances = Instances((height, width))
        instances.gt_boxes = to_boxes(self.masks)
        instances.gt_classes = torch.tensor(self.classes, dtype=torch.int64)
        instances.gt_masks = to_bit_masks(self.masks, height, width)
        instances.instance_source = torch.tensor(self.sources, dtype=torch.int64)
        instances.pool_id = torch.tensor(self.pool_ids, dtype=torch.int64)
        return instances


def real_objects(dataset_dict: dict, transforms: T.Transform, frame: Frame) -> SceneObjects:
    """The annotated objects of which something is left after augmentation; no crowds.

    Args:
        dataset_dict: in detectron2's format, masks as polygons or RLE.
        transforms: what the augmentations did to the image.
        frame: where the original image is in the augmented one.

    Raises:
        UserError: an object has no mask.
    """
    annotations = [
        annotation
        for annotation in dataset_dict.get("annotations", ())
        if not annotation.get("iscrowd", 0)
    ]
    if any(annotation.get("segmentation") is None for annotation in annotations):
        raise UserError(
            f"An annotation of {dataset_dict['file_name']} has no 'segmentation': training here "
            "needs instance masks, so give every annotation polygons or an RLE."
        )
    masks = transform_segmentations(
        [annotation["segmentation"] for annotation in annotations], transforms, frame.region
    )
    objects = SceneObjects()
    for annotation, mask in zip(annotations, masks, strict=True):
        if mask is not None:
            objects.add(mask, int(annotation["category_id"]), InstanceSource.REAL, NO_POOL_ID)
    return objects


def to_sample(image: np.ndarray, real: SceneObjects, pasted: SceneObjects | None = None) -> dict:
    """The entries of a sample that the model reads: "image", "instances" and "num_pasted".

    Args:
        image: uint8 (H, W, 3), finished.
        real, pasted: what is visible in it.
    """
    pasted = pasted or SceneObjects()
    both = SceneObjects(
        real.masks + pasted.masks,
        real.classes + pasted.classes,
        real.sources + pasted.sources,
        real.pool_ids + pasted.pool_ids,
    )
    return {
        "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "instances": both.to_instances(*image.shape[:2]),
        "num_pasted": len(pasted.masks),
    }
