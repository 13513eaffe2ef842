"""Every score and decision of a training, in append-only Parquet shards, and a reader of them.

Each process writes files of its own, ``<first step>-<last step>-r<rank>-<number>-<CRC-32 of the
file>.parquet``, none of which holds a step outside the range in its name. (Those of earlier
releases have no checksum.) A shard appears complete (written beside, then renamed) or not at all.
A training that resumes at step S calls :meth:`LedgerWriter.resume`, which takes back what an
interrupted run had written from S on, so that no decision is in there twice.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gal_d2.datasets.category_identity import Renumbering
from gal_d2.errors import UserError
from gal_d2.files.atomic_file import TEMPORARY, replacing, sync
from gal_d2.files.checksum import DamagedFileError, crc32_of
from gal_d2.selection.ledger_names import ids_of_now, keep_names, require_ledger_names

if TYPE_CHECKING:
    from gal_d2.scoring.contribution import Contribution
    from gal_d2.selection.decision import Decision

logger = logging.getLogger(__name__)

_SHARD_NAME = re.compile(r"(\d+)-(\d+)-r(\d+)-(\d+)(?:-([0-9a-f]{8}))?\.parquet")
_DAMAGE = (OSError, pa.ArrowException, EOFError, DamagedFileError)
_MERGE_ROWS = 2_000_000  # rows of partial aggregates held before they are merged


class _Shard(NamedTuple):
    """A shard file; the steps are an upper bound of what it holds, both ends included."""

    path: Path
    first_step: int
    last_step: int
    rank: int
    number: int
    checksum: int | None = None

    @classmethod
    def at(cls, path: Path) -> _Shard | None:
        """From the name of a file; None where it is no shard's."""
        match = _SHARD_NAME.fullmatch(path.name)
        if match is None:
            return None
        *numbers, checksum = match.groups()
        return cls(path, *map(int, numbers), None if checksum is None else int(checksum, 16))

    def named(self) -> Path:
        """Where it belongs."""
        checksum = "" if self.checksum is None else f"-{self.checksum:08x}"
        steps = f"{self.first_step:09d}-{self.last_step:09d}"
        name = f"{steps}-r{self.rank:04d}-{self.number:06d}{checksum}.parquet"
        return self.path.parent / name

    def require_intact(self) -> None:
        """Compare the file with its checksum.

        Raises:
            DamagedFileError: it is another one.
        """
        if self.checksum is not None and crc32_of(self.path) != self.checksum:
            raise DamagedFileError("its checksum does not fit: it was changed after it was written")


def _list_shards(root: Path) -> list[_Shard]:
    shards = [_Shard.at(path) for path in sorted(root.iterdir())]
    return [shard for shard in shards if shard is not None]


def _encoded(table: pa.Table) -> pa.Buffer:
    """The content of a shard's file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _write_atomically(content: pa.Buffer, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole shard or an exception; a shard is at most ``LedgerWriter.max_rows`` and a step."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if columns is not None:
            columns = [name for name in columns if name in file.schema_arrow.names]
        return file.read(columns=columns)


def _numpy_columns(record: object) -> dict[str, np.ndarray]:
    """A dataclass of (N,) tensors, and of dicts of them by head, as named NumPy columns."""
    columns = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Mapping):
            for head, tensor in value.items():
                columns[f"{field.name}_{head}"] = tensor.detach().cpu().numpy()
        elif hasattr(value, "detach"):
            columns[field.name] = value.detach().cpu().numpy()
    return columns


def _to_arrow(name: str, values: np.ndarray) -> pa.Array:
    """A missing float (NaN) becomes null, and so does an infinite one unless it is a threshold."""
    if values.dtype.kind != "f":
        return pa.array(values)
    missing = np.isnan(values) if name == "threshold" else ~np.isfinite(values)
    return pa.array(values, mask=missing)


class LedgerWriter:
    """Collects the rows of one process and stores them at checkpoints.

    Columns: ``step``, ``image_id``, ``category_id`` (as in the annotation file), ``frequency``;
    every field of ``Contribution`` (a field by head as ``<field>_<head>``); ``accept``,
    ``threshold``, ``undecided`` and ``policy`` of ``Decision``. Missing is null.

    Args:
        root: folder of the ledger, shared by all processes; created where it is missing.
        category_ids: by class, the id in the annotation file.
        category_frequency: by class, "r", "c" or "f".
        category_names: by class, kept in the files.
        rank: of this process.
        num_processes: how many write to ``root``.
        max_rows: buffered rows from which on a shard is written without waiting for a checkpoint.

    Raises:
        UserError: ``root`` is not a folder or cannot be created, or holds rows of other categories.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        category_ids: Sequence[int],
        category_frequency: Sequence[str],
        category_names: Sequence[str] | None = None,
        rank: int = 0,
        num_processes: int = 1,
        max_rows: int = 500_000,
    ) -> None:
        if len(category_ids) != len(category_frequency):
            raise ValueError(
                f"{len(category_ids)} category ids, but {len(category_frequency)} frequencies."
            )
        self.root = Path(root)
        self.rank = rank
        self.num_processes = num_processes
        self.max_rows = max_rows
        self._category_ids = np.asarray(category_ids, np.int64)
        self._names = dict(zip(category_ids, category_names or (), strict=False)) or None
        self._category_frequency = np.asarray(category_frequency, dtype=str)
        self._buffer: list[dict[str, np.ndarray]] = []
        self._num_buffered = 0
        self._policies: list[str] = []
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The ledger's folder {self.root} cannot be created ({error.strerror}): set "
                "OUTPUT_DIR to a place that you can write to."
            ) from error
        self._remove_temporaries()
        shards = self._own_shards()
        require_ledger_names([shard.path for shard in shards], self._names)
        self._stored_until = max((shard.last_step for shard in shards), default=-1)
        self._next_number = max((s.number + 1 for s in shards if s.rank == rank), default=0)

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _owns(self, shard: _Shard) -> bool:
        # Also files of ranks that a run with more processes had and this one has not.
        return shard.rank % self.num_processes == self.rank

    def _own_shards(self) -> list[_Shard]:
        return [shard for shard in _list_shards(self.root) if self._owns(shard)]

    def _remove_temporaries(self) -> None:
        for path in self.root.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            shard = _Shard.at(Path(match["name"])) if match else None
            if shard is not None and self._owns(shard):
                path.unlink()

    def resume(self, step: int) -> int:
        """Take back all rows of ``step`` and later ones: the training will make them again.

        Every process calls it before its first :meth:`append`. Interrupted at any point, it can be
        called again.

        Args:
            step: the first step that will be (re)done; 0 for a training that starts afresh.

        Returns:
            Number of rows taken back, of this process's files.
        """
        self._buffer, self._num_buffered = [], 0
        removed = 0
        for shard in self._own_shards():
            if shard.last_step < step:
                continue
            try:
                if shard.first_step >= step:
                    count = pq.read_metadata(shard.path).num_rows
                    shard.path.unlink()
                    removed += count
                else:
                    removed += self._truncate(shard, step)
            except _DAMAGE as error:
                if shard.first_step >= step:
                    shard.path.unlink()
                logger.warning("Ledger shard %s is damaged: %s", shard.path, error)
        sync(self.root)
        if removed:
            logger.warning(
                "Ledger %s: took back %d rows from step %d on.", self.root, removed, step
            )
        self._stored_until = step - 1
        return removed

    @staticmethod
    def _truncate(shard: _Shard, step: int) -> int:
        shard.require_intact()
        table = _read(shard.path)
        kept = table.filter(pc.less(table["step"], step))
        if kept.num_rows == 0:
            shard.path.unlink()
        elif kept.num_rows < table.num_rows:
            # In place, under a name without checksum: at no point are there two files with the same
            # rows, or one with another's checksum.
            content = _encoded(kept)
            path = shard._replace(checksum=None).named()
            os.rename(shard.path, path)
            _write_atomically(content, path)
            last_step, checksum = pc.max(kept["step"]).as_py(), zlib.crc32(content)
            os.rename(path, shard._replace(last_step=last_step, checksum=checksum).named())
        return table.num_rows - kept.num_rows

    def append(
        self,
        step: int,
        contribution: Contribution,
        decision: Decision,
        image_ids: Sequence[int],
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add the N instances of a step. They are on disk after the next :meth:`flush`.

        Args:
            step: training iteration.
            contribution: of N instances.
            decision: on the same instances.
            image_ids: by image of the batch (``contribution.image_index`` points into it).
            more: further columns of these instances, (N,) each, under names of their own.

        Raises:
            UserError: the folder holds rows of this step or later ones already (of a run that was
                not resumed), an image id is not an integer, or a spilled shard cannot be written.
            ValueError: contribution and decision are not of the same instances.
        """
        if step <= self._stored_until:
            raise UserError(
                f"The ledger {self.root} already holds steps up to {self._stored_until}, and step "
                f"{step} was about to be added again: resume from the checkpoint (--resume), or "
                "choose another OUTPUT_DIR."
            )
        columns = _numpy_columns(contribution) | _numpy_columns(decision)
        columns |= {name: np.asarray(values) for name, values in (more or {}).items()}
        count = len(columns["pool_id"])
        lengths = {name: len(values) for name, values in columns.items() if len(values) != count}
        if lengths:
            raise ValueError(f"{count} instances, but columns of other lengths: {lengths}.")
        if count == 0:
            return
        image_ids = np.asarray(image_ids)
        if image_ids.dtype.kind not in "iu":
            raise UserError(
                f"The field image_id has the value {image_ids.flat[0].item()!r}: the ledger needs "
                "integers, as LVIS and COCO annotation files have them."
            )
        if decision.policy not in self._policies:
            self._policies.append(decision.policy)
        classes = columns["gt_class"]
        columns["step"] = np.full(count, step, np.int64)
        columns["image_id"] = image_ids.astype(np.int64)[columns["image_index"]]
        columns["category_id"] = self._category_ids[classes]
        columns["policy"] = np.full(count, self._policies.index(decision.policy), np.int32)
        if self._buffer and self._buffer[0].keys() != columns.keys():
            self.flush()  # other heads than so far: a shard has one schema
        self._buffer.append(columns)
        self._num_buffered += count
        if self._num_buffered >= self.max_rows:
            self.flush()

    def flush(self) -> Path | None:
        """Store what was appended since the last time; call it together with a checkpoint.

        Returns:
            The new shard, or None if there was nothing to store.

        Raises:
            UserError: the disk is full or the folder not writable. The rows stay buffered.
        """
        if not self._buffer:
            return None
        columns = {
            name: np.concatenate([part[name] for part in self._buffer])
            for name in sorted(self._buffer[0])
        }
        steps = columns["step"]
        arrays = {name: _to_arrow(name, values) for name, values in columns.items()}
        arrays["policy"] = pa.array(self._policies).take(arrays["policy"])
        arrays["frequency"] = pa.array(self._category_frequency).take(arrays["gt_class"])
        content = _encoded(keep_names(pa.table(arrays), self._names))
        range_ = int(steps.min()), int(steps.max())
        checksum = zlib.crc32(content)
        shard = _Shard(self.root / "new", *range_, self.rank, self._next_number, checksum)
        path = shard.named()
        try:
            _write_atomically(content, path)
        except OSError as error:
            raise UserError(
                f"The ledger shard {path} cannot be written ({error.strerror or error}): free some "
                "space or set OUTPUT_DIR to a place that you can write to."
            ) from error
        self._next_number += 1
        self._buffer, self._num_buffered = [], 0
        return path

    def close(self) -> None:
        """Store what is left."""
        self.flush()


class Ledger:
    """Reads the ledger of a training, finished or still running.

    Shards are read one by one: memory is bounded by a shard and by the number of groups in the
    answer. A damaged shard is named in a warning, skipped as a whole, and listed in ``damaged``.

    Args:
        root: folder that :class:`LedgerWriter` filled.
        names: what category ids mean now, by id: rows have the ids of now, whatever they were when
            they were written. None: ids are as they are stored.

    Raises:
        UserError: there is no such folder, no readable row in it, or nobody can tell what an id
            means now.
    """

    def __init__(self, root: str | os.PathLike, names: Mapping[int, str] | None = None) -> None:
        self.root = Path(root)
        self._as_now = Renumbering(names, f"the ledger {self.root}")
        self.damaged: dict[Path, str] = {}
        self._shards: list[_Shard] = []
        self.num_rows = 0
        names: dict[str, None] = {}
        for shard in _list_shards(self.root) if self.root.is_dir() else []:
            try:
                shard.require_intact()
                with pq.ParquetFile(shard.path) as file:
                    self.num_rows += file.metadata.num_rows
                    names |= dict.fromkeys(file.schema_arrow.names)
            except _DAMAGE as error:
                self._note_damage(shard.path, error)
            else:
                self._shards.append(shard)
        self.columns = tuple(names)
        if self.num_rows == 0:
            damaged = f" ({len(self.damaged)} damaged shards)" if self.damaged else ""
            raise UserError(
                f"The ledger {self.root} is empty{damaged}: give the ledger folder under the "
                "OUTPUT_DIR of a training with scoring on that has saved a checkpoint."
            )

    def __len__(self) -> int:
        return self.num_rows

    def _note_damage(self, path: Path, error: Exception) -> None:
        if path not in self.damaged:
            self.damaged[path] = str(error)
            logger.warning("Ledger shard %s is damaged and left out: %s", path, error)

    def tables(
        self,
        columns: Sequence[str] | None = None,
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        category_id: int | None = None,
    ) -> Iterator[pa.Table]:
        """The rows, one table a shard, in order of first step.

        Args:
            columns: names to read; None: all. ``step`` is always there.
            first_step: leave out earlier steps.
            last_step: leave out later steps.
            category_id: leave out other categories.
        """
        first = -1 if first_step is None else first_step
        last = np.iinfo(np.int64).max if last_step is None else last_step
        if columns is not None:
            filtered = [] if category_id is None else ["category_id"]
            columns = list(dict.fromkeys(["step", *columns, *filtered]))
        for shard in self._shards:
            if shard.path in self.damaged or shard.last_step < first or shard.first_step > last:
                continue
            try:
                table = _read(shard.path, columns)
            except _DAMAGE as error:
                self._note_damage(shard.path, error)
                continue
            if shard.first_step < first or shard.last_step > last:
                step = table["step"]
                inside = pc.and_(pc.greater_equal(step, first), pc.less_equal(step, last))
                table = table.filter(inside)
            table = ids_of_now(table, self._as_now)
            if category_id is not None:
                table = table.filter(pc.equal(table["category_id"], category_id))
            yield table

    def aggregate(
        self,
        by: Sequence[str],
        *,
        step_bin: int = 1000,
        first_step: int | None = None,
        last_step: int | None = None,
        category_id: int | None = None,
    ) -> pa.Table:
        """Counts, rates and means of the rows of each group.

        Args:
            by: columns that define the groups, e.g. ``["category_id", "step_bin"]``; ``step_bin``
                is the first step of the bin that a row falls into.
            step_bin: steps in a bin.
            first_step: leave out earlier steps.
            last_step: leave out later steps.
            category_id: leave out other categories.

        Returns:
            One row a group, ascending in ``by``: the columns ``by``; ``count`` (exposures),
            ``scored`` (those with a score), ``accepted``, ``undecided``,
            ``acceptance_rate``; ``score_mean``, ``score_std`` (of the population), ``score_min``,
            ``score_max``, ``<column>_mean`` for phi and each head's score and loss; ``step_first``,
            ``step_last``. A mean of nothing is null.

        Raises:
            ValueError: ``by`` is empty or names an unknown column, or ``step_bin`` is below 1.
        """
        keys = list(by)
        unknown = [key for key in keys if key not in (*self.columns, "step_bin")]
        if not keys or unknown:
            raise ValueError(f"by is {keys}: name some of {', '.join(self.columns)}, step_bin.")
        if step_bin < 1:
            raise ValueError(f"step_bin must be 1 or more, not {step_bin}.")
        means = [name for name in self.columns if re.match(r"(phi$|head_(score|loss)_)", name)]
        flags = ["accept", "undecided"]
        wanted = [*keys, *means, *flags, "score"]
        partials: list[pa.Table] = []
        for table in self.tables(
            [name for name in wanted if name != "step_bin"],
            first_step=first_step,
            last_step=last_step,
            category_id=category_id,
        ):
            partials.append(_partial(table, keys, step_bin, flags, ["score", *means]))
            # Not before the new ones outnumber the merged ones: no row is merged again and again.
            if sum(part.num_rows for part in partials[1:]) > max(_MERGE_ROWS, partials[0].num_rows):
                partials = [_merge(partials, keys)]
        if not partials:
            raise UserError(
                f"The ledger {self.root} holds nothing between the steps {first_step} and "
                f"{last_step}: choose another range."
            )
        return _finish(_merge(partials, keys), keys, means)

    def by_instance(self, **rows: int | None) -> pa.Table:
        """One row a cut-out of the pool (``pool_id``) and class that it was pasted as.

        Args:
            rows: which ones, as for :meth:`tables`: of 1.2 million cut-outs, those of one category
                are found in a small part of the time and memory.
        """
        table = self.aggregate(["pool_id", "gt_class", "category_id"], **rows)
        return table.filter(pc.greater_equal(table["pool_id"], 0))

    def by_category(self, **steps: int | None) -> pa.Table:
        """One row a category, with its frequency group."""
        return self.aggregate(["category_id", "frequency"], **steps)

    def by_frequency(self, **steps: int | None) -> pa.Table:
        """One row a frequency group."""
        return self.aggregate(["frequency"], **steps)

    def by_time(self, step_bin: int = 1000, **steps: int | None) -> pa.Table:
        """One row a bin of steps."""
        return self.aggregate(["step_bin"], step_bin=step_bin, **steps)


def _partial(
    table: pa.Table, keys: list[str], step_bin: int, flags: list[str], values: list[str]
) -> pa.Table:
    """Sums that add up over shards: named ``sum_*``, ``min_*`` and ``max_*``."""
    step = table["step"]
    columns = {key: table[key] for key in keys if key != "step_bin"}
    if "step_bin" in keys:
        columns["step_bin"] = pc.multiply(pc.divide(step, step_bin), step_bin)
    ones = pa.array(np.ones(table.num_rows, np.int64))
    columns |= {"sum_rows": ones, "min_step": step, "max_step": step}
    columns |= {f"sum_{name}": table[name].cast(pa.int64()) for name in flags}
    for name in values:
        if name not in table.column_names:  # a head that this part of the training did not score
            continue
        value = table[name].cast(pa.float64())
        columns[f"sum_{name}"] = value
        columns[f"sum_{name}_known"] = pc.is_valid(value).cast(pa.int64())
        if name == "score":
            columns["sum_score_squares"] = pc.multiply(value, value)
            columns["min_score"] = columns["max_score"] = value
    return _reduce(pa.table(columns), keys)


def _reduce(table: pa.Table, keys: list[str]) -> pa.Table:
    names = [name for name in table.column_names if name not in keys]
    reduced = table.group_by(keys).aggregate([(name, name[:3]) for name in names])
    return reduced.select([*keys, *(f"{name}_{name[:3]}" for name in names)]).rename_columns(
        [*keys, *names]
    )


def _merge(partials: list[pa.Table], keys: list[str]) -> pa.Table:
    return _reduce(pa.concat_tables(partials, promote_options="default"), keys)


def _finish(sums: pa.Table, keys: list[str], means: list[str]) -> pa.Table:
    def mean_of(name: str) -> pa.ChunkedArray:
        known = sums[f"sum_{name}_known"].cast(pa.float64())
        return pc.divide(sums[f"sum_{name}"], pc.if_else(pc.equal(known, 0), None, known))

    rows = sums["sum_rows"]
    scored = sums["sum_score_known"]
    score_mean = mean_of("score")
    squares = pc.divide(sums["sum_score_squares"], scored.cast(pa.float64()))
    variance = pc.max_element_wise(
        pc.subtract(squares, pc.multiply(score_mean, score_mean)), 0.0, skip_nulls=False
    )
    columns = {key: sums[key] for key in keys}
    columns |= {
        "count": rows,
        "scored": scored,
        "accepted": sums["sum_accept"],
        "undecided": sums["sum_undecided"],
        "acceptance_rate": pc.divide(sums["sum_accept"].cast(pa.float64()), rows),
        "score_mean": score_mean,
        "score_std": pc.sqrt(variance),
        "score_min": sums["min_score"],
        "score_max": sums["max_score"],
    }
    columns |= {
        f"{name}_mean": mean_of(name) for name in means if f"sum_{name}" in sums.schema.names
    }
    columns |= {"step_first": sums["min_step"], "step_last": sums["max_step"]}
    return pa.table(columns).sort_by([(key, "ascending") for key in keys])
