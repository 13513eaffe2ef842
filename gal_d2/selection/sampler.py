"""Which cut-outs of the pool are pasted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from gal_d2.datasets.statistics import image_counts
from gal_d2.errors import UserError, some_of
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.draw import choose_from_best, widened
from gal_d2.selection.posterior_view import PosteriorView
from gal_d2.selection.snapshots import Snapshots

logger = logging.getLogger(__name__)

POOL_SAMPLER_REGISTRY = Registry("POOL_SAMPLER")
POOL_SAMPLER_REGISTRY.__doc__ = """
Functions ``(cfg, pool, class_of_category) -> PoolSampler``, by the value of ``GAL.POOL.SAMPLER``.

- cfg: the whole config.
- pool: the :class:`gal_d2.pool.instance_pool.InstancePool` that is sampled from.
- class_of_category: of the training set's categories, id (as in the JSON) -> class index.
"""


class PoolSampler(Protocol):
    """Draws cut-outs from a pool. It is pickled to the DataLoader's workers."""

    def sample(self, num: int, rng: np.random.Generator, step: int = 0) -> np.ndarray:
        """Draw ``num`` pool ids, with replacement: int64, (num,); (0,) if there is none to draw.

        Args:
            num: how many.
            rng: the only source of randomness.
            step: that the sample is for. What changes while training may show only as a function
                of it (:mod:`gal_d2.selection.snapshots`), or a resumed run would differ.
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
                f"{some_of(pool.category_ids)}, the training set has {some_of(self._dataset_ids)}: "
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
        if len(self.categories) == 0:
            return np.empty(0, dtype=np.int64)
        categories = self.categories[rng.integers(len(self.categories), size=num)]
        return self.draw_candidates(categories, 1, rng)[:, 0]

    def draw_candidates(
        self, categories: np.ndarray, num: int, rng: np.random.Generator
    ) -> np.ndarray:
        """(rows, num) int64 pool ids: for each row cut-outs of its category, uniformly."""
        pool_ids = np.empty((len(categories), num), dtype=np.int64)
        for row, category in enumerate(categories):
            of_category = self.pool.ids(int(category))
            pool_ids[row] = of_category[rng.integers(len(of_category), size=num)]
        return pool_ids

    def _find_categories(self) -> None:
        self._pool_size = len(self.pool)
        self._categories = np.intersect1d(self.pool.category_ids, self._dataset_ids)


@dataclass(frozen=True)
class DrawRule:
    """How a cut-out of a category is chosen; ``GAL.POOL``.

    Attributes:
        candidates: K, how many are looked at, drawn uniformly.
        best: one of this many best of them is taken, uniformly; of more where most cut-outs help,
            see :func:`gal_d2.selection.draw.widened`.
        temperature: factor on what is uncertain about them at the first step; 0: by the expected
            value.
        steps: of the training, over which the temperature falls to 0 linearly; None: it stays.

    Raises:
        UserError: a value makes no sense.
    """

    candidates: int = 12
    best: int = 3
    temperature: float = 0.7
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UserError(f"GAL.POOL.CANDIDATES is {self.candidates}: set it to 1 or more.")
        if not 1 <= self.best <= self.candidates:
            raise UserError(
                f"GAL.POOL.BEST is {self.best}: set it to a value from 1 to GAL.POOL.CANDIDATES, "
                f"{self.candidates}."
            )
        if self.temperature < 0:
            raise UserError(f"GAL.POOL.TEMPERATURE is {self.temperature}: set it to 0 or more.")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> DrawRule:
        """The one of a training."""
        node = cfg.GAL.POOL
        return cls(node.CANDIDATES, node.BEST, node.TEMPERATURE, cfg.SOLVER.MAX_ITER)

    def temperature_at(self, step: int) -> float:
        """What is found out by trying serves the steps that are left: less and less is tried."""
        left = 1.0 if self.steps is None else max(1 - step / self.steps, 0.0)
        return self.temperature * left


class PosteriorSampler(UniformClassSampler):
    """Draws a category, rare ones more often, then one of its cut-outs by what is known about them.

    K candidates are drawn uniformly, each gets a value drawn from its posterior, and one of the
    best few is taken, uniformly. So what is probably good is pasted most, and all of it alike; what
    is uncertain has its chance; where little is bad, little is left out; and a paste costs the same
    whatever the size of the pool.

    Args:
        pool: as for :class:`UniformClassSampler`.
        class_of_category: of the data set's categories, id (as in the JSON) -> class index.
        view: what is known, as it stood at the snapshot that the step sees.
        rule: see there.
        weight: of each category, by its id; None: all the same.
    """

    def __init__(
        self,
        pool: InstancePool,
        class_of_category: Mapping[int, int],
        view: PosteriorView,
        rule: DrawRule | None = None,
        weight: Mapping[int, float] | None = None,
    ) -> None:
        self._class_of = dict(class_of_category)
        self._weight = weight
        super().__init__(pool, class_of_category)
        self.view = view
        self.rule = rule or DrawRule()

    def sample(self, num: int, rng: np.random.Generator, step: int = 0) -> np.ndarray:
        """Draw ``num`` pool ids; see :meth:`PoolSampler.sample`."""
        categories = self.categories
        if len(categories) == 0:
            return np.empty(0, dtype=np.int64)
        self.view.follow(step)
        row = np.searchsorted(self._ends, rng.random(num), side="right")
        pool_ids = self.draw_candidates(categories[row], self.rule.candidates, rng)
        values = self.view.draw_values(pool_ids, self.rule.temperature_at(step), rng)
        helping = self.view.helping(self._classes[row])
        best = widened(self.rule.best, self.rule.candidates, helping)
        return pool_ids[np.arange(num), choose_from_best(values, best, rng)]

    def _find_categories(self) -> None:
        super()._find_categories()
        categories = self._categories.tolist()
        self._classes = np.array([self._class_of[i] for i in categories], np.int64)
        weight = np.ones(len(categories))
        if self._weight is not None:
            weight[:] = [self._weight[category] for category in categories]
        # The last end is left out: no number below 1 lies beyond it, whatever is rounded.
        self._ends = np.cumsum(weight / weight.sum())[:-1]


@POOL_SAMPLER_REGISTRY.register()
def uniform_class(
    cfg: CfgNode, pool: InstancePool, class_of_category: Mapping[int, int]
) -> UniformClassSampler:
    """Class uniform, then cut-out uniform: the published rule."""
    return UniformClassSampler(pool, class_of_category)


@POOL_SAMPLER_REGISTRY.register()
def posterior(
    cfg: CfgNode, pool: InstancePool, class_of_category: Mapping[int, int]
) -> PosteriorSampler:
    """A class, rare ones more often; then a cut-out by what has been found out so far."""
    if not cfg.GAL.SCORER.ENABLED or cfg.GAL.ACCEPT.UNIT != "instance":
        raise UserError(
            "GAL.POOL.SAMPLER is 'posterior', which draws by the scores of single instances: set "
            "GAL.SCORER.ENABLED to True and GAL.ACCEPT.UNIT to instance, or the sampler to "
            "uniform_class."
        )
    rule = DrawRule.from_config(cfg)
    view = PosteriorView(Snapshots.from_config(cfg))
    return PosteriorSampler(pool, class_of_category, view, rule, category_weights(cfg))


def category_weights(cfg: CfgNode) -> dict[int, float] | None:
    """By ``GAL.POOL.CLASS_POWER``: of each category of the training set, by its id; None: alike.

    Raises:
        UserError: the power is below 0.
    """
    power = cfg.GAL.POOL.CLASS_POWER
    if power < 0:
        raise UserError(f"GAL.POOL.CLASS_POWER is {power}: set it to 0 or more.")
    if power == 0:
        return None
    images = image_counts(cfg.DATASETS.TRAIN)
    return {category: max(count, 1) ** -power for category, count in images.items()}


def build_pool_sampler(
    cfg: CfgNode, pool: InstancePool, class_of_category: Mapping[int, int]
) -> PoolSampler:
    """The sampler that ``GAL.POOL.SAMPLER`` names.

    Raises:
        UserError: there is none of that name, or the sampler cannot use the pool.
    """
    name = cfg.GAL.POOL.SAMPLER
    if name not in POOL_SAMPLER_REGISTRY:
        known = ", ".join(sorted(registered for registered, _ in POOL_SAMPLER_REGISTRY))
        raise UserError(f"GAL.POOL.SAMPLER is '{name}'; registered are: {known}.")
    return POOL_SAMPLER_REGISTRY.get(name)(cfg, pool, class_of_category)
