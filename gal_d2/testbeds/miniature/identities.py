"""Which pictures of objects a split of the miniature may show: no picture is in two of them."""

from __future__ import annotations

import numpy as np

from gal_d2.testbeds.miniature.categories import CATEGORIES
from gal_d2.testbeds.miniature.sources import ObjectImages

_TRAIN_PART_OF_IDENTITIES = 0.6
# An item with less cloth than this (of its picture's area) is a faulty one of Fashion-MNIST.
_MIN_OCCUPIED = 0.04


class Deck:
    """Individuals of each category, drawn in turn; begins again when all were drawn."""

    def __init__(self, split: str, images: np.ndarray, indices: dict[int, np.ndarray]) -> None:
        """
        Args:
            split: of the object images.
            images: of that split.
            indices: category id -> (N,) indices into ``images``, shuffled.
        """
        self._split, self._images, self._indices = split, images, indices
        self._drawn = dict.fromkeys(indices, 0)

    def draw(self, category_id: int) -> tuple[str, np.ndarray]:
        """The next individual: its identity ("train/123") and its grey image."""
        indices = self._indices[category_id]
        index = indices[self._drawn[category_id] % len(indices)]
        self._drawn[category_id] += 1
        return f"{self._split}/{index}", self._images[index]


def deal_identities(objects: ObjectImages, seed: int) -> dict[str, Deck]:
    """Three decks of disjoint individuals: for the training scenes, the validation, the pool."""
    dealt: dict[str, dict[int, np.ndarray]] = {"train": {}, "val": {}, "pool": {}}
    for category_id, category in enumerate(CATEGORIES, start=1):
        rng = np.random.default_rng([seed, 0, category_id])
        usable = {}
        for split, images in objects.images.items():
            occupied = (images > 8).mean(axis=(1, 2)) >= _MIN_OCCUPIED
            usable[split] = rng.permutation(
                np.flatnonzero(occupied & (objects.labels[split] == category.label))
            )
        cut = round(_TRAIN_PART_OF_IDENTITIES * len(usable["train"]))
        dealt["train"][category_id] = usable["train"][:cut]
        dealt["pool"][category_id] = usable["train"][cut:]
        dealt["val"][category_id] = usable["test"]
    return {
        use: Deck(split, objects.images[split], dealt[use])
        for use, split in (("train", "train"), ("val", "test"), ("pool", "train"))
    }
