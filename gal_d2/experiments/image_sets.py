"""Labelled pictures for the noise experiment: digits, Fashion-MNIST, CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gal_d2.data import miniature_sources
from gal_d2.errors import UserError

IMAGE_SETS = ("digits", "fashion-mnist", "cifar10")


@dataclass(frozen=True)
class ImageSet:
    """All pictures of a data set; splits are drawn from it by seed.

    Attributes:
        name: one of ``IMAGE_SETS``.
        images: (N, C, H, W) float32 in [0, 1].
        labels: (N,) int64 in [0, num_classes).
    """

    name: str
    images: np.ndarray
    labels: np.ndarray

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


def load_image_set(name: str, root: str | Path) -> ImageSet:
    """Load a data set; ``tools/fetch_image_sets.py`` fetches what is missing.

    Args:
        name: one of ``IMAGE_SETS``. The digits come with scikit-learn.
        root: folder of fetched data. CIFAR-10 is expected as torchvision keeps it, in its folder
            ``cifar-10-batches-py``.

    Raises:
        UserError: an unknown name, or data that are not there.
    """
    if name not in IMAGE_SETS:
        raise UserError(f"the data set '{name}' is unknown: choose from {', '.join(IMAGE_SETS)}.")
    if name == "cifar10":
        return _load_cifar10(Path(root))
    objects = miniature_sources.load_objects(Path(root), kind=name)
    images = np.concatenate([objects.images["train"], objects.images["test"]])
    labels = np.concatenate([objects.labels["train"], objects.labels["test"]])
    return ImageSet(name, images[:, None].astype(np.float32) / 255, labels)


def _load_cifar10(root: Path) -> ImageSet:
    from torchvision.datasets import CIFAR10

    if not (root / CIFAR10.base_folder).is_dir():
        raise UserError(
            f"CIFAR-10 is not in {root / CIFAR10.base_folder}: run `tools/fetch_image_sets.py "
            "cifar10` where there is a network, unpack cifar-10-python.tar.gz there, or choose "
            "--data digits."
        )
    try:
        parts = [CIFAR10(str(root), train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"CIFAR-10 in {root} cannot be read ({error}): delete it and unpack "
            "cifar-10-python.tar.gz there."
        ) from error
    images = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    labels = np.concatenate([np.asarray(part.targets, np.int64) for part in parts])
    return ImageSet("cifar10", np.ascontiguousarray(images, np.float32) / 255, labels)
