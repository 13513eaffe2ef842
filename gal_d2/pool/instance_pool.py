"""Reading an instance pool: a folder of immutable shards that any number of processes append to.

Example:
    >>> with PoolWriter(root) as writer:
    ...     writer.add(12, rgba, source=CutOutSource("diffusers", "sd-1.5", "a bun", seed=7))
    >>> pool = InstancePool(root)
    >>> cut_out = pool.get(pool.ids(12)[0])
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from gal_d2.datasets.category_identity import Names, Renumbering, require_same
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CorruptCutOutError, CutOut
from gal_d2.pool.growing_index import Entry, GrowingIndex
from gal_d2.pool.index import PoolIndex
from gal_d2.pool.metadata import metadata_table
from gal_d2.pool.shard import (
    CorruptShardError,
    ShardIndex,
    ShardReader,
    read_index,
    shard_names,
)

logger = logging.getLogger(__name__)

# Shards are opened a few at a time, for the sake of disks that take long to answer.
_INDEX_THREADS = 4


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
        self._only = None if only is None else np.sort(np.asarray(only, np.int64))
        self.corrupt_shards: dict[str, str] = {}
        self.corrupt_ids: dict[int, str] = {}
        self._max_open_shards = max_open_shards
        self._forget()
        # functools' cache is safe under threads without a lock that a fork could copy locked.
        self._reader = functools.lru_cache(max_open_shards)(self._open_shard)
        self._add_shards(shard_names(self.root) if shards is None else shards)
        if not len(self) and not allow_empty:
            raise UserError(self._nothing_to_read())

    def __reduce__(self) -> tuple:
        return _restore, (
            str(self.root),
            self.shards,
            dict(self.corrupt_shards),
            dict(self.corrupt_ids),
            self._max_open_shards,
            self._only,
            self._as_now,
        )

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, pool_id: int) -> bool:
        return self._index.find(int(pool_id)) is not None

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards of this snapshot, sorted."""
        return tuple(sorted(self._shards))

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
        places = self._index.find_many(pool_ids)
        if (places < 0).any():
            unknown = int(np.asarray(pool_ids)[places < 0][0])
            raise KeyError(f"cut-out {unknown} is not in the instance pool {self.root}")
        return self._index.category_at(places)

    def get(self, pool_id: int) -> CutOut:
        """Read and decode one cut-out.

        Raises:
            KeyError: the id is not in the pool.
            CorruptCutOutError: it is, but cannot be read; the first time, a warning is logged.
        """
        pool_id = int(pool_id)
        if pool_id in self.corrupt_ids:
            raise CorruptCutOutError(self.corrupt_ids[pool_id])
        shard, row, category_id = self._entry(pool_id)
        name = self._shards[shard]
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

    def get_rgba(self, pool_id: int) -> np.ndarray | None:
        """The picture of one cut-out, (h, w, 4) uint8; None, and a warning, if it is corrupt.

        Raises:
            KeyError: the id is not in the pool.
        """
        try:
            return self.get(pool_id).rgba
        except CorruptCutOutError:  # :meth:`get` has logged it
            return None

    def get_encoded(self, pool_id: int) -> dict:
        """What is stored of a cut-out, by the names of ``gal_d2.pool.shard.SCHEMA``; not decoded.

        Its category id is the stored one, of which the pool id is made.

        Raises:
            KeyError: the id is not in the pool.
            CorruptCutOutError: it is, but cannot be read.
        """
        shard, row, _ = self._entry(int(pool_id))
        name = self._shards[shard]
        try:
            return self._reader(name).read_fields(row)
        except CorruptShardError as error:
            raise CorruptCutOutError(f"{self.root / name} is corrupt: {error}") from error

    def _entry(self, pool_id: int) -> Entry:
        entry = self._index.find(pool_id)
        if entry is None:
            raise KeyError(f"cut-out {pool_id} is not in the instance pool {self.root}")
        return entry

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
            self._forget()
        self._add_shards(wanted)

    def _forget(self) -> None:
        """See no shard."""
        # By the number that the index has for them: in the order in which they were seen. They
        # appear when they are complete, which is not the order of their names.
        self._shards: list[str] = []
        self._index = GrowingIndex()

    def shards_of(self, pool_ids: Iterable[int]) -> set[str]:
        """Names of the shards that have any of these cut-outs."""
        places = self._index.find_many(np.fromiter(pool_ids, np.int64))
        numbers = np.unique(self._index.shard_at(places[places >= 0]))
        return {self._shards[number] for number in numbers.tolist()}

    def ids_in(self, shards: Iterable[str]) -> np.ndarray:
        """(m,) int64 ids, ascending, of the cut-outs that are taken from these shards."""
        wanted = set(shards)
        return self._index.ids_in([i for i, name in enumerate(self._shards) if name in wanted])

    def metadata(self, columns: Sequence[str] | None = None) -> pa.Table:
        """What is known of the cut-outs, without their images, in the order of ``all_ids``.

        Rows of a shard whose text cannot be read are left out, with a warning: join on ``pool_id``.

        Args:
            columns: names out of pool_id, category_id, height, width, generator, model, prompt,
                seed, origin, scores; all of them by default.

        Raises:
            ValueError: an unknown column.
        """
        return metadata_table(self.root, self._shards, self._index.whole(), columns)

    def counts(self) -> dict[int, int]:
        """Number of cut-outs by category id, ascending by id."""
        return dict(zip(self.category_ids.tolist(), self._index.counts().tolist(), strict=True))

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
        parts: list[tuple[np.ndarray, ...]] = []
        added: list[str] = []
        # A shard that was corrupt is tried again: it may have been in the middle of a copy.
        for name, columns in self._read_indices(sorted(names - known)):
            if not isinstance(columns, CorruptShardError):
                parts.append(self._entries(columns, len(self._shards) + len(added)))
                added.append(name)
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
        self._shards = [*self._shards, *added]
        new = PoolIndex(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        self._index = self._index.grown(new, self._shards)

    def _entries(self, index: ShardIndex, number: int) -> tuple[np.ndarray, ...]:
        """What this pool shows of a shard, n entries: what :class:`PoolIndex` is made of."""
        ids, category_ids, is_there = self._of_now(index)
        rows = self._visible_rows(ids, is_there)
        return ids[rows], category_ids[rows], np.full(len(rows), number, np.int32), rows

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
            # The list is sorted and much longer than a shard: np.isin would sort it each time.
            ends = (np.searchsorted(self._only, ids, side) for side in ("left", "right"))
            is_there = is_there & np.less(*ends)
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
