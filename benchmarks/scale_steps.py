"""Timed steps of a benchmark: CPU seconds, and what they add to the resident set at its peak."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable


class Steps:
    """Times named steps of a piece; a step is a function that is called once or often."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float | str]] = []

    def time(self, name: str, function: Callable[[], object], repeats: int = 1) -> object:
        """Call it ``repeats`` times; keep the CPU seconds of one call and the memory of all."""
        before = _peak_megabytes()
        start = time.process_time()
        for _ in range(repeats):
            result = function()
        seconds = (time.process_time() - start) / repeats
        added = max(_peak_megabytes() - before, 0.0)
        self.rows.append({"step": name, "seconds": seconds, "megabytes": added})
        return result

    def note(self, name: str, megabytes: float) -> None:
        """A size on disk or in memory that is no time."""
        self.rows.append({"step": name, "seconds": math.nan, "megabytes": megabytes})


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux has kilobytes
