"""Real images held out of training, to ask what a step does to the loss on data like them.

The published recipe takes its reference gradient from real images of the pasted classes
(arXiv 2406.02435), and ``GAL.SCORER.TARGET: probe`` lets the scorer learn from such images in
place of the training batch. Which images a training image's pastes are held against is drawn from
that sample's own seed: neither loader workers nor processes change it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.common import DatasetFromList

from gal_d2.datasets.records import object_classes
from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

# A class with fewer images keeps all of them for training.
_MIN_IMAGES = 4


def uses_probe(cfg: CfgNode) -> bool:
    """Does anything look at probe images in this run?"""
    if not cfg.GAL.SCORER.ENABLED:
        return False
    return cfg.GAL.ACCEPT.UNIT == "batch" or cfg.GAL.SCORER.TARGET == "probe"


def split_probe(cfg: CfgNode, dicts: list[dict]) -> tuple[list[dict], list[dict]]:
    """The images that train and those that are the probe; with no probe in use, all and none.

    With ``GAL.SCORER.PROBE.FRACTION`` 0 nothing is held out: the probe is the training set.

    Args:
        cfg: ``GAL.SCORER`` is read.
        dicts: dataset dicts in detectron2's format.

    Raises:
        UserError: the fraction is out of range, or so small that nothing is held out.
    """
    if not uses_probe(cfg):
        return dicts, []
    fraction = cfg.GAL.SCORER.PROBE.FRACTION
    if not 0 <= fraction <= 0.5:
        raise UserError(f"GAL.SCORER.PROBE.FRACTION is {fraction}: set it to a value in [0, 0.5].")
    if fraction == 0:
        return dicts, dicts
    held_out = hold_out([object_classes(d) for d in dicts], fraction, cfg.GAL.SCORER.SEED)
    if not held_out.any():
        raise UserError(
            f"GAL.SCORER.PROBE.FRACTION is {fraction}, which holds out none of the {len(dicts)} "
            "training images: set it higher, or to 0 to draw the probe from the training images."
        )
    logger.info("%d of %d training images are held out.", held_out.sum(), len(dicts))
    return (
        [d for d, out in zip(dicts, held_out, strict=True) if not out],
        [d for d, out in zip(dicts, held_out, strict=True) if out],
    )


def hold_out(classes: Sequence[Iterable[int]], fraction: float, seed: int) -> np.ndarray:
    """Choose images so that of each class a like share is held out.

    Classes are served from the rarest on, in random order of their images. At least one image is
    held out of a class that has four or more, and never more than half of a class's images.

    Args:
        classes: per image, the classes that are in it.
        fraction: of each class's images to hold out.
        seed: of the choice.

    Returns:
        (number of images,) bool, True: held out.

    Example:
        >>> hold_out([{0}, {0}, {0}, {0}, {1}], 0.25, seed=0).sum()
        1
    """
    classes = [set(present) for present in classes]
    images_of: dict[int, list[int]] = {}
    for image in np.random.default_rng(seed).permutation(len(classes)).tolist():
        for c in classes[image]:
            images_of.setdefault(c, []).append(image)
    held_out = np.zeros(len(classes), dtype=bool)
    num_held = dict.fromkeys(images_of, 0)
    for c in sorted(images_of, key=lambda c: (len(images_of[c]), c)):
        count = len(images_of[c])
        wanted = max(1, round(fraction * count)) if count >= _MIN_IMAGES else 0
        for image in images_of[c]:
            if num_held[c] >= wanted:
                break
            if not held_out[image] and all(
                num_held[k] < len(images_of[k]) // 2 for k in classes[image]
            ):
                held_out[image] = True
                for k in classes[image]:
                    num_held[k] += 1
    return held_out


class ProbeImages:
    """Finds real images by the classes that are in them.

    Args:
        dicts: dataset dicts in detectron2's format; crowds do not count.
    """

    def __init__(self, dicts: list[dict]) -> None:
        pairs = [
            (c, image) for image, d in enumerate(dicts) for c in sorted(set(object_classes(d)))
        ]
        table = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        self._classes, starts = np.unique(table[:, 0], return_index=True)
        self._starts = np.append(starts, len(table))
        self._images = table[:, 1]
        # Serialised: forked workers share it.
        self._dicts = DatasetFromList(dicts, copy=False)

    def __len__(self) -> int:
        return len(self._dicts)

    @property
    def classes(self) -> np.ndarray:
        """int64, ascending: the class indices of which there is an image."""
        return self._classes

    def draw(self, classes: Iterable[int], num: int, rng: np.random.Generator) -> list[dict]:
        """Images of some of the given classes: a class uniformly, then one of its images.

        A class comes up again only when all have had their turn.

        Args:
            classes: class indices; those of which there is no image are left out.
            num: how many images to draw.
            rng: where the randomness comes from.

        Returns:
            At most ``num`` dataset dicts; an image that is drawn twice is given once.
        """
        known = np.intersect1d(np.fromiter(classes, np.int64), self._classes)
        if len(known) == 0:
            return []
        order = rng.permutation(known)
        images: dict[int, None] = {}
        for turn in range(num):
            place = np.searchsorted(self._classes, order[turn % len(order)])
            row = rng.integers(self._starts[place], self._starts[place + 1])
            images.setdefault(int(self._images[row]))
        return [self._dicts[image] for image in images]


def probe_samples(batch: Iterable[dict]) -> list[dict]:
    """The probe's samples of a batch of the mapper's."""
    return [sample for pasted in batch for sample in pasted.get("probe", ())]
