"""A whole model with frozen statistics, but otherwise as in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block, norms use and keep their running statistics, and dropout is off.

    The model itself stays in training mode: it samples proposals and takes targets. An extra pass
    then leaves no trace in the model, and no image's gradient depends on the others of its batch.

    Args:
        model: a detectron2 meta-architecture with a ``backbone``.
    """
    # Below the backbone nothing but norms and dropouts asks for the mode; elsewhere, only modules
    # without parts of their own may be told another one.
    frozen = {*model.backbone.modules()}
    frozen.update(m for m in model.modules() if not any(True for _ in m.children()))
    was_training = [m for m in frozen if m.training]
    for module in was_training:
        module.training = False
    try:
        yield
    finally:
        for module in was_training:
            module.training = True
