"""What a training or an offline scoring found out about a pool's cut-outs, for the review."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.draw import value_of
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.posterior_view import PosteriorView
from gal_d2.selection.ranking import instance_values
from gal_d2.selection.sampler import DrawRule


@dataclass(frozen=True)
class Beliefs:
    """Of the N cut-outs of a pool, what is known by scores, in S signals; verdicts aside.

    Attributes:
        pool_ids: (N,) int64, ascending.
        category_ids: (N,) int64.
        mean, std: (N, S), moments of their qualities.
        weights, ceilings: (S,), of the value.
        rule: how cut-outs are drawn.
        frequency: "r", "c" or "f" by category id, where it is known.
    """

    pool_ids: np.ndarray
    category_ids: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    ceilings: np.ndarray
    rule: DrawRule = field(default_factory=DrawRule)
    frequency: Mapping[int, str] = field(default_factory=dict)

    @property
    def value(self) -> np.ndarray:
        """(N,) expected value."""
        return value_of(self.mean, self.weights, self.ceilings)


def beliefs_of(
    pool: InstancePool,
    scores: str | os.PathLike | None = None,
    frequency: Mapping[int, str] | None = None,
) -> Beliefs:
    """Find what is known of a pool.

    Args:
        pool: all of it is looked at.
        scores: OUTPUT_DIR of a training that draws by the posterior, or a ledger (a folder of
            tools/score_pool.py, or OUTPUT_DIR/ledger); None: nothing is known.
        frequency: see :class:`Beliefs`.

    Raises:
        UserError: there is neither a snapshot nor a ledger, or none of its cut-outs is in the pool.
    """
    ids = pool.all_ids()
    parts = _nothing(len(ids))
    if scores is not None:
        folder = Path(scores)
        view = PosteriorView.latest(folder)
        if view is not None:
            parts = _of_view(view, ids)
        else:
            parts = _of_ledger(folder if _is_ledger(folder) else folder / "ledger", pool)
    return Beliefs(ids, pool.category_of(ids), *parts, frequency=frequency or {})


def _nothing(number: int) -> tuple[np.ndarray, ...]:
    one = np.ones((number, 1))
    return 0 * one, one, np.ones(1), np.full(1, np.inf)


def _of_view(view: PosteriorView, ids: np.ndarray) -> tuple[np.ndarray, ...]:
    mean, std = view.scored_moments(ids)
    if not view.knows(ids).any():
        raise UserError(
            f"no cut-out that the snapshots in {view.snapshots.folder} know is in this pool: give "
            "the OUTPUT_DIR of a training that pasted from it (GAL.POOL.SAMPLER posterior)."
        )
    return mean, std, *view.value_options


def _is_ledger(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.parquet"))


def _of_ledger(folder: Path, pool: InstancePool) -> tuple[np.ndarray, ...]:
    """Combined scores, in standard deviations of their category's, as means of n of them."""
    ids, categories = pool.all_ids(), pool.category_of(pool.all_ids())
    table = instance_values(Ledger(folder))
    table = table.filter(table["value"].is_valid())
    known = pool.contains(table["pool_id"].to_numpy())
    if not known.any():
        raise UserError(
            f"no scored cut-out of the ledger {folder} is in the instance pool {pool.root}: give "
            "the pool that was scored."
        )
    place = np.searchsorted(ids, table["pool_id"].to_numpy()[known])
    value, count = np.full(len(ids), np.nan), np.zeros(len(ids))
    value[place] = table["value"].to_numpy()[known]
    count[place] = table["scored"].to_numpy()[known]
    mean, std = np.zeros((len(ids), 1)), np.ones((len(ids), 1))
    for category in np.unique(categories[place]):
        mine = (categories == category) & (count > 0)
        spread = value[mine].std()
        if spread > 0:
            mean[mine, 0] = (value[mine] - value[mine].mean()) / spread
        std[mine, 0] = 1 / np.sqrt(1 + count[mine])
    return mean, std, np.ones(1), np.full(1, np.inf)
