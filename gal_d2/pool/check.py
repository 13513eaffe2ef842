"""Reads every row of an instance pool and says what is wrong with it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.pool.shard import CorruptShardError, ShardReader, read_index
from gal_d2.pool.usable import UsableCount


@dataclass
class ShardReport:
    """What is in one shard.

    Attributes:
        name: the shard's file name.
        error: why it cannot be read at all, or None.
        sound_rows: (pool id, category id) of each sound row.
        names: category names that it keeps; None in a shard of an earlier release.
        corrupt_rows: for each corrupt row, its id (as the index has it) and what is wrong.
        usable: by category id, how many of the sound rows can be pasted; empty without decoding.
    """

    name: str
    error: str | None = None
    sound_rows: list[tuple[int, int]] = field(default_factory=list)
    corrupt_rows: dict[int, tuple[int, str]] = field(default_factory=dict)
    names: dict[int, str] | None = None
    usable: dict[int, UsableCount] = field(default_factory=dict)


def check_shard(path: str | os.PathLike, *, decode: bool = True) -> ShardReport:
    """Read a whole shard: its structure, every row against its id, and every image.

    Args:
        path: the shard.
        decode: also decode the images; without it only their bytes are compared with the ids.
    """
    path = Path(path)
    report = ShardReport(path.name)
    try:
        pool_ids, _, report.names = read_index(path)
        reader = ShardReader(path)
    except CorruptShardError as error:
        report.error = str(error)
        return report
    for row, pool_id in enumerate(pool_ids.tolist()):
        try:
            if decode:
                cut_out = reader.read(row)
                category_id = cut_out.category_id
                report.usable.setdefault(category_id, UsableCount()).add(cut_out.rgba)
            else:
                category_id = reader.read_fields(row)["category_id"]
        except CorruptCutOutError as error:
            report.corrupt_rows[row] = (pool_id, str(error))
        else:
            report.sound_rows.append((pool_id, category_id))
    return report
