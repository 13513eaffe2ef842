"""The instance pool: a folder of immutable shards that any number of processes append to.

Example:
    >>> with PoolWriter(root) as writer:
    ...     writer.add(12, rgba, source=CutOutSource("diffusers", "sd-1.5", "a bun", seed=7))
    >>> pool = InstancePool(root)
    >>> cut_out = pool.get(pool.ids(12)[0])
"""

from __future__ import annotations

import functools
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gal_d2.datasets.category_identity import (
    Names,
    Renumbering,
    dataset_names,
    names_in,
    require_same,
    with_names,
)
from gal_d2.errors import UserError
from gal_d2.files.atomic_file import replacing
from gal_d2.pool.cut_out import (
    CorruptCutOutError,
    CutOut,
    CutOutSource,
    cut_out_id,
    encode_rgba,
)
from gal_d2.pool.index import PoolIndex
from gal_d2.pool.shard import (
    METADATA_COLUMNS,
    SCHEMA,
    CorruptShardError,
    ShardIndex,
    ShardReader,
    ShardWriter,
    read_index,
    read_metadata,
    shard_names,
)

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__all__ = [
    "CorruptCutOutError",
    "CutOut",
    "CutOutSource",
    "InstancePool",
    "PoolWriter",
    "open_configured_pool",
    "read_allow_list",
    "write_allow_list",
]

logger = logging.getLogger(__name__)

# A record batch of the open shard is handed to the file when it reaches either.
_BATCH_ROWS = 512
_BATCH_BYTES = 8 << 20
# Shards are opened a few at a time, for the sake of disks that take long to answer.
_INDEX_THREADS = 4


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


class InstancePool:
    """Random access to the cut-outs of a pool, by id and by category, in constant time.

    A pool is a snapshot: shards that appear later are seen after :meth:`refresh` or :meth:`show`
    only. Pickling (spawned DataLoader workers) sends the folder and the names of the shards, so
    every worker sees the same snapshot, and the same draw from ``ids`` gives the same cut-out in
    each. All orders are by id, whatever the shards are called and however the cut-outs are spread
    over them.

    A shard or row that cannot be read is logged once, skipped and counted, and never fatal; corrupt
    rows are found when they are first read, and stay in ``ids``.

    Args:
        root: the pool's folder.
        allow_empty: a folder that is missing or has no shards is an empty pool (one that is
            being generated) in place of an error.
        shards: names of the shards to read, in place of all that are there: a snapshot taken
            earlier from :attr:`shards`, as a resumed run needs where the pool has grown since.
        only: ids of the cut-outs to see, in place of all; see :func:`read_allow_list`.
        names: what category ids mean now. A shard whose ids meant other categories is read with
            those that its names have now; None: ids are as they were stored.
        max_open_shards: how many shards are kept mapped at a time (a file handle each).

    Attributes:
        root: absolute path of the folder.
        corrupt_shards: name of each shard that was skipped, and why.
        corrupt_ids: id of each row that was found corrupt by this process, and why.
        kept_names: category names, as the shards keep them, each list once; None among them stands
            for shards of an earlier release.

    Raises:
        UserError: there is nothing to read, unless ``allow_empty``; or nobody can tell what an id
            means now.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        allow_empty: bool = False,
        shards: Sequence[str] | None = None,
        only: np.ndarray | None = None,
        names: Names | None = None,
        max_open_shards: int = 256,
    ) -> None:
        self.root = Path(root).absolute()
        self.kept_names: list[dict[int, str] | None] = []
        self._stored_categories: set[int] = set()
        self._as_now = Renumbering(names, f"the instance pool {self.root}")
        self._only = None if only is None else np.unique(np.asarray(only, np.int64))
        self.corrupt_shards: dict[str, str] = {}
        self.corrupt_ids: dict[int, str] = {}
        self._max_open_shards = max_open_shards
        self._shards: tuple[str, ...] = ()
        self._index = PoolIndex.empty()
        # functools' cache is safe under threads without a lock that a fork could copy locked.
        self._reader = functools.lru_cache(max_open_shards)(self._open_shard)
        self._add_shards(shard_names(self.root) if shards is None else shards)
        if not len(self) and not allow_empty:
            raise UserError(self._nothing_to_read())

    def __reduce__(self) -> tuple:
        return _restore, (
            str(self.root),
            self._shards,
            dict(self.corrupt_shards),
            dict(self.corrupt_ids),
            self._max_open_shards,
            self._only,
            self._as_now,
        )

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, pool_id: int) -> bool:
        return self._index.find(int(pool_id)) >= 0

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards of this snapshot, sorted."""
        return self._shards

    @property
    def category_names(self) -> dict[int, str] | None:
        """Category names by id, as the ids of this pool are; None where no shard keeps them.

        Raises:
            UserError: its shards were made with annotations that contradict each other.
        """
        if self._as_now.now is not None:
            return self._as_now.now
        kept = [names for names in self.kept_names if names is not None]
        for names in kept[1:]:
            self.require_names(names)
        return {i: name for names in kept for i, name in names.items()} if kept else None

    def require_names(self, names: Names | None) -> None:
        """Make sure that ids of this pool, as they are stored, mean what they do in ``names``.

        Raises:
            UserError: one does not.
        """
        for kept in self.kept_names:
            require_same(
                *(kept, names, f"the instance pool {self.root}"),
                "choose another folder for the cut-outs of these annotations, or give those that "
                "the pool was filled with",
                used=self._stored_categories & set(kept or ()),
            )

    @property
    def category_ids(self) -> np.ndarray:
        """(k,) int64 ids (as in the JSON) of the categories that have cut-outs, ascending."""
        return self._index.categories

    def ids(self, category_id: int) -> np.ndarray:
        """(m,) int64 pool ids of one category, ascending, read-only; empty if it has none."""
        return self._index.ids_of(category_id)

    def all_ids(self) -> np.ndarray:
        """(n,) int64 pool ids, ascending, read-only."""
        return self._index.ids

    def contains(self, pool_ids: np.ndarray) -> np.ndarray:
        """(n,) bool: which of ``pool_ids`` (n,) are in the pool."""
        return self._index.find_many(pool_ids) >= 0

    def category_of(self, pool_ids: np.ndarray) -> np.ndarray:
        """(n,) int64 category ids of ``pool_ids`` (n,).

        Raises:
            KeyError: one of the ids is not in the pool.
        """
        positions = self._index.find_many(pool_ids)
        if (positions < 0).any():
            unknown = int(np.asarray(pool_ids)[positions < 0][0])
            raise KeyError(f"cut-out {unknown} is not in the instance pool {self.root}")
        return self._index.categories[self._index.category_index[positions]]

    def get(self, pool_id: int) -> CutOut:
        """Read and decode one cut-out.

        Raises:
            KeyError: the id is not in the pool.
            CorruptCutOutError: it is, but cannot be read; the first time, a warning is logged.
        """
        pool_id = int(pool_id)
        if pool_id in self.corrupt_ids:
            raise CorruptCutOutError(self.corrupt_ids[pool_id])
        position = self._index.find(pool_id)
        if position < 0:
            raise KeyError(f"cut-out {pool_id} is not in the instance pool {self.root}")
        name = self._shards[self._index.shard[position]]
        row = int(self._index.row[position])
        category_id = int(self._index.categories[self._index.category_index[position]])
        try:
            cut_out = self._reader(name).read(row)
            if cut_out.pool_id != pool_id:
                raise CorruptCutOutError(f"another cut-out, {cut_out.pool_id}, stands there now")
        except (CorruptCutOutError, CorruptShardError) as error:
            reason = f"cut-out {pool_id} (row {row} of {self.root / name}) is corrupt: {error}"
            self.corrupt_ids[pool_id] = reason
            logger.warning("%s; it is skipped, see tools/check_pool.py", reason)
            raise CorruptCutOutError(reason) from error
        if cut_out.category_id != category_id:  # its number has changed since
            cut_out = replace(cut_out, category_id=category_id)
        return cut_out

    def get_encoded(self, pool_id: int) -> dict:
        """What is stored of a cut-out, by the names of ``pool_shard.SCHEMA``; not decoded.

        Its category id is the stored one, of which the pool id is made.

        Raises:
            KeyError: the id is not in the pool.
            CorruptCutOutError: it is, but cannot be read.
        """
        position = self._index.find(int(pool_id))
        if position < 0:
            raise KeyError(f"cut-out {pool_id} is not in the instance pool {self.root}")
        name = self._shards[self._index.shard[position]]
        try:
            return self._reader(name).read_fields(int(self._index.row[position]))
        except CorruptShardError as error:
            raise CorruptCutOutError(f"{self.root / name} is corrupt: {error}") from error

    def refresh(self) -> int:
        """Take in the shards that were completed since.

        With DataLoader workers, refresh between epochs and hand them the new snapshot: workers that
        differ in it would draw different cut-outs from the same random numbers.

        Returns:
            The number of new cut-outs.
        """
        before = len(self)
        self._add_shards(shard_names(self.root))
        return len(self) - before

    def show(self, shards: Iterable[str]) -> None:
        """Become the snapshot that has just these shards of the folder, earlier or later."""
        wanted = set(shards)
        if not wanted.issuperset(self._shards):
            self._shards, self._index = (), PoolIndex.empty()
        self._add_shards(wanted)

    def shards_of(self, pool_ids: Iterable[int]) -> set[str]:
        """Names of the shards that have any of these cut-outs."""
        positions = self._index.find_many(np.fromiter(pool_ids, np.int64))
        numbers = np.unique(self._index.shard[positions[positions >= 0]])
        return {self._shards[number] for number in numbers.tolist()}

    def metadata(self, columns: Sequence[str] | None = None) -> pa.Table:
        """What is known of the cut-outs, without their images, in the order of ``all_ids``.

        Rows of a shard whose text cannot be read are left out, with a warning: join on ``pool_id``.

        Args:
            columns: names out of pool_id, category_id, height, width, generator, model, prompt,
                seed, origin, scores; all of them by default.

        Raises:
            ValueError: an unknown column.
        """
        wanted = list(METADATA_COLUMNS if columns is None else dict.fromkeys(columns))
        unknown = [name for name in wanted if name not in METADATA_COLUMNS]
        if unknown or not wanted:
            raise ValueError(f"no columns {unknown}; choose from {', '.join(METADATA_COLUMNS)}")
        index = self._index
        by_shard = np.argsort(index.shard, kind="stable")
        bounds = np.searchsorted(index.shard[by_shard], np.arange(len(self._shards) + 1))
        tables, positions = [], []
        for number, name in enumerate(self._shards):
            here = by_shard[bounds[number] : bounds[number + 1]]
            try:
                table = read_metadata(self.root / name, wanted, index.row[here])
                if "category_id" in wanted:
                    category_ids = pa.array(index.categories[index.category_index[here]])
                    position = wanted.index("category_id")
                    table = table.set_column(position, SCHEMA.field("category_id"), category_ids)
                tables.append(table)
            except CorruptShardError as error:
                logger.warning("no metadata of shard %s: %s", self.root / name, error)
            else:
                positions.append(here)
        if not tables:
            return pa.schema([SCHEMA.field(name) for name in wanted]).empty_table()
        order = np.argsort(np.concatenate(positions))
        return pa.concat_tables(tables).take(pa.array(order))

    def counts(self) -> dict[int, int]:
        """Number of cut-outs by category id, ascending by id."""
        return dict(zip(self.category_ids.tolist(), self._index.counts().tolist(), strict=True))

    def describe(self, names: Mapping[int, str] | None = None) -> str:
        """A summary with a line for each category.

        Args:
            names: category names by id, to show next to the ids.
        """
        lines = [
            f"{self.root}: {len(self):,} cut-outs of {len(self.category_ids):,} categories in "
            f"{len(self._shards):,} shards ({len(self.corrupt_shards)} corrupt shards, "
            f"{len(self.corrupt_ids)} corrupt cut-outs seen)"
        ]
        for category_id, count in self.counts().items():
            name = (names or {}).get(category_id, "")
            lines.append(f"{category_id:>7}  {count:>9,}  {name}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"InstancePool({str(self.root)!r}, {len(self)} cut-outs, {len(self._shards)} shards)"

    def _open_shard(self, name: str) -> ShardReader:
        return ShardReader(self.root / name)

    def _read_indices(
        self, names: list[str]
    ) -> Iterator[tuple[str, ShardIndex | CorruptShardError]]:
        """The index columns of each shard, or what is wrong with it, in the order of ``names``."""

        def read(name: str) -> ShardIndex | CorruptShardError:
            try:
                return read_index(self.root / name)
            except CorruptShardError as error:
                return error

        with ThreadPoolExecutor(_INDEX_THREADS) as threads:
            yield from zip(names, threads.map(read, names), strict=True)

    def _add_shards(self, names: Iterable[str]) -> None:
        names, known = set(names), set(self._shards)
        for name in names:  # a snapshot's are from a file
            if os.path.basename(name) != name:
                raise UserError(
                    f"'{name}' is no name of a shard of the instance pool {self.root}: the "
                    "snapshot that has it is damaged; start anew in another OUTPUT_DIR"
                )
        index = self._index
        parts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        # A shard that was corrupt is tried again: it may have been in the middle of a copy.
        for name, columns in self._read_indices(sorted(names - known)):
            if not isinstance(columns, CorruptShardError):
                parts[name] = self._of_now(columns)
                self.corrupt_shards.pop(name, None)
                continue
            if name not in self.corrupt_shards:
                logger.warning(
                    "shard %s is corrupt (%s) and skipped, see tools/check_pool.py",
                    self.root / name,
                    columns,
                )
            self.corrupt_shards[name] = str(columns)
        if not parts:
            return
        shards = tuple(sorted(known | parts.keys()))
        number = {name: i for i, name in enumerate(shards)}
        renumbered = np.array([number[name] for name in self._shards], np.int32)
        seen = {name: self._visible_rows(ids, there) for name, (ids, _, there) in parts.items()}
        lengths = [len(rows) for rows in seen.values()]
        self._index = PoolIndex(
            np.concatenate([index.ids, *(parts[name][0][rows] for name, rows in seen.items())]),
            np.concatenate(
                [
                    index.categories[index.category_index],
                    *(parts[name][1][rows] for name, rows in seen.items()),
                ]
            ),
            np.concatenate(
                [renumbered[index.shard], np.repeat([number[name] for name in parts], lengths)]
            ),
            np.concatenate([index.row, *seen.values()]),
        )
        self._shards = shards

    def _of_now(self, index: ShardIndex) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pool ids and category ids of now of a shard's rows, (n,) each, and (n,) bool: whether
        their category still is one."""
        if len(index.pool_ids):
            self._stored_categories.update(np.unique(index.category_ids).tolist())
            if index.names not in self.kept_names:
                self.kept_names.append(index.names)
        category_ids, is_there = self._as_now(index.category_ids, index.names)
        return index.pool_ids, category_ids, is_there

    def _visible_rows(self, ids: np.ndarray, is_there: np.ndarray) -> np.ndarray:
        """(m,) int32 rows of a shard that this pool shows; ``ids`` (n,) are the shard's."""
        if self._only is not None:
            is_there = is_there & np.isin(ids, self._only)
        return np.flatnonzero(is_there).astype(np.int32)

    def _nothing_to_read(self) -> str:
        if self._only is not None and self._shards:
            return (
                f"none of the {len(self._only)} cut-outs that are allowed (GAL.POOL.ALLOW_LIST) is "
                f"in the instance pool {self.root}; name the pool that the list was made from"
            )
        if self.corrupt_shards:
            return (
                f"all {len(self.corrupt_shards)} shards of the instance pool {self.root} are "
                "corrupt or empty; tools/check_pool.py lists them"
            )
        if self.root.is_dir():
            problem = "has no cut-outs"
        else:
            problem = "is a file, not a folder" if self.root.exists() else "does not exist"
        return (
            f"the instance pool {self.root} {problem}; fill it with tools/import_cutouts.py "
            "or tools/generate_instances.py, or correct GAL.POOL.ROOT"
        )


def write_allow_list(
    path: str | os.PathLike, pool_ids: np.ndarray, names: Names | None = None
) -> None:
    """Write ids (N,) for :func:`read_allow_list`: a Parquet file with the column ``pool_id``.

    Args:
        path: of the file.
        pool_ids: (N,) int64.
        names: of the pool's categories by id, kept in the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"pool_id": pa.array(np.sort(np.asarray(pool_ids, np.int64)))})
    table = table.cast(with_names(table.schema, names))
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_allow_list(path: str | os.PathLike) -> np.ndarray:
    """(N,) int64 pool ids that ``tools/filter_pool.py`` kept.

    Raises:
        UserError: the file is missing or not such a list.
    """
    try:
        return pq.read_table(path, columns=["pool_id"])["pool_id"].to_numpy().astype(np.int64)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the allow-list {path} cannot be read ({reason}); give a file that "
            "tools/filter_pool.py --allow-list wrote"
        ) from error


def open_configured_pool(cfg: CfgNode, allow_empty: bool = False) -> InstancePool:
    """The pool of ``GAL.POOL.ROOT``, as far as ``GAL.POOL.ALLOW_LIST`` allows.

    Its category ids are those of the training set, whatever they were when it was filled.

    Raises:
        UserError: there is nothing to read, unless ``allow_empty``; or what its ids mean, or those
            of the list, cannot be told.
    """
    allowed = cfg.GAL.POOL.ALLOW_LIST
    only = read_allow_list(allowed) if allowed else None
    names = dataset_names(cfg.DATASETS.TRAIN[0])
    pool = InstancePool(cfg.GAL.POOL.ROOT, allow_empty=allow_empty, only=only, names=names)
    if allowed:
        _check_allow_list(allowed, only, pool, names)
    return pool


def _check_allow_list(path: str, only: np.ndarray, pool: InstancePool, names: Names) -> None:
    """Compare what ids meant when an allow-list was made with what they mean in the pool."""
    kept = names_in(pq.read_schema(path))
    of_pool = [stored for stored in pool.kept_names if stored is not None]
    for stored in of_pool or [names]:
        require_same(
            *(kept, stored, f"the allow-list {path} (GAL.POOL.ALLOW_LIST)"),
            f"make it anew from the pool {pool.root} with tools/filter_pool.py",
        )
    missing = int((~pool.contains(only)).sum())
    if missing:
        logger.warning(
            "%d of the %d cut-outs of the allow-list %s are not in the instance pool %s, or are of "
            "no category of now.",
            *(missing, len(only), path, pool.root),
        )


def _restore(
    root: str,
    shards: tuple[str, ...],
    corrupt_shards: dict[str, str],
    corrupt_ids: dict[int, str],
    max_open_shards: int,
    only: np.ndarray | None,
    as_now: Renumbering,
) -> InstancePool:
    pool = InstancePool(
        root, allow_empty=True, shards=(), only=only, max_open_shards=max_open_shards
    )
    pool._as_now = as_now  # which has said what there is to say
    pool._add_shards(shards)
    pool.corrupt_shards.update(corrupt_shards)
    pool.corrupt_ids.update(corrupt_ids)
    return pool
