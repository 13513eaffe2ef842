"""Values of the fields that this project adds to detectron2's ``Instances``."""

from __future__ import annotations

from enum import IntEnum


class InstanceSource(IntEnum):
    """The field ``instance_source``, (N,) int64: where an object of a training image comes from."""

    REAL = 0  # annotated in the image
    PASTED = 1


# The field `pool_id`, (N,) int64, of an object that is not from the instance pool.
NO_POOL_ID = -1
