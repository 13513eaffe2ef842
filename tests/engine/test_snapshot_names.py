"""Snapshots keep what category ids mean."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gal_d2.datasets.category_identity import names_in_state
from gal_d2.engine.snapshot_hook import CATEGORIES, SnapshotHook, categories_source
from gal_d2.errors import UserError
from gal_d2.selection.snapshots import Snapshots


def run(folder: Path, names: dict[int, str] | None, start: int, stop: int) -> SnapshotHook:
    sources = {} if names is None else {CATEGORIES: categories_source(names)}
    hook = SnapshotHook(Snapshots(folder, period=3), sources, checkpoint_period=6)
    hook.trainer = SimpleNamespace(start_iter=start, iter=start)
    hook.before_train()
    for step in range(start, stop):
        hook.trainer.iter = step
        hook.after_step()
    return hook


def test_names_are_in_every_snapshot_and_are_compared(tmp_path: Path):
    names = {0: "cup", 1: "bun"}
    hook = run(tmp_path, names, 0, 8)
    for number in hook.snapshots.numbers():
        assert names_in_state(hook.snapshots.read(number), CATEGORIES) == names
    run(tmp_path, names, 7, 8)
    with pytest.raises(UserError, match=r"the snapshots in .* id 0 is 'cup'.*start anew"):
        run(tmp_path, {1: "cup", 2: "bun"}, 7, 8)


def test_snapshots_without_names_are_resumed_with_a_warning(tmp_path: Path, caplog):
    run(tmp_path, None, 0, 8)
    run(tmp_path, {1: "cup"}, 7, 8)
    assert "no category names" in caplog.text
