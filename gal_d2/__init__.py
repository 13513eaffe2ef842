"""Generative active learning for long-tailed instance segmentation on detectron2."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from gal_d2 import compat as compat  # first: it prepares the process for detectron2

if TYPE_CHECKING:
    from gal_d2.config import add_gal_config
    from gal_d2.copy_paste.mapper import CopyPasteMapper
    from gal_d2.copy_paste.options import PasteOptions
    from gal_d2.engine.trainer import GALTrainer
    from gal_d2.judging.attach import attach
    from gal_d2.pool.cut_out import CutOut
    from gal_d2.pool.instance_pool import InstancePool
    from gal_d2.pool.writer import PoolWriter

__all__ = [
    "CopyPasteMapper",
    "CutOut",
    "GALTrainer",
    "InstancePool",
    "PasteOptions",
    "PoolWriter",
    "add_gal_config",
    "attach",
]

_HOMES = {
    "CopyPasteMapper": "gal_d2.copy_paste.mapper",
    "CutOut": "gal_d2.pool.cut_out",
    "GALTrainer": "gal_d2.engine.trainer",
    "InstancePool": "gal_d2.pool.instance_pool",
    "PasteOptions": "gal_d2.copy_paste.options",
    "PoolWriter": "gal_d2.pool.writer",
    "add_gal_config": "gal_d2.config",
    "attach": "gal_d2.judging.attach",
}


def __getattr__(name: str):
    # Loader workers import this package too, and tools that only print their help.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
