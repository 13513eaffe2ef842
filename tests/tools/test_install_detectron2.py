"""tools/install_detectron2.py runs nothing of a file that it does not know."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("uv") is None, reason="uv is not installed: detectron2 was there"
)


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    return load_script(repository / "tools/install_detectron2.py")


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """An index in a folder, whose copy of detectron2 leaves a mark where its setup.py runs."""
    setup = f"""\
from pathlib import Path
from setuptools import setup

Path({str(tmp_path / "ran")!r}).touch()
setup(name="pb1-detectron2", version="0.6", py_modules=[])
"""
    index = tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / "pb1-detectron2-0.6.tar.gz", "w:gz") as archive:
        for name, text in (
            ("setup.py", setup),
            ("PKG-INFO", "Metadata-Version: 2.1\nName: pb1-detectron2\nVersion: 0.6\n"),
        ):
            entry = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return index


def install(tool: ModuleType, registry: Path) -> subprocess.CompletedProcess:
    folder = registry.parent
    command = tool.uv_install_command(folder / "requirements.txt")
    offline = ["--offline", "--no-index", "--no-cache", "--find-links", str(registry)]
    return subprocess.run(
        [*command, *offline, "--target", str(folder / "site")], capture_output=True, text=True
    )


def test_another_file_is_refused_before_it_runs(tool: ModuleType, registry: Path):
    done = install(tool, registry)
    assert done.returncode != 0 and "ash mismatch" in done.stderr, done.stderr
    assert tool.SHA256 in done.stderr
    assert not (registry.parent / "ran").exists()
    assert not list((registry.parent / "site").glob("pb1*"))


def test_the_known_file_is_installed(tool: ModuleType, registry: Path, monkeypatch):
    """The same with its hash, so that it is the hash that the other test fails by."""
    content = (registry / "pb1-detectron2-0.6.tar.gz").read_bytes()
    monkeypatch.setattr(tool, "SHA256", hashlib.sha256(content).hexdigest())
    done = install(tool, registry)
    assert done.returncode == 0, done.stderr
    assert (registry.parent / "ran").exists()


@pytest.mark.parametrize("module", ["detectron2.data", "detectron2.engine", "detectron2.model_zoo"])
def test_detectron2_may_be_imported_first(module: str):
    code = (
        f"import {module}, gal_d2; from detectron2.modeling import build_model; "
        "from detectron2.data.build import print_instances_class_histogram"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_registrys_copy_is_told_to_import_gal_d2(tool: ModuleType, tmp_path, monkeypatch):
    package = tmp_path / "detectron2"
    package.mkdir()
    init = package / "__init__.py"
    init.write_text('__version__ = "0.6"\n')
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, module)

    def absent(name: str) -> None:
        raise tool.importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(tool.importlib.metadata, "distribution", absent)
        tool.help_first()
    assert "gal_d2" not in init.read_text()
    monkeypatch.setattr(tool.importlib.metadata, "distribution", lambda name: None)
    tool.help_first()
    tool.help_first()
    assert init.read_text().count("import gal_d2") == 1


def test_a_failure_names_the_command(tool: ModuleType, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise subprocess.CalledProcessError(1, ["uv", "pip", "install"])

    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: name == "torch" or None)
    monkeypatch.setattr(tool.subprocess, "run", fail)
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    assert tool.main() == 1
    error = capsys.readouterr().err
    assert "uv pip install failed" in error and "After a hash mismatch do not install" in error
