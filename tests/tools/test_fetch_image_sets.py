"""tools/fetch_image_sets.py, with a Debian and a server of our own."""

from __future__ import annotations

import logging
import shutil
import stat
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from fashion_mnist import few_images, write_fashion_mnist  # noqa: F401  (a fixture)
from scripts import load_script

from gal_d2.errors import UserError
from gal_d2.testbeds.miniature.sources import (
    SourceError,
    fashion_mnist_files,
    find_fashion_mnist,
    has_fashion_mnist,
    load_objects,
)


@pytest.fixture
def tool(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool; no server answers."""
    module = load_script(repository / "tools/fetch_image_sets.py")
    monkeypatch.setattr(module, "_answers", lambda url: False)
    return module


def _executable(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\nimport os, shutil, sys\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def fake_debian(tool, tmp_path, monkeypatch):
    """apt-get and dpkg-deb on PATH that know one package, in ``tmp_path / "package"``."""
    package = write_fashion_mnist(tmp_path / "package")
    monkeypatch.setattr(tool, "DEBIAN_FOLDER", Path("usr/share/fashion"))
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


def test_fetches_from_debian_with_own_package_lists(tool, tmp_path, fake_debian, caplog):
    with caplog.at_level(logging.INFO):
        assert tool.fetch_fashion_mnist(tmp_path / "sources")
    assert find_fashion_mnist(tmp_path / "sources").images["train"].shape == (20, 28, 28)
    assert "No Fashion-MNIST by torchvision's download" in caplog.text
    assert "does not answer" in caplog.text
    found = sorted(path.name for path in (tmp_path / "sources").rglob("*") if path.is_file())
    assert found == sorted(fashion_mnist_files())
    assert [path.name for path in (tmp_path / "sources").iterdir()] == ["fashion-mnist"]


def test_a_broken_package_leaves_nothing_behind(tool, tmp_path, fake_debian, caplog):
    path = fake_debian / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.INFO):
        assert not tool.fetch_fashion_mnist(tmp_path / "sources")
    assert "t10k-images-idx3-ubyte.gz cannot be read" in caplog.text
    assert list((tmp_path / "sources").iterdir()) == []


def test_a_sources_folder_that_cannot_be_made_is_named(tool, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="file/sources cannot be created"):
        tool.fetch_fashion_mnist(tmp_path / "file" / "sources")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('E: no network')", r"apt-get failed \(E: no network\)"),
        ("import sys; sys.exit(3)", r"apt-get failed \(no message\)"),
        ("", "left no package behind"),
    ],
)
def test_apt_that_fails(tool, tmp_path, fake_debian, program, message):
    _executable(tmp_path / "bin" / "apt-get", program)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(SourceError, match=message):
        tool._download_with_apt(tmp_path / "scratch")


def test_a_machine_without_apt(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="there is no apt-get"):
        tool._download_with_apt(tmp_path)


def test_fetches_with_torchvision(tool, tmp_path, monkeypatch):
    package = write_fashion_mnist(tmp_path / "server")

    def download(root: str, train: bool, download: bool) -> None:
        shutil.copytree(package, Path(root) / "FashionMNIST" / "raw")

    download.mirrors, download.resources = ["http://localhost/"], [("a", "b")]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    monkeypatch.setattr(tool, "_answers", lambda url: True)
    assert (
        load_objects(tmp_path / "sources", fetch=tool.fetch_fashion_mnist).name == "fashion-mnist"
    )
    assert has_fashion_mnist(tmp_path / "sources")


def test_torchvision_that_fails(tool, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise RuntimeError("Error downloading")

    download.mirrors, download.resources = ["http://localhost/"], [("a", "b")]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    monkeypatch.setattr(tool, "_answers", lambda url: True)
    with pytest.raises(SourceError, match="Error downloading"):
        tool._download_with_torchvision(tmp_path)


def test_the_probe_does_not_wait_for_a_server_that_hangs(tool, monkeypatch):
    monkeypatch.undo()
    over = threading.Event()

    def hang(*args, **kwargs) -> None:
        over.wait()
        raise OSError("nobody waits any more")

    monkeypatch.setattr(tool.urllib.request, "urlopen", hang)
    assert not tool._answers("http://localhost/", timeout=0.05)
    over.set()


def test_the_probe_sees_a_refusal_and_an_answer(tool, tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "file").write_text("here")
    assert tool._answers((tmp_path / "file").as_uri())
    assert not tool._answers((tmp_path / "other").as_uri())


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where torchvision was asked to download CIFAR-10 to."""
    asked: list[str] = []

    class FakeCIFAR10:
        base_folder = "cifar-10-batches-py"
        url = "http://localhost/cifar"

        def __init__(self, root: str, download: bool) -> None:
            asked.append(root)
            (Path(root) / self.base_folder).mkdir(parents=True)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCIFAR10)
    return asked


def test_cifar_is_fetched_once_and_said(tool, tmp_path, monkeypatch, cifar10, caplog, capsys):
    with pytest.raises(UserError, match="no way leads to cifar10"):
        tool.main(["cifar10", "--output", str(tmp_path)])
    monkeypatch.setattr(tool, "_answers", lambda url: True)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            tool.main(["cifar10", "--output", str(tmp_path)])
    assert cifar10 == [str(tmp_path)]
    assert f"Fetching CIFAR-10 (170 MB) from http://localhost/cifar into {tmp_path}" in caplog.text
    assert capsys.readouterr().out.count("cifar10: in") == 2


def test_what_is_there_is_not_fetched(tool, tmp_path, monkeypatch, capsys):
    write_fashion_mnist(tmp_path / "fashion-mnist")
    monkeypatch.setattr(tool, "fetch_fashion_mnist", None)
    tool.main(["fashion-mnist", "--output", str(tmp_path)])
    assert "fashion-mnist: in" in capsys.readouterr().out
