from __future__ import annotations

import numpy as np
import pytest
import torchvision.datasets

from gal_d2.errors import UserError
from gal_d2.experiments.image_sets import load_image_set


def test_digits_are_there_without_a_download(tmp_path):
    digits = load_image_set("digits", tmp_path)
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.dtype == np.float32
    assert digits.images.min() == 0 and digits.images.max() == 1
    assert digits.labels.shape == (1797,) and digits.num_classes == 10
    assert not list(tmp_path.iterdir())


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match="'cifar' is unknown: choose from digits"):
        load_image_set("cifar", tmp_path)


def test_cifar_is_taken_from_torchvision(tmp_path, monkeypatch):
    class FakeCIFAR10:
        base_folder = "cifar-10-batches-py"
        url = "unused"

        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data = np.full((3 if train else 2, 32, 32, 3), 51, np.uint8)
            self.data[..., 1] = 255
            self.targets = [0, 1, 2] if train else [3, 9]

    (tmp_path / FakeCIFAR10.base_folder).mkdir()
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCIFAR10)
    data = load_image_set("cifar10", tmp_path)
    assert data.images.shape == (5, 3, 32, 32) and data.labels.tolist() == [0, 1, 2, 3, 9]
    assert data.images[0, :, 0, 0].tolist() == pytest.approx([0.2, 1.0, 0.2])


def test_cifar_that_is_nowhere(tmp_path):
    with pytest.raises(UserError, match="fetch_image_sets.py cifar10.*unpack cifar-10-python"):
        load_image_set("cifar10", tmp_path)
