"""Generate, segment, filter, store: from requests to cut-outs in a pool."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from gal_d2.generation.generator import (
    GenerationRequest,
    InstanceGenerator,
)
from gal_d2.generation.instance_cutter import InstanceCutter
from gal_d2.generation.journal import DropStatistics, Outcome
from gal_d2.generation.store import PoolStore


class InstancePipeline:
    """Requests in, cut-outs in the pool; a context manager.

    Args:
        generator: draws.
        cutter: segments and filters.
        store: the pool and its journal.

    Attributes:
        statistics: what was drawn, kept and dropped since the start.
        seconds: time spent by stage, "generate", "cut" and "store".

    Example:
        >>> with build_pipeline(cfg, categories) as pipeline:
        ...     outcomes = pipeline.run([prompts.request(12, index) for index in range(8)])
    """

    def __init__(
        self, generator: InstanceGenerator, cutter: InstanceCutter, store: PoolStore
    ) -> None:
        self.generator = generator
        self.cutter = cutter
        self.store = store
        self.statistics = DropStatistics()
        self.seconds: Counter = Counter()

    def run(self, requests: Sequence[GenerationRequest]) -> list[Outcome]:
        """Meet requests; what the journal has is recalled, and nothing is drawn for it.

        Readers of the pool see the new cut-outs after :meth:`flush`.

        Args:
            requests: those of one category in a call are a group for the filters.

        Returns:
            What became of each request, in order.

        Raises:
            UserError: the pool cannot be written to.
        """
        outcomes = [self.store.journal.find(request) for request in requests]
        missing = [k for k, outcome in enumerate(outcomes) if outcome is None]
        if missing:
            with self._timed("generate"):
                images = self.generator.generate([requests[k] for k in missing])
            with self._timed("cut"):
                checked = self.cutter.check(images)
            with self._timed("store"):
                stored = self.store.add(checked)
            for k, outcome in zip(missing, stored, strict=True):
                outcomes[k] = outcome
            self.statistics.add(stored)
        return outcomes

    def flush(self) -> None:
        """See :meth:`PoolStore.flush`."""
        with self._timed("store"):
            self.store.flush()

    def __enter__(self) -> InstancePipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error too: what was drawn is sound, and has cost time.
        self.store.close()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
