from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gal_d2.datasets.category_identity import names_state
from gal_d2.engine.snapshot_hook import CATEGORIES, SnapshotHook
from gal_d2.errors import UserError
from gal_d2.selection.snapshots import Snapshots


def run(hook: SnapshotHook, start: int, stop: int) -> None:
    hook.trainer = SimpleNamespace(start_iter=start, iter=start)
    hook.before_train()
    for step in range(start, stop):
        hook.trainer.iter = step
        hook.after_step()


@pytest.fixture
def hook(tmp_path: Path) -> SnapshotHook:
    snapshots = Snapshots(tmp_path, period=3)
    hook = SnapshotHook(snapshots, {}, checkpoint_period=6)
    hook.sources["trainer"] = lambda number: {
        "step": np.array(hook.trainer.iter),
        "number": np.array(number),
    }
    return hook


def test_taken_before_the_first_step_and_every_period(hook: SnapshotHook):
    run(hook, 0, 5)
    assert hook.snapshots.numbers() == [0, 1]
    assert hook.snapshots.at(0)["trainer.step"] == 0
    assert hook.snapshots.at(6)["trainer.step"] == 2  # after step 2, before step 3
    assert [hook.snapshots.at(step)["trainer.number"] for step in (0, 6)] == [0, 1]


@pytest.mark.parametrize(
    # Snapshots 3 to 6 are read from step 12 on, the first of them from the last whole one on.
    ("keyframe", "kept"),
    [(1, [3, 4, 5, 6]), (2, [2, 3, 4, 5, 6]), (16, [0, 1, 2, 3, 4, 5, 6])],
)
def test_old_ones_go_when_no_checkpoint_needs_them(
    hook: SnapshotHook, keyframe: int, kept: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gal_d2.selection.snapshots.KEYFRAME", keyframe)
    run(hook, 0, 18)  # the checkpoint of step 18 is not written yet when snapshot 6 is taken
    assert hook.snapshots.numbers() == kept
    assert hook.snapshots.resume(12) == []


def test_a_resumed_run_takes_the_later_ones_again(hook: SnapshotHook):
    run(hook, 0, 8)
    again = SnapshotHook(
        hook.snapshots, {"other": lambda number: {"x": np.array(5)}}, checkpoint_period=6
    )
    run(again, 4, 6)
    assert hook.snapshots.numbers() == [0, 1, 2]
    assert list(hook.snapshots.at(6)) == ["trainer.step", "trainer.number"]
    assert list(hook.snapshots.at(9)) == ["other.x"]


def test_snapshots_keep_what_category_ids_mean(hook: SnapshotHook):
    hook.sources[CATEGORIES] = lambda number: names_state({0: "cup", 1: "bun"})
    run(hook, 0, 8)
    run(hook, 7, 8)
    hook.sources[CATEGORIES] = lambda number: names_state({1: "cup", 2: "bun"})
    with pytest.raises(UserError, match=r"the snapshots in .* id 0 is 'cup'.*start anew"):
        run(hook, 7, 8)


def test_snapshots_without_names_are_resumed_with_a_warning(hook: SnapshotHook, caplog):
    run(hook, 0, 8)
    hook.sources[CATEGORIES] = lambda number: names_state({1: "cup", 2: "bun"})
    run(hook, 7, 8)
    assert "no category names" in caplog.text


def test_resuming_without_the_files_says_so(hook: SnapshotHook, caplog):
    with caplog.at_level(logging.WARNING, logger="gal_d2.engine.snapshot_hook"):
        run(hook, 7, 8)
    assert "lacks snapshots that the samples of steps from 7 on depend on" in caplog.text
    assert hook.snapshots.numbers() == [0, 1, 2]  # and what 1 may only say the changes since
    assert hook.snapshots.at(7)["trainer.step"] == 7
