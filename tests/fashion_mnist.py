"""A Fashion-MNIST of 30 images, for tests of what looks for it, reads it or fetches it."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gal_d2.testbeds.miniature import sources as module


@pytest.fixture(autouse=True)
def few_images(monkeypatch, tmp_path):
    """A Fashion-MNIST of 20 + 10 images, and no real one within reach."""
    monkeypatch.setattr(
        module, "FASHION_MNIST_SPLITS", {"train": ("train", 20), "test": ("t10k", 10)}
    )
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "nowhere")


def write_fashion_mnist(folder: Path, label: int = 9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in module.FASHION_MNIST_SPLITS.values():
        images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        labels = np.full(count, label, np.uint8)
        for name, magic, shape, values in (
            ("images-idx3", 0x803, (count, 28, 28), images),
            ("labels-idx1", 0x801, (count,), labels),
        ):
            header = struct.pack(f">{1 + len(shape)}I", magic, *shape)
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())
    return folder
