"""The pool that generated cut-outs go to, and the journal of what became of each request."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from gal_d2.generation.instance_cutter import CheckedImage
from gal_d2.generation.journal import Journal, Outcome
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter


class PoolStore:
    """Puts checked images into a pool and keeps the journal; nothing is stored twice.

    The journal is written after the shards that it speaks of, so that a process that dies between
    the two draws some images once more, which have the same ids and are not stored again.

    Args:
        root: the pool's folder; created if it does not exist.
        recipe: see :class:`gal_d2.generation.journal.Journal`.
        flush_seconds: what was drawn in so many seconds is lost by a killed process.
        names: of the categories by id, kept in the pool and the journal.

    Attributes:
        journal: what became of each request.

    Raises:
        UserError: the pool cannot be created, read or written to, or its ids or the journal's mean
            other categories.
    """

    def __init__(
        self,
        root: str,
        recipe: str,
        *,
        flush_seconds: float = 300,
        names: Mapping[int, str] | None = None,
    ) -> None:
        pool = InstancePool(root, allow_empty=True)
        self.journal = Journal(root, recipe, names)
        self._writer = PoolWriter(root, known=pool, names=names)
        self._flush_seconds = flush_seconds
        self._pending: list[Outcome] = []
        self._last_flush = time.monotonic()

    @property
    def root(self) -> str:
        """Absolute path of the pool's folder."""
        return str(self._writer.root)

    @property
    def added(self) -> int:
        """Number of cut-outs that this process has stored."""
        return self._writer.added

    def add(self, images: Sequence[CheckedImage]) -> list[Outcome]:
        """Store what passed; say what became of each.

        Raises:
            UserError: the disk is full or gone; what was not flushed is lost.
        """
        outcomes = []
        try:
            for image in images:
                pool_id = None
                if image.encoded is not None:
                    pool_id = self._writer.add_encoded(
                        image.request.category_id,
                        image.encoded,
                        image.height,
                        image.width,
                        source=image.source,
                        scores=image.scores,
                    )
                outcomes.append(Outcome(image.request, pool_id, image.reason, image.scores))
        except BaseException:
            self._pending = []
            raise
        self._pending += outcomes
        if time.monotonic() - self._last_flush >= self._flush_seconds:
            self.flush()
        return outcomes

    def flush(self) -> None:
        """Make everything visible to the pool's readers, and remember it.

        Raises:
            UserError: the disk is full or gone.
        """
        pending, self._pending = self._pending, []
        self._writer.flush()
        self.journal.append(pending)
        self._last_flush = time.monotonic()

    def close(self) -> None:
        """Flush; the store takes nothing more."""
        self.flush()
        self._writer.close()
