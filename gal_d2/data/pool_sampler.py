"""Which cut-outs of the pool are pasted."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from gal_d2.data.pool import InstancePool
from gal_d2.data.snapshots import Snapshots
from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

POOL_SAMPLER_REGISTRY = Registry("POOL_SAMPLER")
POOL_SAMPLER_REGISTRY.__doc__ = """
Functions ``(cfg, pool, category_ids) -> PoolSampler``, by the value of ``GAL.POOL.SAMPLER``.

- cfg: the whole config.
- pool: the :class:`gal_d2.data.pool.InstancePool` that is sampled from.
- category_ids: ids (as in the JSON) of the categories of the training set.
"""


class PoolSampler(Protocol):
    """Draws cut-outs from a pool. It is pickled to the DataLoader's workers."""

    def sample(self, num: int, rng: np.random.Generator, step: int = 0) -> np.ndarray:
        """Draw ``num`` pool ids, with replacement: int64, (num,); (0,) if there is none to draw.

        Args:
            num: how many.
            rng: the only source of randomness.
            step: that the sample is for. What changes while training may show only as a function
                of it (:mod:`gal_d2.data.snapshots`), or a resumed run would differ.
        """
        ...


class UniformClassSampler:
    """Draws a category uniformly, then one of its cut-outs uniformly.

    Of the categories, those count that are in the pool and in the data set. The pool may grow
    (``pool.refresh()``): its new cut-outs take part from the next draw on.

    Args:
        pool: sampled from.
        category_ids: ids (as in the JSON) of the data set's categories.

    Raises:
        UserError: the pool has cut-outs, but of none of these categories.
    """

    def __init__(self, pool: InstancePool, category_ids: Iterable[int]) -> None:
        self.pool = pool
        self._dataset_ids = np.array(sorted(category_ids), dtype=np.int64)
        self._pool_size = -1
        self._categories = np.empty(0, dtype=np.int64)
        self._find_categories()
        if len(pool) == 0:
            logger.warning(
                "The instance pool %s is empty: nothing is pasted until it has cut-outs.", pool.root
            )
        elif len(self._categories) == 0:
            raise UserError(
                f"The instance pool {pool.root} (GAL.POOL.ROOT) has cut-outs of categories "
                f"{_some(pool.category_ids)}, the training set has {_some(self._dataset_ids)}: "
                "none in common; make the pool with the category ids of the annotation JSON."
            )

    @property
    def categories(self) -> np.ndarray:
        """int64, ascending: the ids of the categories that are drawn from."""
        if len(self.pool) != self._pool_size:
            self._find_categories()
        return self._categories

    def sample(self, num: int, rng: np.random.Generator, step: int = 0) -> np.ndarray:
        """Draw ``num`` pool ids; see :meth:`PoolSampler.sample`."""
        categories = self.categories
        if len(categories) == 0:
            return np.empty(0, dtype=np.int64)
        pool_ids = np.empty(num, dtype=np.int64)
        for position, category in enumerate(rng.integers(len(categories), size=num)):
            candidates = self.pool.ids(int(categories[category]))
            pool_ids[position] = candidates[rng.integers(len(candidates))]
        return pool_ids

    def _find_categories(self) -> None:
        self._pool_size = len(self.pool)
        self._categories = np.intersect1d(self.pool.category_ids, self._dataset_ids)


class LedgerSampler(UniformClassSampler):
    """Draws a category uniformly, then one of its cut-outs in proportion to its weight.

    A cut-out that was never scored has weight 1, the highest. The others' weights come from what
    training has found out about them (:func:`gal_d2.scoring.evidence.sampling_weights`), as it
    stood at the snapshot that the step sees.

    Args:
        pool, category_ids: as for :class:`UniformClassSampler`.
        snapshots: with ``evidence.pool_ids``, (n,) ascending, and ``evidence.weights``, (n,).
    """

    def __init__(
        self, pool: InstancePool, category_ids: Iterable[int], snapshots: Snapshots
    ) -> None:
        super().__init__(pool, category_ids)
        self.snapshots = snapshots
        self._key: tuple[int, int] | None = None
        self._cumulative: dict[int, np.ndarray] = {}

    def sample(self, num: int, rng: np.random.Generator, step: int = 0) -> np.ndarray:
        """Draw ``num`` pool ids; see :meth:`PoolSampler.sample`."""
        categories = self.categories
        if len(categories) == 0:
            return np.empty(0, dtype=np.int64)
        key = self.snapshots.number(step), len(self.pool)
        if key != self._key:
            self._key, self._cumulative = key, {}
        pool_ids = np.empty(num, dtype=np.int64)
        chosen = categories[rng.integers(len(categories), size=num)].tolist()
        for position, (category, part) in enumerate(zip(chosen, rng.random(num), strict=True)):
            candidates = self.pool.ids(category)
            cumulative = self._cumulative_weights(category, candidates, step)
            place = int(np.searchsorted(cumulative, part * cumulative[-1], side="right"))
            pool_ids[position] = candidates[min(place, len(candidates) - 1)]
        return pool_ids

    def _cumulative_weights(self, category: int, pool_ids: np.ndarray, step: int) -> np.ndarray:
        """(n,) cumulative weights of a category's cut-outs; computed once a snapshot."""
        if category not in self._cumulative:
            known = self.snapshots.at(step)
            nothing = np.empty(0)
            weights = weights_of(
                pool_ids,
                known.get("evidence.pool_ids", nothing),
                known.get("evidence.weights", nothing),
            )
            self._cumulative[category] = np.cumsum(weights)
        return self._cumulative[category]


def weights_of(pool_ids: np.ndarray, known_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,) float64: the weight of each of ``pool_ids`` (n,), 1 where it is not known.

    Args:
        pool_ids: asked for.
        known_ids: (m,) ascending.
        weights: (m,) of these.

    Example:
        >>> weights_of(np.array([3, 5, 9]), np.array([5, 7]), np.array([0.2, 0.4])).tolist()
        [1.0, 0.2, 1.0]
    """
    found = np.ones(len(pool_ids))
    if len(known_ids):
        place = np.searchsorted(known_ids, pool_ids).clip(max=len(known_ids) - 1)
        is_known = known_ids[place] == pool_ids
        found[is_known] = weights[place[is_known]]
    return found


def _some(category_ids: np.ndarray) -> str:
    shown = ", ".join(str(category_id) for category_id in category_ids[:5].tolist())
    return f"{shown}, ... ({len(category_ids)} in all)" if len(category_ids) > 5 else shown


@POOL_SAMPLER_REGISTRY.register()
def uniform_class(
    cfg: CfgNode, pool: InstancePool, category_ids: Iterable[int]
) -> UniformClassSampler:
    """Class uniform, then cut-out uniform: the published rule."""
    return UniformClassSampler(pool, category_ids)


@POOL_SAMPLER_REGISTRY.register()
def ledger(cfg: CfgNode, pool: InstancePool, category_ids: Iterable[int]) -> LedgerSampler:
    """Class uniform, then cut-out by how it scored in the training so far."""
    if not cfg.GAL.SCORER.ENABLED:
        raise UserError(
            "GAL.POOL.SAMPLER is 'ledger', which draws by the scores of the training, but "
            "GAL.SCORER.ENABLED is off: turn it on, or set the sampler to uniform_class."
        )
    if not 0 < cfg.GAL.POOL.MIN_WEIGHT <= 1:
        raise UserError(
            f"GAL.POOL.MIN_WEIGHT is {cfg.GAL.POOL.MIN_WEIGHT}: set it to a value in (0, 1]."
        )
    return LedgerSampler(pool, category_ids, Snapshots.from_config(cfg))


def build_pool_sampler(
    cfg: CfgNode, pool: InstancePool, category_ids: Iterable[int]
) -> PoolSampler:
    """The sampler that ``GAL.POOL.SAMPLER`` names.

    Raises:
        UserError: there is none of that name, or the sampler cannot use the pool.
    """
    name = cfg.GAL.POOL.SAMPLER
    if name not in POOL_SAMPLER_REGISTRY:
        known = ", ".join(sorted(registered for registered, _ in POOL_SAMPLER_REGISTRY))
        raise UserError(f"GAL.POOL.SAMPLER is '{name}'; registered are: {known}.")
    return POOL_SAMPLER_REGISTRY.get(name)(cfg, pool, category_ids)
