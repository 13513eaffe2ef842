"""Where a training's time went, from what its trainer writes to metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gal_d2.reporting.run import Run

PARTS = ("loading", "scoring", "forward, backward, update", "auditions")


@dataclass(frozen=True)
class TimeUse:
    """Seconds of a step, by part.

    Attributes:
        steps: (N,) int64.
        seconds: by name of ``PARTS``, (N,) seconds of a step; auditions spread over all steps.
        total: by part, seconds of the whole training, evaluations and pictures left out.
    """

    steps: np.ndarray
    seconds: Mapping[str, np.ndarray]
    total: Mapping[str, float]


def read_time(run: Run) -> TimeUse | None:
    """Time by part; None where the metrics have no times."""
    time = run.metrics.get("time")
    if not time:
        return None
    loading = np.minimum(_at(run, "data_time", time.steps), time.values)
    # gal/time_share is of a step that includes its loading or not, to a few per cent the same.
    scoring = np.minimum(_at(run, "gal/time_share", time.steps), 1.0) * (time.values - loading)
    auditions = _auditions(run, time.steps)
    seconds = {
        "loading": loading,
        "scoring": scoring,
        "forward, backward, update": time.values - loading - scoring,
        "auditions": auditions,
    }
    lengths = np.diff(time.steps, prepend=0)
    total = {name: float((values * lengths).sum()) for name, values in seconds.items()}
    return TimeUse(time.steps, seconds, total)


def _at(run: Run, name: str, steps: np.ndarray) -> np.ndarray:
    """A metric at some steps, interpolated; 0 where there is none."""
    series = run.metrics.get(name)
    return np.interp(steps, series.steps, series.values) if series else np.zeros(len(steps))


def _auditions(run: Run, steps: np.ndarray) -> np.ndarray:
    """Seconds of auditions for each step: those of a round, over the steps between two rounds."""
    series = run.metrics.get("gal/audition_seconds")
    period = run.config.get("GAL.AUDITION.PERIOD")
    if not series or not isinstance(period, int) or period < 1:
        return np.zeros(len(steps))
    return np.interp(steps, series.steps, series.values, left=0.0) / period
