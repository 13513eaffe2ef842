"""One shard of an instance pool: an immutable Arrow IPC file with a row for each cut-out.

A shard is written under a temporary name (``*.arrow.tmp``) in the pool's folder and renamed when it
is complete, so whatever ends in ``.arrow`` is whole, and any number of processes can append.
"""

from __future__ import annotations

import bisect
import errno
import json
import mmap
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gal_d2.datasets.category_identity import Names, names_in, with_names
from gal_d2.files.atomic_file import sync
from gal_d2.pool.cut_out import (
    CorruptCutOutError,
    CutOut,
    CutOutSource,
    cut_out_id,
    decode_rgba,
)

SHARD_SUFFIX = ".arrow"
TEMPORARY_SUFFIX = ".arrow.tmp"

# The first two columns are the index, the only ones that are read when a pool is opened.
SCHEMA = pa.schema(
    [
        pa.field("pool_id", pa.int64(), nullable=False),
        pa.field("category_id", pa.int64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("generator", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("seed", pa.uint64()),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("scores", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
    ],
    metadata={"gal_d2.pool": "1"},
)
METADATA_COLUMNS = tuple(name for name in SCHEMA.names if name != "image")
_INDEX_FIELDS = [0, 1]
# Of a record batch: a JSON object, by column but the image's the CRC-32 of its values. Where a row
# is read as a whole, it is compared with its id, a hash of what matters of it.
_CHECKSUMS = "gal_d2.crc32"
# Not a fault of the file: the caller must hear of it.
_SYSTEM_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class CorruptShardError(Exception):
    """A file in the pool's folder is no readable shard; the message says why."""


class ShardWriter:
    """Streams record batches into a new shard; :meth:`seal` makes it visible to readers.

    Args:
        root: the pool's folder.
        names: of the categories, kept in the shard.
    """

    def __init__(self, root: Path, names: Names | None = None) -> None:
        # Sorted names are in the order of creation, as far as the clocks of the machines agree.
        stem = f"{time.time_ns():019d}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = root / f"{stem}{SHARD_SUFFIX}"
        self.temporary = root / f"{stem}{TEMPORARY_SUFFIX}"
        self._file = self.temporary.open("xb")
        self._schema = with_names(SCHEMA, names)
        self._writer = pa.ipc.new_file(self._file, self._schema)

    def write(self, rows: list[dict]) -> None:
        """Append ``rows`` (dicts by the names in ``SCHEMA``) as one record batch."""
        batch = pa.RecordBatch.from_pylist(rows, schema=self._schema)
        checksums = {name: _checksum(batch.column(name)) for name in METADATA_COLUMNS}
        self._writer.write_batch(batch, custom_metadata={_CHECKSUMS: json.dumps(checksums)})

    def seal(self) -> Path:
        """Write the footer, force everything to disk and rename the file into place."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.temporary.rename(self.path)
        sync(self.path.parent)
        return self.path

    def discard(self) -> None:
        """Drop the shard and whatever was written of it."""
        with suppress(OSError):  # closing writes what is buffered, and the disk may be full
            self._file.close()
        self.temporary.unlink(missing_ok=True)


class ShardReader:
    """Random access to the rows of one shard, memory-mapped.

    Raises:
        CorruptShardError: the file is truncated, no Arrow file, or has another schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _as_corrupt_shard():
            self._reader = _open(path, None)
            self._batches = [
                self._reader.get_batch(i) for i in range(self._reader.num_record_batches)
            ]
        self._columns = [
            list(zip(SCHEMA.names, batch.columns, strict=True)) for batch in self._batches
        ]
        ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        self._starts = [0, *ends.tolist()]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, row: int) -> CutOut:
        """The cut-out in ``row``.

        Raises:
            CorruptCutOutError: the row is damaged. Its id is a hash of what it holds, so any change
                is noticed.
        """
        fields = self.read_fields(row)
        rgba = decode_rgba(fields["image"], fields["height"], fields["width"])
        source = CutOutSource(*(fields[name] for name in CutOutSource.__dataclass_fields__))
        return CutOut(
            fields["pool_id"], fields["category_id"], rgba, source, dict(fields["scores"])
        )

    def read_fields(self, row: int) -> dict:
        """The row as a dict by the names in ``SCHEMA``, compared with its id; image not decoded.

        Raises:
            CorruptCutOutError: see :meth:`read`.
        """
        if not 0 <= row < len(self):
            raise CorruptCutOutError(f"{self.path} has {len(self)} rows, no row {row}")
        number = bisect.bisect_right(self._starts, row) - 1
        try:
            row_in_batch = row - self._starts[number]
            # Bounds of the variable-length columns, without which damage could crash the process.
            self._batches[number].slice(row_in_batch, 1).validate(full=True)
            # Half the time of to_pylist() on the slice.
            fields = {name: column[row_in_batch].as_py() for name, column in self._columns[number]}
            source = CutOutSource(
                fields["generator"], fields["model"], fields["prompt"], fields["seed"]
            )
            expected = cut_out_id(fields["category_id"], source, fields["image"])
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise CorruptCutOutError(
                f"row {row} of {self.path} cannot be read: {_one_line(error)}"
            ) from error
        if expected != fields["pool_id"]:
            raise CorruptCutOutError(
                f"row {row} of {self.path} does not match its id {fields['pool_id']}: it was "
                "changed after it was written"
            )
        return fields


class ShardIndex(NamedTuple):
    """What is read of a shard when a pool is opened.

    Attributes:
        pool_ids, category_ids: (n,) int64.
        names: of the categories, as the shard keeps them; None in one of an earlier release.
    """

    pool_ids: np.ndarray
    category_ids: np.ndarray
    names: dict[int, str] | None


def read_index(path: Path) -> ShardIndex:
    """The index columns of a shard, as copies, and its category names; nothing else is read.

    Raises:
        CorruptShardError: the file is truncated, no Arrow file, or has another schema.
    """
    with _as_corrupt_shard():
        reader = _open(path, _INDEX_FIELDS)
        ids: list[np.ndarray] = []
        categories: list[np.ndarray] = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate()
            for column, into in zip(batch.columns, (ids, categories), strict=True):
                if column.null_count:
                    raise CorruptShardError("its index has empty cells")
                into.append(column.to_numpy())
        pool_ids = np.concatenate([*ids, np.zeros(0, np.int64)])
        if len(pool_ids) and int(pool_ids.min()) < 0:
            raise CorruptShardError("its index has a negative id")
        return ShardIndex(
            pool_ids,
            np.concatenate([*categories, np.zeros(0, np.int64)]),
            names_in(reader.schema),
        )


def read_metadata(path: Path, columns: list[str], rows: np.ndarray) -> pa.Table:
    """The given ``rows`` (n,) of some ``METADATA_COLUMNS`` of a shard, as a table.

    Raises:
        CorruptShardError: the file cannot be read, or not these columns of it.
    """
    with _as_corrupt_shard():
        fields = sorted(SCHEMA.get_field_index(name) for name in columns)
        reader = _open(path, fields)
        batches = []
        for number in range(reader.num_record_batches):
            batch, custom = reader.get_batch_with_custom_metadata(number)
            batch.validate(full=True)
            _require_intact(batch, custom)
            batches.append(batch)
        schema = pa.schema([SCHEMA.field(i) for i in fields])
        return pa.Table.from_batches(batches, schema).take(pa.array(rows)).select(columns)


def shard_names(root: Path) -> list[str]:
    """Sorted names of the shards in a pool's folder; empty if there is no such folder."""
    return _names(root, SHARD_SUFFIX)


def temporary_names(root: Path) -> list[str]:
    """Sorted names of unfinished shards: of a running writer, or left by a killed one."""
    return _names(root, TEMPORARY_SUFFIX)


def _names(root: Path, suffix: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.name.endswith(suffix) and not e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _open(path: Path, fields: list[int] | None) -> pa.RecordBatchFileReader:
    # Python's memory map and not Arrow's, which hands each read to a thread: slower to open, and
    # a forked worker has no such thread.
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
    reader = pa.ipc.open_file(pa.py_buffer(mapped), options=options)
    expected = SCHEMA if fields is None else pa.schema([SCHEMA.field(i) for i in fields])
    if not reader.schema.equals(expected):
        raise CorruptShardError(
            f"its columns are {_columns(reader.schema)}, not {_columns(expected)}"
        )
    return reader


def _checksum(column: pa.Array) -> int:
    """CRC-32 of a column's values, however they lie in memory."""
    return zlib.crc32(repr(column.to_pylist()).encode())


def _require_intact(batch: pa.RecordBatch, custom: pa.KeyValueMetadata | None) -> None:
    """Compare the columns of a batch with their checksums; earlier releases have none."""
    for name, checksum in json.loads((custom or {}).get(_CHECKSUMS.encode(), b"{}")).items():
        if name in batch.schema.names and _checksum(batch.column(name)) != checksum:
            raise CorruptShardError(f"its column {name} was changed after it was written")


def _columns(schema: pa.Schema) -> str:
    return "(" + ", ".join(f"{field.name}: {field.type}" for field in schema) + ")"


@contextmanager
def _as_corrupt_shard() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRNOS:
            raise
        raise CorruptShardError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
