"""The posterior of the cut-outs as the samples of a step see it, put together from snapshots.

A snapshot (:mod:`gal_d2.selection.snapshots`) holds only what changed since the one before, and
every ``KEYFRAME``-th one holds everything, so that a reader has to go back a little only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from gal_d2.selection.draw import posterior_moments, value_moments, value_of
from gal_d2.selection.likeness_evidence import NOTHING_COMPARED, merged, with_likeness
from gal_d2.selection.snapshots import KEYFRAME, Snapshots
from gal_d2.selection.verdict_evidence import NOTHING_JUDGED, with_verdicts

SOURCE = "posterior"
"""Name of the source, in the trainer's snapshots."""


def posterior_source(
    take_changes: Callable[[bool], dict[str, np.ndarray]],
) -> Callable[[int], dict[str, np.ndarray]]:
    """A source of snapshots.

    Args:
        take_changes: with True, gives the arrays of all cut-outs, else of those that changed since
            the last call.
    """
    last: list[int] = []

    def state(number: int) -> dict[str, np.ndarray]:
        # After a gap, or at the start of a run, the last snapshot is not the one before.
        is_whole = number % KEYFRAME == 0 or last != [number - 1]
        last[:] = [number]
        return take_changes(is_whole) | {"is_whole": np.array(is_whole)}

    return state


class PosteriorView:
    """Moments of cut-outs at the snapshot that a step sees; it is pickled to the loader's workers.

    Args:
        snapshots: of the run, with the source :data:`SOURCE`.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots
        self._number = -1
        self._forget()

    @classmethod
    def latest(cls, output_dir: str | os.PathLike) -> PosteriorView | None:
        """What the last snapshot of a training shows; None where it keeps none.

        Args:
            output_dir: OUTPUT_DIR of the training.

        Raises:
            UserError: a snapshot that is needed is not there, or is damaged.
        """
        snapshots = Snapshots(Path(output_dir) / "snapshots", period=1, lag=0)
        numbers = snapshots.numbers()
        if not numbers:
            return None
        view = cls(snapshots)
        view.follow(numbers[-1])
        return view

    def __getstate__(self) -> dict:
        return {"snapshots": self.snapshots}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["snapshots"])

    def _forget(self) -> None:
        self._ids = np.empty(0, np.int64)
        self._weight = self._mean = np.empty((0, 1), np.float32)
        self._step, self._prior_count = 0, 1.0
        self._weights, self._ceilings = np.ones(1), np.full(1, np.inf)
        self._helping = np.empty(0, np.float32)
        self._judged = NOTHING_JUDGED
        self._likeness = None

    def follow(self, step: int) -> None:
        """Show what the samples of ``step`` see.

        Raises:
            UserError: a snapshot that is needed is not there, or is damaged.
        """
        number = self.snapshots.number(step)
        if number == self._number:
            return
        changes = []
        current = number
        while current != self._number:
            arrays = self._arrays(self.snapshots.read(current))
            if arrays is None:  # no training: nothing is known
                self._forget()
                changes = []
                break
            changes.append(arrays)
            if arrays["is_whole"]:
                self._forget()
                break
            current -= 1
        for arrays in reversed(changes):
            self._apply(arrays)
        self._number = number

    @staticmethod
    def _arrays(snapshot: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        prefix = f"{SOURCE}."
        arrays = {
            name.removeprefix(prefix): array
            for name, array in snapshot.items()
            if name.startswith(prefix)
        }
        return arrays or None

    def _apply(self, arrays: Mapping[str, np.ndarray]) -> None:
        ids = arrays["pool_ids"]
        place = np.searchsorted(self._ids, ids)
        is_known = np.zeros(len(ids), bool)
        inside = place < len(self._ids)
        is_known[inside] = self._ids[place[inside]] == ids[inside]
        weight, mean = arrays["weight"], arrays["mean"]
        if len(self._ids) == 0:
            self._weight = self._mean = np.empty((0, weight.shape[1]), np.float32)
        if is_known.any():
            self._weight[place[is_known]] = weight[is_known]
            self._mean[place[is_known]] = mean[is_known]
        new = ~is_known
        self._weight = np.insert(self._weight, place[new], weight[new], axis=0)
        self._mean = np.insert(self._mean, place[new], mean[new], axis=0)
        self._ids = np.insert(self._ids, place[new], ids[new])
        self._step, self._prior_count = int(arrays["step"]), float(arrays["prior_count"])
        self._weights, self._ceilings = arrays["weights"], arrays["ceilings"]
        self._helping = arrays.get("helping", self._helping)  # none in earlier releases
        if "alike_ids" in arrays:
            new = arrays["alike_ids"], arrays["alike_values"]
            self._likeness = merged(self._likeness or NOTHING_COMPARED, new)
        if "judged_ids" in arrays:  # all of them, for there are few; none in earlier releases
            self._judged = arrays["judged_ids"], arrays["judged_signs"]

    @property
    def value_options(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (S,) of the signals in the value, and their ceilings (S,)."""
        return self._weights, self._ceilings

    def knows(self, pool_ids: np.ndarray) -> np.ndarray:
        """(n,) bool: which of ``pool_ids`` (n,) were scored."""
        return np.isin(pool_ids, self._ids)

    def moments(self, pool_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the qualities of cut-outs, by scores and verdicts.

        Args:
            pool_ids: int64, any shape.

        Returns:
            Two float arrays of that shape and a last dimension of S signals, of which the last is
            the likeness, where there is one.
        """
        return with_verdicts(*self.scored_moments(pool_ids), pool_ids, self._judged)

    def scored_moments(self, pool_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same, verdicts aside."""
        signals = self._weight.shape[1]
        weight = np.zeros((*pool_ids.shape, signals))
        mean = np.zeros_like(weight)
        if len(self._ids):
            place = np.searchsorted(self._ids, pool_ids).clip(max=len(self._ids) - 1)
            is_known = self._ids[place] == pool_ids
            weight[is_known] = self._weight[place[is_known]]
            mean[is_known] = self._mean[place[is_known]]
        moments = posterior_moments(weight, mean, self._step, self._prior_count)
        if self._likeness is not None:
            moments = with_likeness(*moments, pool_ids, self._likeness)
        return moments

    def helping(self, classes: np.ndarray) -> np.ndarray:
        """Shares of classes' cut-outs that help (:meth:`Posterior.helping`); NaN: not known.

        Args:
            classes: (n,) class indices.
        """
        share = np.full(len(classes), np.nan)
        known = classes < len(self._helping)
        share[known] = self._helping[classes[known]]
        return share

    @property
    def pool_ids(self) -> np.ndarray:
        """(n,) int64, ascending: the cut-outs of which something is known."""
        return self._ids.copy()

    def values(self, pool_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected values of cut-outs and their standard deviations.

        Args:
            pool_ids: int64, any shape.

        Returns:
            Two float arrays of that shape.
        """
        return value_moments(*self.moments(pool_ids), self._weights, self._ceilings)

    def draw_values(
        self, pool_ids: np.ndarray, temperature: float, rng: np.random.Generator
    ) -> np.ndarray:
        """Values of cut-outs, of qualities drawn from their posterior (Thompson sampling).

        Args:
            pool_ids: int64, any shape.
            temperature: factor on the standard deviations.
            rng: draws a normal number for each cut-out and signal.

        Returns:
            Of the same shape.
        """
        mean, std = self.moments(pool_ids)
        quality = mean + temperature * std * rng.standard_normal(mean.shape)
        return value_of(quality, self._weights, self._ceilings)
