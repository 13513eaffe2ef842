"""Samples see state as of fixed steps, whoever makes them and however early."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.samplers import TrainingSampler
from hypothesis import given
from hypothesis import strategies as st

from gal_d2.config import add_gal_config
from gal_d2.copy_paste.stream import TrainingLoader
from gal_d2.errors import UserError
from gal_d2.selection.snapshots import PREFETCH_FACTOR, Snapshots


def test_which_snapshot_a_step_sees(tmp_path: Path):
    snapshots = Snapshots(tmp_path, period=10, lag=2)
    numbers = [snapshots.number(step) for step in (0, 9, 29, 30, 39, 40, 107)]
    assert numbers == [0, 0, 0, 1, 1, 2, 8]
    assert Snapshots(tmp_path, period=1, lag=0).number(7) == 7


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 8))
def test_no_sample_is_made_before_its_snapshot(period: int, lag: int, workers: int):
    """With the rule that from_config enforces; the loader is as torch's: it fills up at the start,
    and orders one batch more each time that one is taken."""
    ahead = workers * PREFETCH_FACTOR
    if lag * period < ahead:
        return
    snapshots = Snapshots("nowhere", period=period, lag=lag)
    for step in range(100):
        # While step `step` runs, this is the furthest batch that may be in the making, and these
        # snapshots have been taken: the one before step k * period when that step begins.
        assert snapshots.number(step + ahead) <= step // period


def test_written_read_and_pickled(tmp_path: Path):
    snapshots = Snapshots(tmp_path / "new", period=5)
    assert snapshots.at(3) == {}  # outside of a training there is none
    snapshots.write(0, {"a.ids": np.array([3, 1]), "b.names": np.array(["x", "yz"])})
    snapshots.write(1, {"a.ids": np.array([9])})
    copied = pickle.loads(pickle.dumps(snapshots))
    for reader in (Snapshots(tmp_path / "new", period=5), copied):
        assert reader.at(9)["a.ids"].tolist() == [3, 1]
        assert reader.at(0)["b.names"].tolist() == ["x", "yz"]
        assert reader.at(10)["a.ids"].tolist() == [9]
        assert reader.at(4)["a.ids"].tolist() == [3, 1]
    assert [path.name for path in sorted(snapshots.folder.iterdir())] == [
        "000000000.npz",
        "000000001.npz",
    ]


def test_a_missing_or_damaged_snapshot_is_named(tmp_path: Path):
    snapshots = Snapshots(tmp_path, period=5)
    with pytest.raises(UserError, match=r"000000002.npz.*steps from 10 on.*OUTPUT_DIR"):
        snapshots.at(16)
    snapshots.path(2).write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"000000002.npz"):
        snapshots.at(16)


def test_resuming_takes_back_what_will_be_made_again(tmp_path: Path):
    snapshots = Snapshots(tmp_path, period=5)
    for number in range(5):
        snapshots.write(number, {})
    assert snapshots.resume(12) == [] and snapshots.numbers() == [0, 1, 2]
    assert snapshots.resume(10) == [] and snapshots.numbers() == [0, 1, 2]
    snapshots.path(1).unlink()
    assert snapshots.resume(10) == [1, 2]  # steps 10 to 14 see it, and what follows may need it
    assert snapshots.resume(0) == [0] and snapshots.numbers() == []  # a new run


def test_pruning_keeps_what_is_needed_now_and_to_resume(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gal_d2.selection.snapshots.KEYFRAME", 1)
    snapshots = Snapshots(tmp_path, period=5, lag=2)
    for number in range(10):
        snapshots.write(number, {})
    snapshots.prune(17, 45)  # the steps after 17 see 1, those from 20 on 2, from 25 on 3
    assert snapshots.numbers() == [1, 2, 3, 7, 8, 9]
    assert snapshots.resume(17) == [] and snapshots.numbers() == [1, 2, 3]


def make_config(**options):
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.DATALOADER.NUM_WORKERS = 8
    for key, value in options.items():
        cfg.GAL.SNAPSHOTS[key] = value
    return cfg


def test_lag_has_to_cover_what_the_workers_make_ahead():
    Snapshots.from_config(make_config(PERIOD=16))
    with pytest.raises(UserError, match=r"LAG x PERIOD is 15 steps.*NUM_WORKERS 8.*16 steps"):
        Snapshots.from_config(make_config(PERIOD=15))
    with pytest.raises(UserError, match="PERIOD is 0: set it to at least 1"):
        Snapshots.from_config(make_config(PERIOD=0))


class StepMapper:
    """What a sample sees of the state, which here is the number of the step it was taken at."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots

    def __call__(self, dataset_dict: dict) -> dict:
        step = dataset_dict["sample_step"]
        return {"step": step, "seen": int(self.snapshots.at(step)["state.step"])}


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_training_with_workers_sees_the_same_state(tmp_path: Path, num_workers: int):
    period, start = 6, 3
    snapshots = Snapshots(tmp_path, period=period)
    loader = TrainingLoader(
        [{"file_name": str(k)} for k in range(5)],
        StepMapper(snapshots),
        lambda seed: TrainingSampler(5, seed=seed),
        seed=0,
        batch_size=2,
        num_workers=num_workers,
    )
    loader.start_batch = start
    snapshots.write(0, {"state.step": np.array(0)})
    for step, batch in enumerate(itertools.islice(iter(loader), 20), start):
        assert [sample["step"] for sample in batch] == [step, step]
        assert [sample["seen"] for sample in batch] == [max(0, step // period - 1) * period] * 2
        if (step + 1) % period == 0:
            snapshots.write((step + 1) // period, {"state.step": np.array(step + 1)})
