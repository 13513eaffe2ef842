"""The precision that a run computes with."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from gal_d2.errors import UserError

AUTOCAST_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The data type that ``SOLVER.AMP`` asks for; None for fp32.

    CPUs compute fp16 slowly if at all: there "float16" means bfloat16.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE not in AUTOCAST_DTYPES:
        raise UserError(
            f"SOLVER.AMP.DTYPE is '{cfg.SOLVER.AMP.DTYPE}': choose from {sorted(AUTOCAST_DTYPES)}."
        )
    return AUTOCAST_DTYPES["bfloat16" if cfg.MODEL.DEVICE == "cpu" else cfg.SOLVER.AMP.DTYPE]
