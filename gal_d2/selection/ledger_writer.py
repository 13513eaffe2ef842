"""Stores every score and decision of a training, in append-only Parquet shards.

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
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gal_d2.errors import UserError
from gal_d2.files.atomic_file import TEMPORARY, sync
from gal_d2.selection.ledger_names import keep_names, require_ledger_names
from gal_d2.selection.ledger_shards import (
    DAMAGE,
    Shard,
    encoded,
    list_shards,
    read_shard,
    write_shard,
)

if TYPE_CHECKING:
    from gal_d2.scoring.contribution import Contribution
    from gal_d2.selection.decision import Decision

logger = logging.getLogger(__name__)


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

    def _owns(self, shard: Shard) -> bool:
        # Also files of ranks that a run with more processes had and this one has not.
        return shard.rank % self.num_processes == self.rank

    def _own_shards(self) -> list[Shard]:
        return [shard for shard in list_shards(self.root) if self._owns(shard)]

    def _remove_temporaries(self) -> None:
        for path in self.root.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            shard = Shard.at(Path(match["name"])) if match else None
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
            except DAMAGE as error:
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
    def _truncate(shard: Shard, step: int) -> int:
        shard.require_intact()
        table = read_shard(shard.path)
        kept = table.filter(pc.less(table["step"], step))
        if kept.num_rows == 0:
            shard.path.unlink()
        elif kept.num_rows < table.num_rows:
            # In place, under a name without checksum: at no point are there two files with the same
            # rows, or one with another's checksum.
            content = encoded(kept)
            path = shard._replace(checksum=None).named()
            os.rename(shard.path, path)
            write_shard(content, path)
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
        content = encoded(keep_names(pa.table(arrays), self._names))
        range_ = int(steps.min()), int(steps.max())
        checksum = zlib.crc32(content)
        shard = Shard(self.root / "new", *range_, self.rank, self._next_number, checksum)
        path = shard.named()
        try:
            write_shard(content, path)
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
