"""The pool that a config names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gal_d2.datasets.category_identity import dataset_names
from gal_d2.pool.allow_list import check_allow_list, read_allow_list
from gal_d2.pool.instance_pool import InstancePool

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def open_configured_pool(cfg: CfgNode, allow_empty: bool = False) -> InstancePool:
    """The pool of ``GAL.POOL.ROOT``, as far as ``GAL.POOL.ALLOW_LIST`` allows.

    Its category ids are those of the training set, whatever they were when it was filled.

    Raises:
        UserError: there is nothing to read, unless ``allow_empty``; or what its ids mean, or those
            of the list, cannot be told.
    """
    allowed = cfg.GAL.POOL.ALLOW_LIST
    only = read_allow_list(allowed) if allowed else None
    names = dataset_names(cfg.DATASETS.TRAIN[0])
    pool = InstancePool(cfg.GAL.POOL.ROOT, allow_empty=allow_empty, only=only, names=names)
    if allowed:
        check_allow_list(allowed, only, pool, names)
    return pool
