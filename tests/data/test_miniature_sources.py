from __future__ import annotations

import contextlib
import gzip
import logging
import shutil
import stat
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gal_d2.data import miniature_sources as module
from gal_d2.data.miniature_sources import (
    SourceError,
    fashion_mnist_files,
    fetch_fashion_mnist,
    find_fashion_mnist,
    has_fashion_mnist,
    load_digits,
    load_objects,
    load_photographs,
    read_fashion_mnist,
)


@pytest.fixture(autouse=True)
def few_images(monkeypatch, tmp_path):
    """A Fashion-MNIST of 20 + 10 images, and no real one within reach."""
    monkeypatch.setattr(
        module, "FASHION_MNIST_SPLITS", {"train": ("train", 20), "test": ("t10k", 10)}
    )
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "nowhere")
    monkeypatch.setattr(module, "_answers", lambda url: False)


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


# -------------------------------------------------------------------------------------- fetching


def _executable(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport os, shutil, sys\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def fake_debian(tmp_path, monkeypatch):
    """apt-get and dpkg-deb on PATH that know one package, in ``tmp_path / "package"``."""
    package = write_fashion_mnist(tmp_path / "package")
    monkeypatch.setattr(module, "DEBIAN_FOLDER", Path("usr/share/fashion"))
    programs = tmp_path / "bin"
    programs.mkdir()
    _executable(
        programs / "apt-get",
        "lists = [a.split('=')[1] for a in sys.argv if a.startswith('-oDir::State::Lists=')][0]\n"
        "if 'update' in sys.argv:\n"
        "    open(lists + '/known', 'w')\n"
        "    sys.exit(100)\n"
        "if not os.path.exists(lists + '/known'):\n"
        "    sys.exit('E: Unable to locate package')\n"
        "open(sys.argv[-1] + '_1_all.deb', 'w')\n",
    )
    _executable(
        programs / "dpkg-deb",
        "assert os.path.exists(sys.argv[2])\n"
        f"shutil.copytree({str(package)!r}, sys.argv[3] + '/usr/share/fashion')\n",
    )
    monkeypatch.setenv("PATH", str(programs))
    return package


def test_fetches_from_debian_with_own_package_lists(tmp_path, fake_debian, caplog):
    with caplog.at_level(logging.INFO):
        objects = fetch_fashion_mnist(tmp_path / "sources")
    assert objects.images["train"].shape == (20, 28, 28)
    assert "No Fashion-MNIST by torchvision's download" in caplog.text
    assert "does not answer" in caplog.text
    found = sorted(path.name for path in (tmp_path / "sources").rglob("*") if path.is_file())
    assert found == sorted(fashion_mnist_files())
    assert [path.name for path in (tmp_path / "sources").iterdir()] == ["fashion-mnist"]


def test_a_broken_package_leaves_nothing_behind(tmp_path, fake_debian, caplog):
    _truncate(fake_debian / "t10k-images-idx3-ubyte.gz")
    with caplog.at_level(logging.INFO):
        assert fetch_fashion_mnist(tmp_path / "sources") is None
    assert "t10k-images-idx3-ubyte.gz cannot be read" in caplog.text
    assert list((tmp_path / "sources").iterdir()) == []


def test_a_sources_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="file/sources cannot be created"):
        fetch_fashion_mnist(tmp_path / "file" / "sources")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('E: no network')", r"apt-get failed \(E: no network\)"),
        ("import sys; sys.exit(3)", r"apt-get failed \(no message\)"),
        ("", "left no package behind"),
    ],
)
def test_apt_that_fails(tmp_path, fake_debian, program, message):
    _executable(tmp_path / "bin" / "apt-get", program)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(SourceError, match=message):
        module._download_with_apt(tmp_path / "scratch")


def test_a_machine_without_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="there is no apt-get"):
        module._download_with_apt(tmp_path)


def test_fetches_with_torchvision(tmp_path, monkeypatch):
    package = write_fashion_mnist(tmp_path / "server")

    def download(root: str, train: bool, download: bool) -> None:
        shutil.copytree(package, Path(root) / "FashionMNIST" / "raw")

    download.mirrors, download.resources = ["http://localhost/"], [("a", "b")]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    monkeypatch.setattr(module, "_answers", lambda url: True)
    assert load_objects(tmp_path / "sources").name == "fashion-mnist"
    assert has_fashion_mnist(tmp_path / "sources")


def test_torchvision_that_fails(tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise RuntimeError("Error downloading")

    download.mirrors, download.resources = ["http://localhost/"], [("a", "b")]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    monkeypatch.setattr(module, "_answers", lambda url: True)
    with pytest.raises(SourceError, match="Error downloading"):
        module._download_with_torchvision(tmp_path)


def test_digits_are_the_last_resort(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load_objects(tmp_path / "sources").name == "digits"
    assert "handwritten digits instead" in caplog.text
    with pytest.raises(SourceError, match="put the four"):
        load_objects(tmp_path / "sources", "fashion-mnist")
    with pytest.raises(SourceError, match="object_source is 'cats'"):
        load_objects(tmp_path, "cats")


def test_the_probe_gives_up_in_time(monkeypatch):
    monkeypatch.undo()

    def hang(*args, **kwargs) -> contextlib.nullcontext:
        time.sleep(1)
        return contextlib.nullcontext()

    monkeypatch.setattr(module.urllib.request, "urlopen", hang)
    start = time.perf_counter()
    assert not module._answers("http://localhost/", timeout=0.05)
    assert time.perf_counter() - start < 0.9


def test_the_probe_sees_a_refusal_and_an_answer(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "file").write_text("here")
    assert module._answers((tmp_path / "file").as_uri())
    assert not module._answers((tmp_path / "other").as_uri())


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
