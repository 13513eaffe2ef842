from __future__ import annotations

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from gal_d2.errors import UserError
from gal_d2.testbeds.noise.image_sets import load_image_set


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
    data = load_image_set("cifar-10", tmp_path)
    assert data.images.shape == (5, 3, 32, 32) and data.labels.tolist() == [0, 1, 2, 3, 9]
    assert data.images[0, :, 0, 0].tolist() == pytest.approx([0.2, 1.0, 0.2])


def test_cifar_that_is_nowhere(tmp_path):
    with pytest.raises(UserError, match="fetch_image_sets.py cifar10.*unpack cifar-10-python"):
        load_image_set("cifar-10", tmp_path)


def write_picture(path, value: int, size: tuple[int, int] = (4, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255)).save(path)


def test_a_folder_of_class_folders(tmp_path):
    write_picture(tmp_path / "train/dog/1.png", 51)
    write_picture(tmp_path / "train/cat/2.png", 102)
    write_picture(tmp_path / "test/dog/3.png", 153)
    (tmp_path / "train/dog/notes.txt").write_text("no picture")
    data = load_image_set(str(tmp_path), "unused")
    assert data.name == tmp_path.name
    assert data.images.shape == (3, 3, 3, 4) and data.images.dtype == np.float32
    # cat comes before dog; those of train before those of test.
    assert data.labels.tolist() == [0, 1, 1]
    assert data.images[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.2, 0.6])
    # Class folders alone will do.
    assert load_image_set(str(tmp_path / "train"), "unused").labels.tolist() == [0, 1]


def test_a_folder_that_is_not_fit(tmp_path):
    write_picture(tmp_path / "cat/1.png", 0)
    with pytest.raises(UserError, match="has pictures of 1 classes"):
        load_image_set(str(tmp_path), "unused")
    write_picture(tmp_path / "dog/2.png", 0, size=(5, 3))
    with pytest.raises(UserError, match="2.png has 5 x 3 pixels, the first picture of .* 4 x 3"):
        load_image_set(str(tmp_path), "unused")
    (tmp_path / "dog/2.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="2.png cannot be read as a picture"):
        load_image_set(str(tmp_path), "unused")
