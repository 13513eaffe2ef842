"""Reads files of weights without running code that they bring.

torch's own files hold tensors and plain containers, and ``weights_only`` refuses anything else. The
``.pkl`` files of detectron2's model zoo are pickles: they are read by an unpickler that knows how
to make NumPy arrays and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gal_d2.files.checksum import require_intact

_UNUSED = "num_batches_tracked"  # of batch normalisation
_ARRAYS = frozenset(
    {
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),  # bytes of arrays in pickles of protocol 2
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *(
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (
                ("multiarray", "_reconstruct"),
                ("multiarray", "scalar"),
                ("numeric", "_frombuffer"),
            )
        ),
    }
)


# What reading a broken file raises.
DAMAGE = (
    *(OSError, EOFError, RuntimeError, pickle.UnpicklingError, AttributeError, ValueError),
    *(KeyError, TypeError, IndexError, AssertionError, ImportError),
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and only arrays are read from a .pkl"
            )
        return super().find_class(module, name)


def read_state(path: str | Path) -> Any:
    """What a file of torch's holds, on the CPU; compared with its checksum where it has one.

    Raises:
        DAMAGE: the file is broken, or holds other things than tensors and plain containers.
    """
    require_intact(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint in detectron2's form, with its ``model``.

    Args:
        path: a ``.pth``, or a ``.pkl`` of detectron2's or Detectron's model zoo, or a ``.pyth``.

    Raises:
        pickle.UnpicklingError: the file holds other things than arrays and plain containers.
        Exception: what a broken file makes torch and pickle raise.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            return _from_zoo(_ArrayUnpickler(file, encoding="latin1").load())
    loaded = read_state(path)
    if path.suffix == ".pyth":  # of pycls
        weights = {k: v for k, v in loaded["model_state"].items() if not k.endswith(_UNUSED)}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    return loaded if "model" in loaded else {"model": loaded}


def _from_zoo(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``.pkl`` holds, in detectron2's form."""
    if "model" in content and "__author__" in content:
        return dict(content)
    blobs = content.get("blobs", content)  # Caffe2: detectors have the key, ImageNet models do not
    weights = {name: array for name, array in blobs.items() if not name.endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
