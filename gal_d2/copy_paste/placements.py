"""Cut-outs on real images, alone and uncovered: what an audition or an offline pass scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from torch.utils.data import Dataset

from gal_d2.copy_paste.augmentation import Frame, locate
from gal_d2.copy_paste.fields import InstanceSource
from gal_d2.copy_paste.masks import Box, LocalMask, to_bit_masks, to_boxes
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.paste import paste_cutouts
from gal_d2.copy_paste.place import Placement, draw_free_position, draw_position, place
from gal_d2.copy_paste.scale import draw_sized
from gal_d2.datasets.records import object_classes
from gal_d2.errors import UserError
from gal_d2.files.image_file import UnreadableImageError, WarnOnce, read_training_image
from gal_d2.pool.instance_pool import InstancePool

logger = logging.getLogger(__name__)

_MAX_TRIES = 10  # real images that are tried in turn where one cannot be read
_GAP = 2  # pixels between the boxes of two cut-outs


@dataclass(frozen=True)
class _Wanted:
    """A cut-out that is to be shown."""

    pool_id: int
    number: int  # of the placement
    class_index: int


@dataclass
class _Canvas:
    """A real image that is being filled."""

    scene: dict
    image: np.ndarray
    original: tuple[int, int]
    frame: Frame
    boxes: list[Box] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    masks: list[LocalMask | None] = field(default_factory=list)  # of each row
    shown: list[_Wanted] = field(default_factory=list)  # likewise


class AuditionImages(Dataset):
    """Real images filled with cut-outs that do not touch each other: what an audition scores.

    Item i is a list of samples: the images that the cut-outs of ``groups[i]`` fill, as few as there
    is room for. Each cut-out lies wholly in its image, at a size drawn as in training. Image, size,
    flip and position are a function of ``seed`` and the group alone.

    A sample has "image" (uint8 (C, H, W)), "image_id", "height", "width", "placement" ((n,) int64,
    the number of each placement), and "instances": the pastes alone, with the fields that the
    training mapper gives. A cut-out that cannot be read, or is transparent, has an empty box and an
    empty mask.

    Args:
        groups: arrays (n, 2) int64, pool id and number of the placement.
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
        groups: Sequence[np.ndarray],
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
        self.groups = [np.asarray(group, np.int64).reshape(-1, 2) for group in groups]
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
        return len(self.groups)

    def __getitem__(self, index: int) -> list[dict]:
        group = self.groups[index]
        canvases: list[_Canvas] = []
        scene_rng = np.random.default_rng((self.seed, *group[0].tolist()))
        categories = self.pool.category_of(group[:, 0]).tolist()
        for (pool_id, number), category in zip(group.tolist(), categories, strict=True):
            wanted = _Wanted(pool_id, number, self.class_of_category[category])
            self._place(wanted, canvases, scene_rng)
        return [self._finish(canvas) for canvas in canvases]

    def _place(
        self, wanted: _Wanted, canvases: list[_Canvas], scene_rng: np.random.Generator
    ) -> None:
        """Put a cut-out where there is room, on a new image if there is none."""
        if not canvases:
            canvases.append(self._open_canvas(scene_rng))
        rng = np.random.default_rng((self.seed, wanted.pool_id, wanted.number))
        rgba = self.pool.get_rgba(wanted.pool_id)
        sized = None if rgba is None else self._sized(rgba, wanted, canvases[0].frame, rng)
        if sized is None:
            canvases[0].masks.append(None)
            canvases[0].shown.append(wanted)
            return
        color, alpha, opacity = sized
        for canvas in canvases:
            # An image of another size gets it at the size that it had on the first one.
            region = canvas.frame.region
            room = draw_free_position(alpha.shape, region, canvas.boxes, rng, gap=_GAP)
            if room is not None:
                break
        else:
            canvas = self._open_canvas(scene_rng)
            canvases.append(canvas)
            color, alpha, opacity = self._sized(rgba, wanted, canvas.frame, rng)
            room = draw_position(alpha.shape, canvas.frame.region, rng, inside=True)
        placement = place(color, alpha, *room, canvas.frame.region, opacity)
        canvas.shown.append(wanted)
        if placement is None:
            canvas.masks.append(None)
            return
        canvas.boxes.append(placement.box)
        canvas.placements.append(placement)
        canvas.masks.append(placement.mask)

    def _sized(
        self, rgba: np.ndarray, wanted: _Wanted, frame: Frame, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
        index = wanted.class_index
        scale = (float(self.scale_mean[index]), float(self.scale_std[index]))
        is_bgr = self.image_format == "BGR"
        return draw_sized(rgba, scale, frame, self.options, rng, bgr=is_bgr)

    def _open_canvas(self, rng: np.random.Generator) -> _Canvas:
        scene, image = self._read_scene(rng)
        original = image.shape[:2]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = np.array(augmented.image, order="C")
        return _Canvas(scene, image, original, locate(transforms, original, image.shape[:2]))

    def _finish(self, canvas: _Canvas) -> dict:
        image, frame = canvas.image, canvas.frame
        paste_cutouts(image, frame.region, [], canvas.placements, self.options)
        pool_ids, numbers, classes = np.array(
            [(shown.pool_id, shown.number, shown.class_index) for shown in canvas.shown], np.int64
        ).T
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "image_id": canvas.scene["image_id"],
            "placement": numbers,
            "height": canvas.original[0],
            "width": canvas.original[1],
            "instances": _to_instances(canvas.masks, classes, pool_ids, image.shape[:2]),
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


def _to_instances(
    masks: Sequence[LocalMask | None],
    classes: np.ndarray,
    pool_ids: np.ndarray,
    shape: tuple[int, int],
) -> Instances:
    boxes = torch.zeros(len(masks), 4)
    bitmaps = torch.zeros(len(masks), *shape, dtype=torch.bool)
    shown = [row for row, mask in enumerate(masks) if mask is not None]
    if shown:
        visible = [masks[row] for row in shown]
        boxes[shown] = to_boxes(visible).tensor
        bitmaps[shown] = to_bit_masks(visible, *shape).tensor
    instances = Instances(shape)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_masks = BitMasks(bitmaps)
    instances.gt_classes = torch.from_numpy(classes.copy())
    instances.instance_source = torch.full((len(masks),), int(InstanceSource.PASTED))
    instances.pool_id = torch.from_numpy(pool_ids.copy())
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
        classes = object_classes(dicts[index])
        if classes and (count == 0 or (have[classes] < count).any()):
            np.add.at(have, classes, 1)
            chosen.append(index)
    return chosen
