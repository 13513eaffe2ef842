"""Writers killed at random points: what they had committed is there, once, and they can go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

import made_by_hand
import numpy as np
import pytest
from dying import calls_of, in_child, killed
from scored import scored

from gal_d2.datasets.annotation_file import Category
from gal_d2.generation.filters import AreaFilter
from gal_d2.generation.instance_cutter import InstanceCutter
from gal_d2.generation.pipeline import InstancePipeline
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.store import PoolStore
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import shard_names
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.snapshots import Snapshots

PARTS = 4  # that each writer commits, one after the other


class Writer(ABC):
    """Something that commits parts, and goes on where it was.

    Args:
        folder: of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "files"
        self.committed = folder / "committed"  # a line for each part whose commit returned
        self.committed.touch()

    def note(self, part: int) -> None:
        """A part is committed, maybe again."""
        with self.committed.open("ab", buffering=0) as file:
            file.write(b"%d\n" % part)

    @property
    def num_noted(self) -> int:
        """How many parts are to be there."""
        return max(map(int, self.committed.read_text().split()), default=-1) + 1

    @abstractmethod
    def write(self) -> None:
        """Write the parts that are not there, and :meth:`note` each."""

    @abstractmethod
    def parts(self) -> list[object]:
        """What is there, in order; equal after equal runs."""

    @abstractmethod
    def num_committed(self) -> int:
        """How many parts are there as a whole; asserts that nothing is there twice."""


class PoolOf(Writer):
    """What is written is a pool, or something beside one."""

    def ids(self) -> list[int]:
        """Pool ids in all shards; all can be read, and none is stored twice."""
        pool = InstancePool(self.folder, allow_empty=True)
        assert not pool.corrupt_shards
        for pool_id in pool.all_ids():
            pool.get(pool_id)
        shards = [InstancePool(self.folder, shards=[name]) for name in shard_names(self.folder)]
        ids = [int(pool_id) for shard in shards for pool_id in shard.all_ids()]
        assert len(ids) == len(set(ids))
        return ids

    def parts(self) -> list[object]:
        return sorted(self.ids())


class Pool(PoolOf):
    """A shard of three cut-outs is a part."""

    def write(self) -> None:
        known = InstancePool(self.folder, allow_empty=True)
        with PoolWriter(self.folder, known=known) as writer:
            for part in range(PARTS):
                for number in range(3):
                    rgba = np.full((4, 5, 4), 200 + 3 * part + number, np.uint8)
                    source = CutOutSource("test", "v1", "a bun", part)
                    writer.add(1, rgba, source=source, scores={"clip": 0.5})
                writer.flush()
                self.note(part)

    def num_committed(self) -> int:
        return len(self.ids()) // 3


class Generated(PoolOf):
    """The pool and journal of a generation: a batch of five requests is a part."""

    def write(self) -> None:
        prompts = PromptBook([Category(3, "bun", "r", 1)])
        cutter = InstanceCutter([made_by_hand.DarkSegmenter()], [AreaFilter(0.05, 0.95)])
        store = PoolStore(str(self.folder), "recipe")
        with InstancePipeline(made_by_hand.DiscGenerator(), cutter, store) as pipeline:
            for part in range(PARTS):
                pipeline.run([prompts.request(3, 5 * part + number) for number in range(5)])
                pipeline.flush()
                self.note(part)

    def num_committed(self) -> int:
        ids = self.ids()
        journal = PoolStore(str(self.folder), "recipe").journal
        prompts = PromptBook([Category(3, "bun", "r", 1)])
        outcomes = [journal.find(prompts.request(3, index)) for index in range(5 * PARTS)]
        kept = [o.pool_id for o in outcomes if o is not None and o.pool_id is not None]
        assert set(kept) <= set(ids)  # it speaks of nothing that is not there
        return sum(outcome is not None for outcome in outcomes) // 5


class Rows(Writer):
    """The ledger: three steps of two rows are a part."""

    def write(self) -> None:
        with LedgerWriter(self.folder, category_ids=[10], category_frequency=["r"]) as ledger:
            done = self.num_noted
            ledger.resume(3 * done)
            for step in range(3 * done, 3 * PARTS):
                accept = Decision.uniform(scored([0, 0], [1.0, 1.0]).score > 0, "always")
                ledger.append(step, scored([step, step + 1], [0.5, 1.5]), accept, [7])
                if step % 3 == 2:
                    ledger.flush()
                    self.note(step // 3)

    def parts(self) -> list[object]:
        tables = Ledger(self.folder).tables(["step", "pool_id", "score"])
        return sorted(tuple(row.items()) for table in tables for row in table.to_pylist())

    def num_committed(self) -> int:
        if not any(self.folder.glob("*.parquet")):
            return 0
        ledger = Ledger(self.folder)
        assert not ledger.damaged
        steps = Counter(s for table in ledger.tables() for s in table["step"].to_pylist())
        assert set(steps.values()) == {2}
        return (max(steps) + 1) // 3 if list(steps) == list(range(len(steps))) else 0


class States(Writer):
    """Snapshots: one is a part."""

    def write(self) -> None:
        snapshots = Snapshots(self.folder, period=1)
        start = self.num_noted
        snapshots.resume(start)
        for number in range(start, PARTS):
            snapshots.write(number, {"posterior.mean": np.arange(50.0) + number})
            self.note(number)

    def parts(self) -> list[object]:
        snapshots = Snapshots(self.folder, period=1)
        return [snapshots.read(n)["posterior.mean"].tolist() for n in snapshots.numbers()]

    def num_committed(self) -> int:
        parts = self.parts()
        assert parts == [(np.arange(50.0) + n).tolist() for n in range(len(parts))]
        return len(parts)


WRITERS = {"pool writer": Pool, "journal": Generated, "ledger writer": Rows, "snapshot": States}


@pytest.mark.parametrize("times", [2, pytest.param(42, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_committed_is_there_once(name: str, times: int, tmp_path: Path, tried) -> None:
    rng = np.random.default_rng((times, list(WRITERS).index(name)))

    def make(folder: str) -> Writer:
        (tmp_path / folder).mkdir()
        return WRITERS[name](tmp_path / folder)

    whole = make("whole")
    calls = calls_of(whole.write, tmp_path)
    expected = whole.parts()
    assert whole.num_committed() == PARTS

    done, number = 0, 0
    while done < times:
        number += 1
        writer = make(f"killed{number}")
        # Killed up to three times on its way to the end.
        for _ in range(min(int(rng.integers(1, 4)), times - done)):
            if not killed(writer.write, int(rng.integers(1, calls))):
                break
            done += 1
            tried[f"kill {name}"] += 1
            assert writer.num_committed() >= writer.num_noted
        assert in_child(writer.write) == 0
        assert writer.num_committed() == PARTS and writer.parts() == expected
        left = [path.name for path in writer.folder.iterdir() if path.name.startswith(".")]
        assert not left or name in ("pool writer", "journal"), left
