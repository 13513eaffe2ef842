"""Where scripts that were written for 0.1 look for parts that have moved since.

Nothing in GAL-D2 imports this package; it goes with 0.3.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings

_MOVED = {
    "dataset_mapper": {"CopyPasteMapper": "gal_d2.copy_paste.mapper"},
    "image_file": {"read_training_image": "gal_d2.files.image_file"},
    "pool": {
        "CutOut": "gal_d2.pool.cut_out",
        "CutOutSource": "gal_d2.pool.cut_out",
        "InstancePool": "gal_d2.pool.instance_pool",
        "PoolWriter": "gal_d2.pool.writer",
    },
}
"""Old module -> name -> where it is now."""


def _old_module(name: str, homes: dict[str, str]) -> types.ModuleType:
    module = types.ModuleType(f"{__name__}.{name}", "Moved: see gal_d2.data.")
    for attribute, home in homes.items():
        setattr(module, attribute, getattr(importlib.import_module(home), attribute))
    return module


warnings.warn(
    "gal_d2.data has moved: docs/layout.md says what is where, and gal_d2 itself has InstancePool, "
    "PoolWriter, CutOut and CopyPasteMapper.",
    DeprecationWarning,
    stacklevel=2,
)
for _name, _homes in _MOVED.items():
    sys.modules[f"{__name__}.{_name}"] = _old_module(_name, _homes)
