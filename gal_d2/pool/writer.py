"""Appending to an instance pool; :mod:`gal_d2.pool.instance_pool` reads it."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from gal_d2.datasets.category_identity import Names
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource, cut_out_id, encode_rgba
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import ShardWriter

# A record batch of the open shard is handed to the file when it reaches either.
_BATCH_ROWS = 512
_BATCH_BYTES = 8 << 20


class PoolWriter:
    """Appends cut-outs to a pool; a context manager.

    Readers see what was added after :meth:`flush`, :meth:`close`, or when a shard is full. A killed
    writer loses only its open shard, so one that is slow (a generator) should flush every few
    minutes.

    Args:
        root: the pool's folder; created if it does not exist.
        max_rows, max_bytes: a shard is completed and a new one begun when it has so many cut-outs,
            or so many bytes of encoded images.
        known: cut-outs that are in this pool are not stored again. (A pool that holds a cut-out
            twice shows it once; this saves the space.)
        names: of the categories by id, kept with the cut-outs, so that they can be told when
            another annotation file numbers its categories otherwise.

    Attributes:
        added: number of cut-outs stored.
        skipped: number of cut-outs not stored because they were there.

    Raises:
        UserError: the folder cannot be created or written to, or the ids of ``known`` mean other
            categories.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        max_rows: int = 8192,
        max_bytes: int = 128 << 20,
        known: InstancePool | None = None,
        names: Names | None = None,
    ) -> None:
        if max_rows < 1 or max_bytes < 1:
            raise ValueError(f"a shard's limits are positive, got {max_rows} rows, {max_bytes} B")
        self.root = Path(root).absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the instance pool {self.root} cannot be created ({error.strerror}); choose "
                "another folder"
            ) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise UserError(
                f"the instance pool {self.root} cannot be written to; change its permissions or "
                "choose another folder"
            )
        self.added = 0
        self.skipped = 0
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._known = known
        self._names = None if names is None else dict(names)
        if known is not None:
            known.require_names(self._names)
        self._seen: set[int] = set()
        self._shard: ShardWriter | None = None
        self._shard_ids: list[int] = []
        self._shard_bytes = 0
        self._batch: list[dict] = []
        self._batch_bytes = 0
        self._closed = False
        self._pid = os.getpid()

    def add(
        self,
        category_id: int,
        rgba: np.ndarray,
        *,
        source: CutOutSource,
        scores: Mapping[str, float] | None = None,
    ) -> int:
        """Store one cut-out.

        Args:
            category_id: the category's id as in the annotation JSON.
            rgba: (H, W, 4) uint8, channels R, G, B, alpha; not transparent everywhere.
            source: where it came from.
            scores: what filters said about it.

        Returns:
            Its pool id, also if it was there already and nothing was stored.

        Raises:
            ValueError: ``rgba`` or ``source`` is not as described.
            UserError: the disk is full or gone, as in :meth:`flush`.
        """
        encoded = encode_rgba(rgba)
        return self.add_encoded(
            category_id, encoded, rgba.shape[0], rgba.shape[1], source=source, scores=scores
        )

    def add_encoded(
        self,
        category_id: int,
        encoded: bytes,
        height: int,
        width: int,
        *,
        source: CutOutSource,
        scores: Mapping[str, float] | None = None,
    ) -> int:
        """As :meth:`add`, for an image that ``encode_rgba`` encoded before (in another thread)."""
        if self._closed:
            raise RuntimeError(f"the writer of the instance pool {self.root} is closed")
        if os.getpid() != self._pid:
            raise RuntimeError("a PoolWriter belongs to one process; open another one after a fork")
        if source.seed is not None and not 0 <= source.seed < 1 << 64:
            raise ValueError(f"a seed is 0 .. 2**64 - 1 or None, got {source.seed}")
        category_id = operator.index(category_id)
        pool_id = cut_out_id(category_id, source, encoded)
        if pool_id in self._seen or (self._known is not None and pool_id in self._known):
            self.skipped += 1
            return pool_id
        self._batch.append(
            {
                "pool_id": pool_id,
                "category_id": category_id,
                "height": height,
                "width": width,
                "generator": source.generator,
                "model": source.model,
                "prompt": source.prompt,
                "seed": source.seed,
                "origin": source.origin,
                "scores": [(name, float(score)) for name, score in (scores or {}).items()],
                "image": encoded,
            }
        )
        self._seen.add(pool_id)
        self._shard_ids.append(pool_id)
        self.added += 1
        self._batch_bytes += len(encoded)
        self._shard_bytes += len(encoded)
        if len(self._shard_ids) >= self._max_rows or self._shard_bytes >= self._max_bytes:
            self.flush()
        elif len(self._batch) >= _BATCH_ROWS or self._batch_bytes >= _BATCH_BYTES:
            self._write_batch()
        return pool_id

    def flush(self) -> None:
        """Complete the open shard, so that readers see what it holds. Nothing open: no effect.

        Raises:
            UserError: the disk is full or gone. The open shard is lost, the ones before it are not.
        """
        if not self._shard_ids or os.getpid() != self._pid:
            return
        self._write_batch()
        with self._losing_shard():
            self._shard.seal()
        self._begin_shard()

    def close(self) -> None:
        """Complete the open shard; the writer takes nothing more."""
        if not self._closed:
            self._closed = True
            self.flush()

    def __enter__(self) -> PoolWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error too: what was added is sound, and may have cost hours.
        self.close()

    def _write_batch(self) -> None:
        if not self._batch:
            return
        with self._losing_shard():
            if self._shard is None:
                self._shard = ShardWriter(self.root, self._names)
            self._shard.write(self._batch)
        self._batch = []
        self._batch_bytes = 0

    @contextmanager
    def _losing_shard(self) -> Iterator[None]:
        """Where writing fails, drop the open shard and forget its cut-outs."""
        try:
            yield
        except BaseException as error:
            lost = len(self._shard_ids)
            self._discard_shard()
            if isinstance(error, OSError):
                raise UserError(
                    f"the instance pool {self.root} cannot be written to "
                    f"({error.strerror or error}); the last {lost} cut-outs are lost: make room "
                    "there and run again"
                ) from error
            raise

    def _discard_shard(self) -> None:
        if self._shard is not None:
            self._shard.discard()
        self.added -= len(self._shard_ids)
        self._seen.difference_update(self._shard_ids)
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._shard = None
        self._shard_ids = []
        self._shard_bytes = 0
        self._batch = []
        self._batch_bytes = 0
