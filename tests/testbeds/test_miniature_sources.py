from __future__ import annotations

import gzip
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from fashion_mnist import few_images, write_fashion_mnist  # noqa: F401  (a fixture)

from gal_d2.testbeds.miniature import sources as module
from gal_d2.testbeds.miniature.sources import (
    SourceError,
    find_fashion_mnist,
    has_fashion_mnist,
    load_digits,
    load_objects,
    load_photographs,
    read_fashion_mnist,
)


def test_reads_what_was_written(tmp_path):
    objects = read_fashion_mnist(write_fashion_mnist(tmp_path))
    assert objects.name == "fashion-mnist"
    assert objects.images["train"].shape == (20, 28, 28)
    assert objects.images["test"][0, 0, :3].tolist() == [0, 1, 2]
    assert objects.labels["test"].tolist() == [9] * 10


@pytest.mark.parametrize("place", ["fashion-mnist", "FashionMNIST/raw"])
def test_finds_the_files_in_the_sources_folder(tmp_path, place):
    assert find_fashion_mnist(tmp_path) is None
    assert not has_fashion_mnist(tmp_path)
    write_fashion_mnist(tmp_path / place)
    assert has_fashion_mnist(tmp_path)
    assert find_fashion_mnist(tmp_path).name == "fashion-mnist"
    assert load_objects(tmp_path).name == "fashion-mnist"


def test_finds_an_installed_debian_package(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEBIAN_FOLDER", write_fashion_mnist(tmp_path / "usr"))
    assert has_fashion_mnist(tmp_path / "sources")
    assert load_objects(tmp_path / "sources").name == "fashion-mnist"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _write_gzip(content: bytes):
    return lambda path: path.write_bytes(gzip.compress(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "cannot be read"),
        (_truncate, "cannot be read"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "cannot be read"),
        (_write_gzip(b""), "is not an IDX file of shape"),
        (_write_gzip(struct.pack(">4I", 0x803, 21, 28, 28)), "is not an IDX file of shape"),
        (_write_gzip(struct.pack(">4I", 0x803, 20, 28, 28) + b"12"), "holds 2 of 15680 values"),
    ],
)
def test_a_broken_file_is_named_and_passed_over(tmp_path, caplog, spoil, message):
    folder = write_fashion_mnist(tmp_path / "fashion-mnist")
    spoil(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(SourceError, match=message) as caught:
        read_fashion_mnist(folder)
    assert "train-images-idx3-ubyte.gz" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert find_fashion_mnist(tmp_path) is None
    assert message in caplog.text


def test_a_label_out_of_range_is_named(tmp_path):
    with pytest.raises(SourceError, match="label 10, above 9"):
        read_fashion_mnist(write_fashion_mnist(tmp_path, label=10))


def test_digits_are_the_last_resort(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_objects(tmp_path / "sources").name == "digits"
    assert "handwritten digits instead" in caplog.text
    with pytest.raises(SourceError, match="put the four"):
        load_objects(tmp_path / "sources", "fashion-mnist")
    with pytest.raises(SourceError, match="object_source is 'cats'"):
        load_objects(tmp_path, "cats")


# ------------------------------------------------------------------------------ bundled images


def test_digits():
    objects = load_digits()
    assert objects.images["train"].shape[1:] == (8, 8)
    assert objects.images["train"].max() == 255
    for split, least in (("train", 110), ("test", 55)):
        assert objects.images[split].dtype == np.uint8
        assert len(objects.images[split]) == len(objects.labels[split])
        assert np.bincount(objects.labels[split], minlength=10).min() >= least


def test_photographs_are_those_in_the_wheels(monkeypatch):
    photographs = load_photographs()
    names = [photograph.name for photograph in photographs]
    assert names == sorted(names)
    assert {"china", "flower", "coffee", "chelsea"} <= set(names)
    assert len(names) >= 10
    for photograph in photographs:
        assert photograph.rgb.dtype == np.uint8
        assert photograph.rgb.ndim == 3
        assert min(photograph.rgb.shape[:2]) >= 256
    # RGB: the astronaut's suit is orange.
    astronaut = next(p for p in photographs if p.name == "astronaut").rgb
    assert astronaut[400, 100, 0] > astronaut[400, 100, 2]


def test_without_scikit_image_fewer_photographs(monkeypatch, caplog):
    find = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name)
    )
    with caplog.at_level(logging.WARNING):
        assert [p.name for p in load_photographs()] == ["china", "flower"]
    assert "skimage is not installed" in caplog.text
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="pip install"):
        load_photographs()
