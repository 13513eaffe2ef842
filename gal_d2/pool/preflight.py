"""A look at a pool before it is used: can its cut-outs be pasted, and are there real objects?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from gal_d2.errors import UserError, some_of
from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.usable import UsableCount

logger = logging.getLogger(__name__)

_MOST = 256  # cut-outs that are decoded at the start, a second's work
_NAMED = 5


def require_usable_pool(
    pool: InstancePool, category_ids: Sequence[int], names: Mapping[int, str]
) -> UsableCount:
    """Decode some cut-outs of each category; warn of those that can never be pasted.

    Args:
        pool: whose cut-outs are to be pasted; perhaps empty.
        category_ids: ids (as in the JSON) of the categories that are pasted.
        names: category names by id.

    Returns:
        What was looked at; all of the pool if it is small.

    Raises:
        UserError: none of them can be pasted.
    """
    total = UsableCount()
    hopeless = []
    for category_id, pool_ids in _chosen(pool, category_ids):
        count = UsableCount()
        for pool_id in pool_ids.tolist():
            try:
                count.add(pool.get(pool_id).rgba)
            except CorruptCutOutError:  # the pool has logged it
                count.looked_at += 1
                count.problems["unreadable"] += 1
        total.merge(count)
        if count.looked_at and count.unusable == count.looked_at:
            hopeless.append(names.get(category_id, str(category_id)))
    if not total.unusable:
        return total
    if total.unusable == total.looked_at:
        raise UserError(
            f"none of the {total.looked_at} cut-outs of the instance pool {pool.root} "
            f"(GAL.POOL.ROOT) that were looked at can be pasted: {total.reasons()}; "
            "tools/check_pool.py counts all, and cut-outs whose objects are opaque (alpha above "
            "128) on a transparent background have to be imported in their place."
        )
    logger.warning(
        "%d of %d cut-outs of the instance pool %s that were looked at can never be pasted, and "
        "are skipped: %s%s; tools/check_pool.py counts all.",
        total.unusable,
        total.looked_at,
        pool.root,
        total.reasons(),
        f"; of {some_of(hopeless)} all" if hopeless else "",
    )
    return total


def warn_of_classes_without_objects(
    pool: InstancePool,
    class_of_category: Mapping[int, int],
    class_names: Sequence[str],
    instance_count: np.ndarray,
) -> list[str]:
    """Name the categories of the pool that have no real object in the training set.

    Nothing tells what a good object of theirs looks like: their pastes get no score.

    Args:
        pool: that is pasted from.
        class_of_category: category id (as in the JSON) -> class index.
        class_names: by class index.
        instance_count: (C,) real objects of each class that train.

    Returns:
        The names, by class index.
    """
    classes = sorted(
        class_of_category[i] for i in pool.category_ids.tolist() if i in class_of_category
    )
    missing = [class_names[k] for k in classes if instance_count[k] == 0]
    if missing:
        logger.warning(
            "%d of the %d categories of the pool have no real object in the training set: %s. "
            "Their pastes get no score, so GAL.ACCEPT.WARM_UP.RULE decides on them in all of the "
            "training.",
            len(missing),
            len(classes),
            some_of(missing),
        )
    return missing


def _chosen(pool: InstancePool, category_ids: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """Cut-outs to look at, spread evenly; all of a pool that has no more than ``_MOST``."""
    categories = [int(i) for i in category_ids if len(pool.ids(int(i)))]
    if sum(len(pool.ids(i)) for i in categories) <= _MOST:
        return [(i, pool.ids(i)) for i in categories]
    if len(categories) > _MOST:
        categories = _evenly(np.array(categories), _MOST).tolist()
    return [(i, _evenly(pool.ids(i), _MOST // len(categories))) for i in categories]


def _evenly(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) <= count:
        return values
    return values[np.linspace(0, len(values) - 1, count).round().astype(int)]
