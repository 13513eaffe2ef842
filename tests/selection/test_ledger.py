from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection import ledger as ledger_module
from gal_d2.selection import ledger_writer
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter

NAN = float("nan")
CATEGORY_IDS = [10, 20, 30]
FREQUENCY = ["r", "c", "f"]


def writer(root, **kwargs) -> LedgerWriter:
    return LedgerWriter(root, category_ids=CATEGORY_IDS, category_frequency=FREQUENCY, **kwargs)


def rows(pool_ids, classes=None, scores=None, accept=None, heads=("box", "mask")):
    count = len(pool_ids)
    score = torch.tensor(scores if scores is not None else [0.5] * count)
    accept = torch.tensor(accept if accept is not None else [True] * count)
    contribution = Contribution(
        pool_id=torch.tensor(pool_ids),
        image_index=torch.arange(count) % 2,
        gt_class=torch.tensor(classes if classes is not None else [0] * count),
        phi=2 * score,
        score=score,
        head_score=dict.fromkeys(heads, score - 1),
        head_loss={head: torch.full((count,), 0.25) for head in heads},
        num_rois=torch.ones(count, dtype=torch.int64),
        area=torch.full((count,), 900.0),
    )
    return contribution, Decision.uniform(accept, "quantile", value=score, threshold=0.1)


def fill(ledger: LedgerWriter, steps, pool_id: int = 1) -> None:
    for step in steps:
        ledger.append(step, *rows([pool_id, pool_id + 1]), image_ids=[100, 200])


def stored_steps(root) -> list[int]:
    """Of all rows, sorted."""
    return sorted(step for table in Ledger(root).tables() for step in table["step"].to_pylist())


def twice(steps) -> list[int]:
    return [step for step in steps for _ in range(2)]


def test_every_field_comes_back(tmp_path):
    contribution, decision = rows(
        [1 << 62, 5, -1], [0, 2, 1], [0.5, NAN, -0.25], [True, False, True]
    )
    decision.threshold[1] = NAN
    decision.undecided[1] = True
    with writer(tmp_path) as ledger:
        ledger.append(7, contribution, decision, image_ids=[100, 200])
    (table,) = Ledger(tmp_path).tables()
    assert table.to_pydict() == {
        "accept": [True, False, True],
        "category_id": [10, 30, 20],
        "frequency": ["r", "f", "c"],
        "gt_class": [0, 2, 1],
        "head_loss_box": [0.25] * 3,
        "head_loss_mask": [0.25] * 3,
        "head_score_box": [-0.5, None, -1.25],
        "head_score_mask": [-0.5, None, -1.25],
        "image_id": [100, 200, 100],
        "image_index": [0, 1, 0],
        "num_rois": [1, 1, 1],
        "area": [900.0, 900.0, 900.0],
        "phi": [1.0, None, -0.5],
        "policy": ["quantile"] * 3,
        "pool_id": [1 << 62, 5, -1],
        "score": [0.5, None, -0.25],
        "step": [7, 7, 7],
        "threshold": [pytest.approx(0.1), None, pytest.approx(0.1)],
        "undecided": [False, True, False],
        "value": [0.5, None, -0.25],
    }
    assert table.schema.field("phi").type == pa.float32()


def test_infinite_values_are_missing_but_an_infinite_threshold_is_not(tmp_path):
    contribution, decision = rows([1], scores=[float("inf")])
    decision.threshold[0] = -float("inf")
    with writer(tmp_path) as ledger:
        ledger.append(0, contribution, decision, image_ids=[1])
    (table,) = Ledger(tmp_path).tables(["phi", "score", "threshold"])
    assert table.to_pylist() == [
        {"step": 0, "phi": None, "score": None, "threshold": -float("inf")}
    ]


def test_nothing_is_written_before_flush_and_nothing_for_no_rows(tmp_path):
    ledger = writer(tmp_path)
    assert ledger.flush() is None
    ledger.append(0, *rows([]), image_ids=[])
    assert ledger.flush() is None
    fill(ledger, [3, 4])
    assert list(tmp_path.iterdir()) == []
    path = ledger.flush()
    assert re.fullmatch("000000003-000000004-r0000-000000-[0-9a-f]{8}.parquet", path.name)
    assert ledger.flush() is None
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_buffer_is_written_without_a_checkpoint(tmp_path):
    ledger = writer(tmp_path, max_rows=4)
    fill(ledger, range(5))
    assert stored_steps(tmp_path) == twice(range(4))
    fill(ledger, [4])  # a second batch of the same step goes to the next shard
    assert stored_steps(tmp_path) == twice([0, 1, 2, 3, 4, 4])


def test_a_change_of_heads_starts_a_shard_and_is_read_together(tmp_path):
    with writer(tmp_path) as ledger:
        ledger.append(0, *rows([1], heads=("mask",)), image_ids=[1])
        ledger.append(1, *rows([1]), image_ids=[1])
    ledger = Ledger(tmp_path)
    assert len(ledger._shards) == 2
    (row,) = ledger.by_instance().to_pylist()
    assert row["count"] == 2 and row["head_score_box_mean"] == -0.5


def test_resume_takes_back_the_steps_after_the_checkpoint(tmp_path, caplog):
    first = writer(tmp_path)
    for steps in (range(0, 3), range(3, 6), range(6, 9)):
        fill(first, steps)
        first.flush()
    second = writer(tmp_path)
    assert second.resume(5) == 2 * 4
    assert "took back 8 rows from step 5" in caplog.text
    assert stored_steps(tmp_path) == twice(range(5))
    assert [path.name[:19] for path in sorted(tmp_path.iterdir())] == [
        "000000000-000000002",
        "000000003-000000004",
    ]
    fill(second, range(5, 10))
    second.flush()
    assert stored_steps(tmp_path) == twice(range(10))
    assert writer(tmp_path).resume(10) == 0
    assert stored_steps(tmp_path) == twice(range(10))


def test_resume_from_zero_and_within_a_gap(tmp_path):
    with writer(tmp_path) as ledger:
        fill(ledger, [2, 8])
    assert writer(tmp_path).resume(5) == 2
    assert stored_steps(tmp_path) == twice([2])
    assert writer(tmp_path).resume(0) == 2
    assert list(tmp_path.iterdir()) == []


def test_resume_with_fewer_processes_takes_care_of_all_files(tmp_path):
    for rank in range(4):
        with writer(tmp_path, rank=rank, num_processes=4) as ledger:
            fill(ledger, range(4))
    assert len(stored_steps(tmp_path)) == 4 * 4 * 2
    assert writer(tmp_path, rank=0, num_processes=2).resume(2) == 2 * 2 * 2
    assert writer(tmp_path, rank=1, num_processes=2).resume(2) == 2 * 2 * 2
    assert stored_steps(tmp_path) == sorted(twice([0, 1]) * 4)


def test_a_run_that_was_not_resumed_does_not_add_steps_twice(tmp_path):
    with writer(tmp_path) as ledger:
        fill(ledger, range(4))
    with pytest.raises(UserError, match=rf"{tmp_path} already holds steps up to 3.*--resume"):
        fill(writer(tmp_path), [0])
    fill(writer(tmp_path), [4])


def test_a_damaged_shard_does_not_stop_a_resume(tmp_path, caplog):
    ledger = writer(tmp_path)
    for steps in ([0, 1], [2, 3], [4, 5]):
        fill(ledger, steps)
        ledger.flush()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    writer(tmp_path).resume(3)
    left = sorted(path.name[:19] for path in tmp_path.iterdir())
    assert left == ["000000000-000000001", "000000002-000000003"]
    assert caplog.text.count("is damaged") == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import gal_d2.files.atomic_file as atomic_file
import gal_d2.selection.ledger_writer as ledger_writer
from test_ledger import fill, writer
root, _, moment = sys.argv[1:]
ledger = writer(root)
start = int(os.environ.get("START", "0"))
ledger.resume(start)
fill(ledger, range(start, start + 4)); ledger.flush()
fill(ledger, range(start + 4, start + 6))
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if moment == "writing": atomic_file.sync = die    # temporary file complete, not renamed
if moment == "renaming":  # in resume, content replaced: the second time
    rename, calls = os.rename, []
    ledger_writer.os.rename = lambda *a: die() if calls else calls.append(rename(*a))
if moment == "unflushed": die()
if moment == "renaming": ledger.flush(); writer(root).resume(start + 5)
ledger.flush()
"""


def run_and_kill(root: Path, moment: str, start: int = 0) -> None:
    here = os.fspath(Path(__file__).parent)
    package = os.fspath(Path(__file__).parents[2])
    environment = {**os.environ, "START": str(start), "PYTHONPATH": package}
    command = [sys.executable, "-W", "ignore", "-c", KILLED, os.fspath(root), here, moment]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("moment", ["unflushed", "writing"])
def test_a_killed_run_keeps_what_was_flushed(tmp_path, moment):
    run_and_kill(tmp_path, moment)
    assert stored_steps(tmp_path) == twice(range(4))
    with writer(tmp_path) as ledger:
        assert not list(tmp_path.glob(".*"))  # the half-written shard is gone
        ledger.resume(4)
        fill(ledger, range(4, 8))
    assert stored_steps(tmp_path) == twice(range(8))


def test_a_run_killed_while_it_resumes_can_be_resumed(tmp_path):
    run_and_kill(tmp_path, "renaming")
    assert stored_steps(tmp_path) == twice(range(5))  # its rename of the cut shard never happened
    assert writer(tmp_path).resume(5) == 0
    assert writer(tmp_path).resume(3) == 4
    assert stored_steps(tmp_path) == twice(range(3))


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    ledger = writer(tmp_path)
    fill(ledger, [0])

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_writer, "write_shard", no_space)
        with pytest.raises(UserError, match="No space left on device"):
            ledger.flush()
    ledger.flush()
    assert stored_steps(tmp_path) == [0, 0]


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "ledger").write_text("")
    with pytest.raises(UserError, match=r"ledger cannot be created"):
        writer(tmp_path / "ledger")


def test_bad_rows(tmp_path):
    ledger = writer(tmp_path)
    contribution, _ = rows([1, 2])
    _, decision = rows([1])
    with pytest.raises(ValueError, match="2 instances"):
        ledger.append(0, contribution, decision, image_ids=[1, 2])
    with pytest.raises(UserError, match="image_id has the value 'a'"):
        ledger.append(0, *rows([1]), image_ids=["a"])
    with pytest.raises(ValueError, match="3 category ids"):
        LedgerWriter(tmp_path, category_ids=CATEGORY_IDS, category_frequency=["r"])


@pytest.fixture
def example(tmp_path) -> Path:
    """Two processes, steps 0 to 3; the cut-out 1 is scored three times, 2 once and 3 never."""
    with writer(tmp_path, rank=0, num_processes=2) as ledger:
        ledger.append(0, *rows([1, 3], [0, 2], [0.2, NAN], [True, True]), image_ids=[1, 2])
        ledger.flush()
        ledger.append(2, *rows([1, 2], [0, 2], [0.4, -1.0], [True, False]), image_ids=[1, 2])
    with writer(tmp_path, rank=1, num_processes=2) as ledger:
        ledger.append(3, *rows([1, -1], [0, 1], [0.6, 0.0], [False, True]), image_ids=[1, 2])
    return tmp_path


def test_by_instance(example):
    table = Ledger(example).by_instance()
    assert table["pool_id"].to_pylist() == [1, 2, 3]  # not what is not from the pool
    first, _, third = table.to_pylist()
    expected = {
        "pool_id": 1,
        "gt_class": 0,
        "category_id": 10,
        "count": 3,
        "scored": 3,
        "accepted": 2,
        "undecided": 0,
        "acceptance_rate": 2 / 3,
        "score_mean": 0.4,
        "score_std": np.std([0.2, 0.4, 0.6]),
        "score_min": 0.2,
        "score_max": 0.6,
        "head_loss_box_mean": 0.25,
        "head_loss_mask_mean": 0.25,
        "head_score_box_mean": -0.6,
        "head_score_mask_mean": -0.6,
        "phi_mean": 0.8,
        "step_first": 0,
        "step_last": 3,
    }
    assert first == pytest.approx(expected, rel=1e-6)
    assert third["scored"] == 0 and third["count"] == 1
    assert third["score_mean"] is None and third["score_std"] is None


def test_by_category_and_frequency(example):
    ledger = Ledger(example)
    categories = ledger.by_category()
    assert categories["category_id"].to_pylist() == [10, 20, 30]
    assert categories["frequency"].to_pylist() == ["r", "c", "f"]
    assert categories["count"].to_pylist() == [3, 1, 2]
    groups = {row["frequency"]: row for row in ledger.by_frequency().to_pylist()}
    assert groups["f"]["acceptance_rate"] == 0.5 and groups["f"]["score_mean"] == -1.0


def test_by_time_and_a_range_of_steps(example):
    ledger = Ledger(example)
    times = ledger.by_time(step_bin=2)
    assert times["step_bin"].to_pylist() == [0, 2]
    assert times["count"].to_pylist() == [2, 4]
    (late,) = ledger.by_time(step_bin=10, first_step=1, last_step=2).to_pylist()
    assert late["count"] == 2 and late["step_first"] == late["step_last"] == 2
    both = ledger.aggregate(["frequency", "step_bin"], step_bin=2)
    assert both.select(["frequency", "step_bin"]).to_pylist() == [
        {"frequency": "c", "step_bin": 2},
        {"frequency": "f", "step_bin": 0},
        {"frequency": "f", "step_bin": 2},
        {"frequency": "r", "step_bin": 0},
        {"frequency": "r", "step_bin": 2},
    ]
    with pytest.raises(UserError, match="between the steps 50 and None"):
        ledger.by_time(first_step=50)


def test_merging_partial_aggregates_changes_nothing(example, monkeypatch):
    expected = Ledger(example).by_category()
    monkeypatch.setattr(ledger_module, "_MERGE_ROWS", 1)
    assert Ledger(example).by_category().equals(expected)


@pytest.mark.parametrize("seed", range(3))
def test_sums_by_cut_out_are_those_of_any_groups(tmp_path, seed):
    """Also where a cut-out was pasted as several classes, and where scores or heads are missing."""
    rng = np.random.default_rng(seed)
    with writer(tmp_path) as ledger:
        for step in range(40):
            pool_ids = rng.integers(-1, 30, size=25)
            classes = np.where(rng.random(25) < 0.1, rng.integers(3, size=25), pool_ids % 3)
            scores = np.where(rng.random(25) < 0.2, NAN, rng.normal(size=25))
            accepted = (rng.random(25) < 0.5).tolist()
            heads = ("mask",) if step < 8 else ("box", "mask")
            batch = rows(
                *(pool_ids.tolist(), classes.tolist(), scores.tolist(), accepted), heads=heads
            )
            ledger.append(step, *batch, image_ids=[1, 2])
            if rng.random() < 0.3:
                ledger.flush()
    ledger = Ledger(tmp_path)
    keys = ["pool_id", "gt_class", "category_id"]
    for rows_of in ({}, {"category_id": 20}, {"first_step": 3, "last_step": 20}):
        plain = ledger.aggregate(["gt_class", "pool_id", "category_id"], **rows_of)
        plain = plain.sort_by([(key, "ascending") for key in keys])
        by_id = ledger.aggregate(keys, **rows_of)
        assert by_id.schema.equals(plain.select(by_id.column_names).schema)
        assert by_id.num_rows > 10
        for name in by_id.column_names:
            assert by_id[name].null_count == plain[name].null_count
            np.testing.assert_allclose(
                by_id[name].to_numpy(), plain[name].to_numpy(), rtol=1e-12, atol=1e-12
            )
    alone = ledger.aggregate(["pool_id"])
    counts = ledger.aggregate(keys).group_by("pool_id", use_threads=False)
    counts = counts.aggregate([("count", "sum")]).sort_by("pool_id")
    assert alone["count"].to_pylist() == counts["count_sum"].to_pylist()


@pytest.mark.parametrize("bad", [[], ["colour"]])
def test_unknown_groups(example, bad):
    with pytest.raises(ValueError, match="name some of accept, area, category_id"):
        Ledger(example).aggregate(bad)


def test_bad_bin(example):
    with pytest.raises(ValueError, match="step_bin"):
        Ledger(example).by_time(0)


def test_a_damaged_shard_is_named_skipped_and_counted(example, caplog):
    truncated, changed, _ = sorted(example.iterdir())
    truncated.write_bytes(truncated.read_bytes()[:-20])
    ledger = Ledger(example)
    assert list(ledger.damaged) == [truncated] and truncated.name in caplog.text
    content = bytearray(changed.read_bytes())
    content[60:90] = bytes(30)  # inside a page; the footer stays readable
    changed.write_bytes(content)
    ledger = Ledger(example)
    (row,) = ledger.by_time().to_pylist()
    assert row["count"] == 2 and row["step_first"] == 3
    assert set(ledger.damaged) == {truncated, changed}
    assert changed.name in caplog.text


def test_an_empty_ledger_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/none is empty: give the ledger folder"):
        Ledger(tmp_path / "none")
    (tmp_path / "000000000-000000001-r0000-000000.parquet").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a shard")
    with pytest.raises(UserError, match=r"is empty \(1 damaged shards\)"):
        Ledger(tmp_path)


def test_further_columns(tmp_path):
    with writer(tmp_path) as ledger:
        more = {"placement": np.array([4, 6], np.int32)}
        ledger.append(0, *rows([1, 2]), image_ids=[100, 200], more=more)
        with pytest.raises(ValueError, match="columns of other lengths: {'placement': 3}"):
            ledger.append(1, *rows([1, 2]), [100, 200], more={"placement": np.arange(3)})
    (table,) = Ledger(tmp_path).tables(["placement"])
    assert table["placement"].to_pylist() == [4, 6]
    assert Ledger(tmp_path).by_instance()["count"].to_pylist() == [1, 1]
