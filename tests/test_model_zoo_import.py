"""The stand-in for pkg_resources is the model zoo's alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

CHECK = """\
import importlib.util, sys
import gal_d2.model_zoo_import as module

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
    None if name == "pkg_resources" else find(name, *rest)
)
sys.modules.pop("pkg_resources", None)
module.lend_pkg_resources()
module.lend_pkg_resources()
assert sum(isinstance(finder, module._Finder) for finder in sys.meta_path) == 1
assert "pkg_resources" not in sys.modules

import gal_d2.compat
import detectron2.model_zoo
import detectron2.model_zoo.model_zoo as zoo

assert "pkg_resources" not in sys.modules
assert zoo.pkg_resources.__spec__ is None
print(zoo.pkg_resources.resource_filename("detectron2.model_zoo", "model_zoo.py") == zoo.__file__)
print(type(zoo.__loader__).__name__, zoo.__spec__.loader is zoo.__loader__)
try:
    detectron2.model_zoo.get_config_file("no/such.yaml")
except RuntimeError as error:
    print(error)
"""


def test_only_the_model_zoo_sees_it(repository: Path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "True",
        "SourceFileLoader True",
        "no/such.yaml not available in Model Zoo!",
    ]


def test_where_setuptools_has_it_nothing_is_changed(monkeypatch):
    import gal_d2.model_zoo_import as module

    finders = [finder for finder in sys.meta_path if not isinstance(finder, module._Finder)]
    monkeypatch.setattr(sys, "meta_path", finders.copy())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    module.lend_pkg_resources()
    assert sys.meta_path == finders


def test_the_package_installs_nothing_in_sys_modules_but_the_ops(repository: Path):
    """And runs no package manager: fetching belongs to tools/."""
    for path in (repository / "gal_d2").rglob("*.py"):
        text = path.read_text()
        assert "apt-get" not in text and "urlopen" not in text, path
        if path.name not in ("compat.py", "model_zoo_import.py"):
            assert "sys.modules[" not in text, path
