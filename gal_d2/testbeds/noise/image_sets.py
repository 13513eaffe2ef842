"""Labelled pictures for the noise experiment: digits, Fashion-MNIST, CIFAR-10, or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gal_d2.errors import UserError
from gal_d2.pool.importer import IMAGE_SUFFIXES
from gal_d2.testbeds.miniature import sources as miniature_sources

IMAGE_SETS = ("digits", "fashion-mnist", "cifar-10")


@dataclass(frozen=True)
class ImageSet:
    """All pictures of a data set; splits are drawn from it by seed.

    Attributes:
        name: one of ``IMAGE_SETS``, or the folder's.
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
        name: one of ``IMAGE_SETS``, or a folder with a folder of pictures for each class, or with
            such folders in ``train`` and ``test``. The digits come with scikit-learn.
        root: folder of fetched data. CIFAR-10 is expected as torchvision keeps it, in its folder
            ``cifar-10-batches-py``.

    Raises:
        UserError: an unknown name, or data that are not there or not fit.
    """
    if name not in IMAGE_SETS:
        if Path(name).is_dir():
            return load_image_folder(Path(name))
        raise UserError(
            f"the data set '{name}' is unknown: choose from {', '.join(IMAGE_SETS)}, or name a "
            "folder."
        )
    if name == "cifar-10":
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
            "--data digits, or --data FOLDER where its pictures lie as files."
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
    return ImageSet("cifar-10", np.ascontiguousarray(images, np.float32) / 255, labels)


def load_image_folder(root: Path) -> ImageSet:
    """The pictures of class folders; those in ``train`` and ``test`` are put together.

    Args:
        root: has the class folders, or ``train`` and ``test`` with the same class folders.

    Raises:
        UserError: there are fewer than two classes, or a picture cannot be read or has another size
            than the first.
    """
    parts = [root / part for part in ("train", "test") if (root / part).is_dir()] or [root]
    files = [
        (folder.name, path)
        for part in parts
        for folder in sorted(p for p in part.iterdir() if p.is_dir())
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    classes = sorted({name for name, _ in files})
    if len(classes) < 2:
        raise UserError(
            f"{root} has pictures of {len(classes)} classes: give a folder that holds a folder of "
            "pictures for each class, or train and test with such folders."
        )
    images: list[np.ndarray] = []
    for _, path in files:
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
        # Pillow raises SyntaxError for a broken PNG.
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{path} cannot be read as a picture ({error}): remove it.") from error
        if images[-1].shape != images[0].shape:
            height, width = images[-1].shape[:2]
            raise UserError(
                f"{path} has {width} x {height} pixels, the first picture of {root} "
                f"{images[0].shape[1]} x {images[0].shape[0]}: bring all to one size."
            )
    stacked = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255
    labels = np.array([classes.index(name) for name, _ in files], np.int64)
    return ImageSet(root.name, np.ascontiguousarray(stacked), labels)
