"""Makes detectron2 import and train on current torch, NumPy and Pillow; imported before it.

detectron2 0.6 predates NumPy 1.24 and Pillow 10, and a pure-Python build of it lacks the compiled
extension ``detectron2._C``. Nothing that this project uses needs that extension: ROIAlign, NMS and
mask pasting come from torchvision. What really needs it (rotated boxes, deformable convolution)
fails when it is *called*, with a sentence that says what to install.

On a detectron2 that needs no help, :func:`apply` changes nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator

from gal_d2.model_zoo_import import lend_pkg_resources

MINIMUM_DETECTRON2 = (0, 6)
_INSTALL_HINT = (
    "run `python tools/install_detectron2.py`, or build it from source as its INSTALL.md describes"
)
# The aliases that NumPy 1.24 removed (np.bool is a type of its own again since 2.0).
_NUMPY_ALIASES = {"float": float, "int": int, "bool": bool, "object": object}


class MissingDetectron2Op(RuntimeError):
    """A compiled detectron2 op was called and this installation does not have it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"detectron2's compiled op '{name}' is not in this installation (detectron2._C is "
            "missing). Install a detectron2 that was built with a C++ compiler for your torch: see "
            "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
        )


class _MissingOps(types.ModuleType):
    """Stands in for ``detectron2._C``: any op can be looked up, and raises when it is called."""

    def __init__(self) -> None:
        super().__init__("detectron2._C")
        self.__spec__ = importlib.machinery.ModuleSpec(self.__name__, loader=None)
        self.__file__ = None
        self.has_cuda = lambda: False
        self.get_compiler_version = lambda: "none (pure-Python detectron2)"
        self.get_cuda_version = lambda: "none (pure-Python detectron2)"

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise MissingDetectron2Op(name)

        return missing


def _restore_pillow_names() -> None:
    from PIL import Image

    if not hasattr(Image, "LINEAR"):  # removed in Pillow 10
        Image.LINEAR = Image.BILINEAR


def _stand_in_for_compiled_ops() -> None:
    import detectron2

    if "detectron2._C" in sys.modules or importlib.util.find_spec("detectron2._C") is not None:
        return
    import torch

    sys.modules["detectron2._C"] = detectron2._C = _MissingOps()

    def nms_rotated(boxes, scores, iou_threshold):
        raise MissingDetectron2Op("nms_rotated")

    # 0.6 reaches this one through the torch dispatcher. A module attribute keeps it registered.
    global _ops_library
    _ops_library = torch.library.Library("detectron2", "FRAGMENT")
    _ops_library.define("nms_rotated(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _ops_library.impl("nms_rotated", nms_rotated, "CompositeImplicitAutograd")


class _NumpyWithAliases(types.ModuleType):
    def __init__(self, numpy: types.ModuleType) -> None:
        super().__init__("numpy")
        self.__dict__.update(_NUMPY_ALIASES)
        self._numpy = numpy

    def __getattr__(self, name: str):
        return getattr(self._numpy, name)


@contextlib.contextmanager
def numpy_aliases(*modules: types.ModuleType) -> Iterator[None]:
    """Within the block, ``modules`` alone see ``np.float``, ``np.int`` ... as before NumPy 1.24.

    Args:
        modules: modules with a global ``np``, e.g. ``lvis.eval``.
    """
    originals = [module.np for module in modules]
    for module in modules:
        module.np = _NumpyWithAliases(module.np)
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.np = original


def _restore_numpy_aliases() -> None:
    """``detectron2.data.build`` prints the class histogram with ``np.int``."""
    import numpy as np

    module = importlib.import_module("detectron2.data.build")  # perhaps it is being imported now
    if not hasattr(np, "int") and not isinstance(module.np, _NumpyWithAliases):
        module.np = _NumpyWithAliases(module.np)


def apply() -> None:
    """Prepare the process for detectron2; safe to call many times.

    Raises:
        ImportError: detectron2 is missing or older than 0.6; the message says how to install it.
    """
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(f"detectron2 is not installed: {_INSTALL_HINT}.")
    _apply_basics()
    _restore_numpy_aliases()


def _apply_basics() -> None:
    """All but what concerns ``detectron2.data.build``, which takes long to import."""
    _restore_pillow_names()
    lend_pkg_resources()

    import detectron2

    version = tuple(int(part) for part in detectron2.__version__.split(".")[:2])
    if version < MINIMUM_DETECTRON2:
        raise ImportError(f"detectron2 {detectron2.__version__} is too old: {_INSTALL_HINT}.")
    _stand_in_for_compiled_ops()


class _PreparingLoader(importlib.abc.Loader):
    """Loads a module as its own loader does, and prepares it at once."""

    def __init__(self, loader: importlib.abc.Loader, prepare: Callable[[], None]) -> None:
        self._loader, self._prepare = loader, prepare

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        # Whoever looks for its files asks its own loader.
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._prepare()


class _PreparingFinder(importlib.abc.MetaPathFinder):
    """Waits for the first import of each of some modules."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self._waiting = waiting

    def find_spec(self, name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        prepare = self._waiting.pop(name, None)
        if prepare is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is not None:
            spec.loader = _PreparingLoader(spec.loader, prepare)
        return spec


def prepare() -> None:
    """Have :func:`apply` called when detectron2 is imported; at once if it has been.

    A tool that prints its help imports this package without waiting for detectron2 and torch.

    Raises:
        ImportError: detectron2 is missing; or older than 0.6, and imported already.
    """
    if "detectron2" in sys.modules:
        apply()
        return
    if importlib.util.find_spec("detectron2") is None:
        raise ImportError(f"detectron2 is not installed: {_INSTALL_HINT}.")
    sys.meta_path.insert(
        0,
        _PreparingFinder(
            {"detectron2": _apply_basics, "detectron2.data.build": _restore_numpy_aliases}
        ),
    )


prepare()
