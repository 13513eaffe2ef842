"""Time and memory that a function takes, and tables of them."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from documents import markdown_table


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def seconds_until_done(function: Callable[[], object]) -> float:
    """Until the GPU has computed what the function asks of it, and nothing before it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(variants: Mapping, repeats: int) -> dict:
    """(repeats,) CPU seconds of each variant, taking turns; one round more is left out."""
    seconds = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, function in variants.items():
            seconds[name].append(cpu_seconds(function))
    return {name: np.array(values[1:]) for name, values in seconds.items()}


class PeakMemory:
    """Peak of the process's resident memory within the block, above what it was before, in MB."""

    def __enter__(self) -> PeakMemory:
        self.before = self._start()
        return self

    def __exit__(self, *_) -> None:
        self.megabytes = (self._peak() - self.before) / 1e6

    def _start(self) -> int:
        with contextlib.suppress(OSError):  # imports reach higher than what stays: start anew
            Path("/proc/self/clear_refs").write_text("5")
        return self._peak()

    @staticmethod
    def _peak() -> int:
        """Bytes. Where /proc is missing, a figure that may include the parent process's peak."""
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM:"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else 1024 * peak


def print_table(header: Sequence[str], rows: Sequence[Sequence]) -> None:
    print(markdown_table(header, rows), flush=True)
