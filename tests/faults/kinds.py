"""The kinds of files that a run writes, each with a way to write and to read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from lvis_layout import write_lvis
from scored import scored

from gal_d2.datasets import annotation_cache
from gal_d2.datasets.annotation_file import Category
from gal_d2.datasets.registration import register_instances
from gal_d2.datasets.statistics import category_statistics
from gal_d2.engine.checkpoint import CheckpointStore
from gal_d2.generation.journal import Journal, Outcome
from gal_d2.generation.prompts import PromptBook
from gal_d2.pool.cut_out import CorruptCutOutError, CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.snapshots import Snapshots

PER_PART = 20


class Kind(ABC):
    """Files of a kind in a folder; parts are written one after the other.

    Args:
        folder: of the files.
        make_store: of checkpoints, for a model whose weights differ each time.
    """

    def __init__(self, folder: Path, make_store: Callable[[Path], CheckpointStore]) -> None:
        self.folder = folder
        self.make_store = make_store

    @abstractmethod
    def write(self, part: int) -> None:
        """Write part 0, 1 or 2."""

    @abstractmethod
    def read(self) -> Mapping[object, object]:
        """All that can be read, by name."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Those that are there, the latest last."""


class Shard(Kind):
    def write(self, part: int) -> None:
        with PoolWriter(self.folder) as writer:
            for number in range(PER_PART):
                rgba = np.full((6, 7, 4), 100 + part, np.uint8)
                source = CutOutSource("test", "v1", "a bun", number + 100 * part)
                writer.add(1 + number % 2, rgba, source=source, scores={"clip": number / 7})

    def read(self) -> Mapping[object, object]:
        pool, read = InstancePool(self.folder, allow_empty=True), {}
        for pool_id in pool.all_ids().tolist():
            try:
                cut_out = pool.get(pool_id)
            except CorruptCutOutError:
                continue
            category = int(pool.category_of(np.array([pool_id]))[0])
            assert cut_out.category_id == category
            read[pool_id] = category, cut_out.source, cut_out.rgba.tobytes()
        scores = pool.metadata(["pool_id", "scores"])
        read |= {(row["pool_id"], "scores"): row["scores"] for row in scores.to_pylist()}
        return read

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrow"))


class Snapshot(Kind):
    def write(self, part: int) -> None:
        arrays = {"posterior.ids": np.arange(300), "posterior.mean": np.arange(300.0) + part}
        Snapshots(self.folder, period=1).write(part, arrays)

    def read(self) -> Mapping[object, object]:
        snapshots = Snapshots(self.folder, period=1)
        return {
            (number, name): array.tolist()
            for number in snapshots.numbers()
            for name, array in snapshots.read(number).items()
        }

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))


class Rows(Kind):
    def write(self, part: int) -> None:
        with LedgerWriter(
            self.folder, category_ids=[10], category_frequency=["r"], category_names=["bun"]
        ) as ledger:
            for step in range(PER_PART * part, PER_PART * (part + 1)):
                contribution = scored([step, step + 1], [0.5, step / 3])
                decision = Decision.uniform(contribution.score > -1, "always")
                ledger.append(step, contribution, decision, [7])

    def read(self) -> Mapping[object, object]:
        if not self.files():
            return {}
        rows = [r for table in Ledger(self.folder, {10: "bun"}).tables() for r in table.to_pylist()]
        return {(row["step"], row["pool_id"]): row for row in rows}

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


class JournalLines(Kind):
    _PROMPTS = PromptBook([Category(3, "bun", "r", 1)])

    def write(self, part: int) -> None:
        outcomes = [
            Outcome(self._PROMPTS.request(3, index), 1000 + index, scores={"clip": 0.25})
            for index in range(PER_PART * part, PER_PART * (part + 1))
        ]
        Journal(self.folder, "recipe").append(outcomes)

    def read(self) -> Mapping[object, object]:
        journal = Journal(self.folder, "recipe")
        found = [journal.find(self._PROMPTS.request(3, index)) for index in range(3 * PER_PART)]
        return {o.request.index: (o.pool_id, o.reason) for o in found if o is not None}

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("journal/*.jsonl"))


class Checkpoint(Kind):
    def write(self, part: int) -> None:
        store = self.make_store(self.folder)
        for weight in store.model.parameters():
            weight.data.fill_(part + 1)
        store.save(f"model_{part:07d}", iteration=part)

    def read(self) -> Mapping[object, object]:
        store = self.make_store(self.folder)
        if not store.has_checkpoint():
            return {}
        store.load_last()
        name = Path(store.get_checkpoint_file()).name
        return {name: {k: v.tolist() for k, v in store.model.named_parameters()}}

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.pth"))


class AnnotationCache(Kind):
    _number = 0

    def write(self, part: int) -> None:
        root = self.folder / "datasets"
        if not root.exists():
            write_lvis(root)
        for path in self.files():
            path.unlink()
        self.read()

    def read(self) -> Mapping[object, object]:
        annotations = self.folder / "datasets/lvis/lvis_v1_train.json"
        if not annotations.exists():
            return {}
        # As in a new process, and as of a large file.
        annotation_cache._held.clear()
        annotation_cache._homes.clear()
        AnnotationCache._number += 1
        name = f"faults_{self.folder}_{AnnotationCache._number}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(annotation_cache, "LEAST_BYTES", 0)
            patch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))
            register_instances(name, str(annotations), str(self.folder / "datasets/coco/train2017"))
            statistics = category_statistics(name)
        return {"images": statistics.image_count.tolist(), "scale": repr(statistics.scale_mean)}

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob(f"*{annotation_cache.SUFFIX}"))


KINDS = {
    "shard": Shard,
    "snapshot": Snapshot,
    "ledger": Rows,
    "journal": JournalLines,
    "checkpoint": Checkpoint,
    "annotation cache": AnnotationCache,
}
