"""The files of a ledger: Parquet, with the steps that they hold in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gal_d2.files.atomic_file import replacing
from gal_d2.files.checksum import DamagedFileError, crc32_of

_SHARD_NAME = re.compile(r"(\d+)-(\d+)-r(\d+)-(\d+)(?:-([0-9a-f]{8}))?\.parquet")
DAMAGE = (OSError, pa.ArrowException, EOFError, DamagedFileError)
"""What reading a damaged shard raises."""


class Shard(NamedTuple):
    """A shard file; the steps are an upper bound of what it holds, both ends included."""

    path: Path
    first_step: int
    last_step: int
    rank: int
    number: int
    checksum: int | None = None

    @classmethod
    def at(cls, path: Path) -> Shard | None:
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


def list_shards(root: Path) -> list[Shard]:
    """The shards of a folder, in the order of their names."""
    shards = [Shard.at(path) for path in sorted(root.iterdir())]
    return [shard for shard in shards if shard is not None]


def encoded(table: pa.Table) -> pa.Buffer:
    """The content of a shard's file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def write_shard(content: pa.Buffer, path: Path) -> None:
    """Store a shard, which appears complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole shard or an exception; a shard is at most ``LedgerWriter.max_rows`` and a step."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if columns is not None:
            columns = [name for name in columns if name in file.schema_arrow.names]
        return file.read(columns=columns)
