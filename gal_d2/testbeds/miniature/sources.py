"""Finds the source images of the miniature: objects (Fashion-MNIST) and photographs.

Objects come, in this order, from the sources folder, from an installed Debian package, from where
the caller fetches them (``tools/fetch_image_sets.py``; nothing here does), and in the end, with a
warning, from scikit-learn's bundled digits.
"""

from __future__ import annotations

import gzip
import importlib.resources
import importlib.util
import logging
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

OBJECT_SOURCES = ("auto", "fashion-mnist", "digits")

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
# split -> (prefix of its two files, number of images)
FASHION_MNIST_SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
_IDX_UINT8_VECTORS, _IDX_UINT8_IMAGES = 0x801, 0x803

# Photographs that travel inside the wheels (scikit-image fetches the others from a server): no
# drawings, text pages or microscope slides, and one of the stereo pair only.
_SCIKIT_IMAGE_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
_SCIKIT_LEARN_PHOTOGRAPHS = ("china.jpg", "flower.jpg")


Fetch = Callable[[Path], bool]
"""Fetches Fashion-MNIST into a folder of sources; whether it could."""


class SourceError(UserError):
    """The source images of the miniature cannot be found or read."""


@dataclass(frozen=True)
class ObjectImages:
    """Grey images of objects on black, ten kinds of them, in two splits of different individuals.

    Attributes:
        name: "fashion-mnist" or "digits".
        images: split ("train" or "test") -> (N, H, W) uint8.
        labels: split -> (N,) int64 in [0, 10), Fashion-MNIST's order.
    """

    name: str
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


@dataclass(frozen=True)
class Photograph:
    """A photograph to cut backgrounds from; ``rgb`` is (H, W, 3) uint8."""

    name: str
    rgb: np.ndarray


# ------------------------------------------------------------------------------------- objects


def load_objects(sources: Path, kind: str = "auto", fetch: Fetch | None = None) -> ObjectImages:
    """Load the object images.

    Args:
        sources: folder that keeps what was fetched.
        kind: one of ``OBJECT_SOURCES``. "auto" falls back to the digits.
        fetch: called with ``sources`` where Fashion-MNIST is missing; None: it is not fetched.

    Raises:
        SourceError: ``kind`` is "fashion-mnist" and it can be found nowhere.
    """
    if kind not in OBJECT_SOURCES:
        raise SourceError(f"object_source is '{kind}': choose one of {', '.join(OBJECT_SOURCES)}.")
    if kind == "digits":
        return load_digits()
    objects = find_fashion_mnist(sources)
    if objects is None and fetch is not None and fetch(sources):
        objects = find_fashion_mnist(sources)
    if objects is not None:
        return objects
    remedy = (
        f"put the four *-ubyte.gz files of Fashion-MNIST into {sources / 'fashion-mnist'} "
        "(tools/fetch_image_sets.py fetches them where there is a network), or install Debian's "
        f"package {DEBIAN_PACKAGE}"
    )
    if kind == "fashion-mnist":
        raise SourceError(f"Fashion-MNIST is not on this machine and was not fetched: {remedy}.")
    logger.warning(
        "Fashion-MNIST is not on this machine and was not fetched: the miniature's objects are "
        "scikit-learn's handwritten digits instead, so its figures compare with no other's. "
        "For the real one, %s.",
        remedy,
    )
    return load_digits()


def load_digits() -> ObjectImages:
    """Scikit-learn's bundled 8 x 8 digits: the first 65 % of each kind are "train"."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    in_train = np.zeros(len(labels), bool)
    for label in range(10):
        indices = np.flatnonzero(labels == label)
        in_train[indices[: round(0.65 * len(indices))]] = True
    return ObjectImages(
        "digits",
        {"train": images[in_train], "test": images[~in_train]},
        {"train": labels[in_train], "test": labels[~in_train]},
    )


def find_fashion_mnist(sources: Path) -> ObjectImages | None:
    """Fashion-MNIST as it lies in ``sources`` or in an installed Debian package, or None.

    A file that is there but broken is named in a warning and passed over.
    """
    for folder in _local_folders(sources):
        if not any((folder / name).exists() for name in fashion_mnist_files()):
            continue
        try:
            return read_fashion_mnist(folder)
        except SourceError as error:
            logger.warning("%s Looking for Fashion-MNIST elsewhere.", error)
    return None


def has_fashion_mnist(sources: Path) -> bool:
    """Whether all four files are on this machine (their content is not looked at)."""
    return any(
        all((folder / name).is_file() for name in fashion_mnist_files())
        for folder in _local_folders(sources)
    )


def fashion_mnist_files() -> list[str]:
    """The names of the four files."""
    return [
        f"{prefix}-{content}-ubyte.gz"
        for prefix, _ in FASHION_MNIST_SPLITS.values()
        for content in ("images-idx3", "labels-idx1")
    ]


def read_fashion_mnist(folder: Path) -> ObjectImages:
    """Read and check the four gzipped IDX files of ``folder``.

    Raises:
        SourceError: a file is missing, truncated, or of another shape.
    """
    images, labels = {}, {}
    for split, (prefix, count) in FASHION_MNIST_SPLITS.items():
        images[split] = _read_idx(
            folder / f"{prefix}-images-idx3-ubyte.gz", _IDX_UINT8_IMAGES, (count, 28, 28)
        )
        path = folder / f"{prefix}-labels-idx1-ubyte.gz"
        labels[split] = _read_idx(path, _IDX_UINT8_VECTORS, (count,)).astype(np.int64)
        if labels[split].max() > 9:
            raise SourceError(f"{path} has the label {labels[split].max()}, above 9: replace it.")
    return ObjectImages("fashion-mnist", images, labels)


def _local_folders(sources: Path) -> tuple[Path, ...]:
    return (
        sources / "fashion-mnist",
        sources / "FashionMNIST" / "raw",  # where torchvision puts it
        Path("/") / DEBIAN_FOLDER,
    )


def _read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzipped IDX file of uint8 values, insisting on ``shape``."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read ({error}): delete it or replace it.") from error
    header = struct.Struct(f">{1 + len(shape)}I")
    if len(content) < header.size or header.unpack_from(content) != (magic, *shape):
        raise SourceError(f"{path} is not an IDX file of shape {shape}: delete it or replace it.")
    values = np.frombuffer(content, np.uint8, offset=header.size)
    if values.size != np.prod(shape):
        raise SourceError(
            f"{path} holds {values.size} of {np.prod(shape)} values: delete it or replace it."
        )
    return values.reshape(shape)


# --------------------------------------------------------------------------------- photographs


def load_photographs() -> list[Photograph]:
    """The photographs inside the installed scikit-image and scikit-learn, sorted by name.

    Raises:
        SourceError: there is none.
    """
    photographs = []
    for module, folder, names in (
        ("skimage", "data", _SCIKIT_IMAGE_PHOTOGRAPHS),
        ("sklearn", "datasets/images", _SCIKIT_LEARN_PHOTOGRAPHS),
    ):
        if importlib.util.find_spec(module) is None:
            logger.warning("%s is not installed: its photographs are left out.", module)
            continue
        root = importlib.resources.files(module)
        for name in names:
            path = root.joinpath(*folder.split("/"), name)
            if not path.is_file():
                logger.info("This version of %s does not bring %s: left out.", module, name)
                continue
            bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            if bgr is None:
                logger.warning("%s cannot be decoded: left out.", path)
                continue
            photographs.append(Photograph(name.split(".")[0], cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)))
    if not photographs:
        raise SourceError("There are no photographs: pip install scikit-image scikit-learn.")
    return sorted(photographs, key=lambda photograph: photograph.name)
