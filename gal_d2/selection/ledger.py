"""Reads the scores and decisions that :mod:`gal_d2.selection.ledger_writer` stored."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gal_d2.datasets.category_identity import Renumbering
from gal_d2.errors import UserError
from gal_d2.selection.ledger_names import ids_of_now
from gal_d2.selection.ledger_shards import DAMAGE, Shard, list_shards, read_shard
from gal_d2.selection.ledger_sums import finish_sums, merge_sums, partial_sums
from gal_d2.selection.ledger_sums_by_id import SumsById, is_by_id

logger = logging.getLogger(__name__)

_MERGE_ROWS = 2_000_000  # rows of partial sums held before they are merged


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
        self._shards: list[Shard] = []
        self.num_rows = 0
        names: dict[str, None] = {}
        for shard in list_shards(self.root) if self.root.is_dir() else []:
            try:
                shard.require_intact()
                with pq.ParquetFile(shard.path) as file:
                    self.num_rows += file.metadata.num_rows
                    names |= dict.fromkeys(file.schema_arrow.names)
            except DAMAGE as error:
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
                table = read_shard(shard.path, columns)
            except DAMAGE as error:
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
        by_id = SumsById(keys, flags, ["score", *means]) if is_by_id(keys) else None
        partials: list[pa.Table] = []
        is_empty = True
        for table in self.tables(
            [name for name in wanted if name != "step_bin"],
            first_step=first_step,
            last_step=last_step,
            category_id=category_id,
        ):
            is_empty = False
            if by_id is None:
                partial = partial_sums(table, keys, step_bin, flags, ["score", *means])
            else:
                partial = by_id.add(table)
            if partial is None:
                continue
            partials.append(partial)
            # Not before the new ones outnumber the merged ones: no row is merged again and again.
            if sum(part.num_rows for part in partials[1:]) > max(_MERGE_ROWS, partials[0].num_rows):
                partials = [merge_sums(partials, keys)]
        if is_empty:
            raise UserError(
                f"The ledger {self.root} holds nothing between the steps {first_step} and "
                f"{last_step}: choose another range."
            )
        if by_id is not None:
            partials.append(by_id.sums())
        sums = merge_sums(partials, keys) if len(partials) > 1 else partials[0]
        return finish_sums(sums, keys, means)

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
