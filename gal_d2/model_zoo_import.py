"""Lends detectron2's model zoo a ``pkg_resources``, and nobody else.

``detectron2.model_zoo.model_zoo`` wants setuptools' old module for one function; setuptools 81
dropped it. A stand-in that stayed in ``sys.modules`` would mislead every other library that looks
whether the module is there, so it is there only while that one file is being imported.
"""

from __future__ import annotations

import importlib.machinery
import importlib.resources
import importlib.util
import sys
import types
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder

BORROWER = "detectron2.model_zoo.model_zoo"
_LENT = "pkg_resources"


def lend_pkg_resources() -> None:
    """Have the model zoo import where setuptools has no ``pkg_resources``; safe to call often."""
    is_there = importlib.util.find_spec(_LENT) is not None
    if is_there or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the borrower, as ever, and has its loader lend it the stand-in."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name != BORROWER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LendingLoader(spec.loader)
        return spec


class _LendingLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        sys.modules[_LENT] = _stand_in()
        try:
            self._loader.exec_module(module)
        finally:
            del sys.modules[_LENT]


def _stand_in() -> types.ModuleType:
    module = types.ModuleType(_LENT)
    module.resource_filename = lambda package, path: str(importlib.resources.files(package) / path)
    return module
