"""The accounts of what was drawn, dropped and accepted, by category and prompt template.

A :class:`CategoryScheduler` keeps them; the rules that choose by them are in
:mod:`gal_d2.generation.schedule_rules`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gal_d2.generation.generator import NO_CANDIDATE, template_of
from gal_d2.generation.journal import Outcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """What one draw can be: a category (id as in the JSON) and one of its prompt templates."""

    category_id: int
    template: str


class CategoryScheduler(ABC):
    """Chooses arms, and keeps the accounts that the choice may depend on.

    A draw's fate becomes known in steps: the pipeline drops it or stores a cut-out
    (:meth:`record_outcomes`), and training accepts or rejects that (:meth:`record_judgements`).
    Everything is a function of the seed and of what was recorded.

    Args:
        arms: all there are, distinct.
        image_counts: real training images of each arm's category.
        seed: of the random choices.
        exposures: how many times a new instance is looked at.

    Attributes:
        arms: as given.
        drawn, dropped: (A,) int64, images by arm, and how many of them came to nothing.
        judged, accepted: (A,) float64, stored cut-outs by arm in units of one instance: shares of
            their first exposures that were seen, and that training accepted.
    """

    def __init__(
        self, arms: Sequence[Arm], image_counts: Sequence[int], *, seed: int = 0, exposures: int = 4
    ) -> None:
        if not arms or len(arms) != len(set(arms)) or len(arms) != len(image_counts):
            raise ValueError("arms are distinct, at least one, each with an image count")
        if exposures < 1:
            raise ValueError(f"exposures must be at least 1, not {exposures}.")
        self.arms = tuple(arms)
        self.seed = seed
        self.exposures = exposures
        self.drawn = np.zeros(len(arms), np.int64)
        self.dropped = np.zeros(len(arms), np.int64)
        self.judged = np.zeros(len(arms))
        self.accepted = np.zeros(len(arms))
        self._index = {arm: k for k, arm in enumerate(self.arms)}
        ids, first, self._category = np.unique(
            [arm.category_id for arm in arms], return_index=True, return_inverse=True
        )
        self._category_ids = ids
        self._image_count = np.asarray(image_counts, np.float64)[first].clip(min=1)
        self._is_open = np.ones(len(ids), bool)
        self._num_draws = 0  # also of those given back: numbers the random generators
        self._fresh: dict[int, tuple[int, int]] = {}  # pool id -> arm, exposures so far
        self._waiting: set[int] = set()  # those of them that were not pasted yet
        # Which of several equals comes first: a random order, or the smallest ids always would.
        self._tie_break = np.random.default_rng([5, seed]).permutation(len(ids)) / len(ids)

    @property
    def num_waiting(self) -> int:
        """Number of stored cut-outs that were not pasted yet."""
        return len(self._waiting)

    def waiting_ids(self) -> np.ndarray:
        """(n,) int64, ascending: the pool ids of these."""
        return np.array(sorted(self._waiting), np.int64)

    @property
    def category_ids(self) -> np.ndarray:
        """(C,) int64, ascending."""
        return self._category_ids

    def by_category(self, values: np.ndarray) -> np.ndarray:
        """(C,) sums of an (A,) array over each category's arms."""
        return np.bincount(self._category, values, minlength=len(self._category_ids))

    def draw(self, num: int) -> list[Arm]:
        """The next ``num`` images to ask for; none if no category has anything left to draw."""
        chosen = []
        for _ in range(num if self._is_open.any() else 0):
            arm = self._pick()
            self.drawn[arm] += 1
            self._num_draws += 1
            chosen.append(self.arms[arm])
        return chosen

    def give_back(self, arms: Iterable[Arm]) -> None:
        """Take draws back that nothing came of, because the generator died. Arms that are not
        among these (any more) are ignored."""
        for arm in arms:
            if arm in self._index:
                self.drawn[self._index[arm]] -= 1

    def record_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """What became of draws in the pipeline.

        A category of which there is nothing left to draw is left out from then on.
        """
        for outcome in outcomes:
            arm = Arm(outcome.request.category_id, outcome.request.template)
            if outcome.reason == NO_CANDIDATE:
                self.give_back([arm])
                self._close(arm.category_id)
            elif outcome.pool_id is None:
                self.dropped[self._index[arm]] += 1
                self._learn(self._index[arm], 0.0, 1.0)
            elif outcome.pool_id not in self._fresh:
                self._fresh[outcome.pool_id] = self._index[arm], 0
                self._waiting.add(outcome.pool_id)

    def adopt(
        self, pool_ids: Iterable[int], category_ids: Iterable[int], origins: Iterable[str]
    ) -> None:
        """Take cut-outs of an earlier run into the accounts, as if they had been drawn now.

        Args:
            pool_ids: that are not in the accounts yet.
            category_ids: of each.
            origins: what the pool's ``origin`` column says of each. Where it names no template (the
                candidates of an imitation do not), the category's only one is taken; where
                there are several, the cut-out is left out.
        """
        own = {c: np.flatnonzero(self._category == k) for k, c in enumerate(self._category_ids)}
        for pool_id, category_id, origin in zip(pool_ids, category_ids, origins, strict=True):
            arm = self._index.get(Arm(category_id, template_of(origin)))
            if arm is None and len(own.get(category_id, ())) == 1:
                arm = int(own[category_id][0])
            if arm is not None and pool_id not in self._fresh:
                self.drawn[arm] += 1
                self._fresh[pool_id] = arm, 0

    def lose(self, pool_ids: Iterable[int]) -> None:
        """Forget stored cut-outs that are waiting: they did not reach the pool after all."""
        for pool_id in pool_ids:
            arm, _ = self._fresh.pop(int(pool_id))
            self.drawn[arm] -= 1
            self._waiting.remove(int(pool_id))

    def record_judgements(
        self, pool_ids: np.ndarray, accepted: np.ndarray, decided: np.ndarray | None = None
    ) -> None:
        """What training decided on pasted instances; the order of the rows does not matter.

        Args:
            pool_ids: (N,) int64; rows of cut-outs that this did not draw, or that were looked at
                often enough, are ignored.
            accepted: (N,) bool.
            decided: (N,) bool, False where a warm-up rule accepted or rejected, which says nothing
                of the instance; by default all True.
        """
        self._waiting.difference_update(np.unique(pool_ids).tolist())
        if decided is not None:
            pool_ids, accepted = pool_ids[decided], accepted[decided]
        unique, rows, counts = np.unique(pool_ids, return_inverse=True, return_counts=True)
        rates = np.bincount(rows, accepted, minlength=len(unique)) / counts
        for pool_id, count, rate in zip(
            unique.tolist(), counts.tolist(), rates.tolist(), strict=True
        ):
            if pool_id not in self._fresh:
                continue
            arm, seen = self._fresh[pool_id]
            new = min(count, self.exposures - seen)
            weight = new / self.exposures
            self.judged[arm] += weight
            self.accepted[arm] += weight * rate
            self._learn(arm, weight * rate, weight * (1 - rate))
            if seen + new == self.exposures:
                del self._fresh[pool_id]
            else:
                self._fresh[pool_id] = arm, seen + new

    @abstractmethod
    def _pick(self) -> int:
        """The index of the arm to draw next."""

    def _learn(self, arm: int, success: float, failure: float) -> None:  # noqa: B027 (optional)
        """Part of an image, or all of it, turned out so: for rules that depend on it."""

    def _close(self, category_id: int) -> None:
        category = int(np.searchsorted(self._category_ids, category_id))
        if self._is_open[category]:
            self._is_open[category] = False
            logger.info("There is nothing left to draw of category %d.", category_id)

    def _least_drawn_arm(self, category: int) -> int:
        """The arm of a category whose turn it is."""
        own = np.flatnonzero(self._category == category)
        return int(own[np.argmin(self.drawn[own])])

    def state_dict(self) -> dict:
        """Tensors, numbers and strings only, in nested dicts and lists."""
        ids = np.fromiter(self._fresh, np.int64, len(self._fresh))
        fresh = np.array(list(self._fresh.values()), np.int64).reshape(-1, 2)
        return {
            "category_ids": [arm.category_id for arm in self.arms],
            "templates": [arm.template for arm in self.arms],
            "num_draws": self._num_draws,
            "closed": self._category_ids[~self._is_open].tolist(),
            "waiting": torch.from_numpy(self.waiting_ids()),
            "fresh": torch.from_numpy(np.column_stack([ids, fresh])),
            **{name: torch.from_numpy(values.copy()) for name, values in self._by_arm().items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore. Arms that are no more are forgotten; new ones start with nothing known."""
        saved = list(map(Arm, state["category_ids"], state["templates"]))
        place = np.array([self._index.get(arm, -1) for arm in saved], np.int64)
        known = place >= 0
        for name, values in self._by_arm().items():
            values[:] = 0
            if name in state:  # else the state is of another rule, which did not need it
                values[place[known]] = state[name].numpy()[known]
        self._num_draws = state["num_draws"]
        self._is_open[:] = ~np.isin(self._category_ids, state["closed"])
        self._fresh = {
            pool_id: (int(place[arm]), seen)
            for pool_id, arm, seen in state["fresh"].tolist()
            if known[arm]
        }
        self._waiting = self._fresh.keys() & set(state["waiting"].tolist())

    def _by_arm(self) -> dict[str, np.ndarray]:
        """The accounts by arm, by name; they are changed in place."""
        return {
            "drawn": self.drawn,
            "dropped": self.dropped,
            "judged": self.judged,
            "accepted": self.accepted,
        }


def group_shares(scheduler: CategoryScheduler, frequency: Mapping[int, str]) -> dict[str, float]:
    """Share of the draws by frequency group ("r", "c", "f"); empty before the first.

    Args:
        scheduler: whose draws.
        frequency: group by category id.
    """
    counts: Counter = Counter()
    drawn = scheduler.by_category(scheduler.drawn)
    for category_id, count in zip(scheduler.category_ids.tolist(), drawn.tolist(), strict=True):
        counts[frequency[category_id]] += count
    total = counts.total()
    return {group: counts[group] / total for group in sorted(counts)} if total else {}
