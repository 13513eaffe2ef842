from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gal_d2.data.category_identity import names_state
from gal_d2.data.pool import CutOutSource, InstancePool, PoolWriter
from gal_d2.data.snapshots import Snapshots
from gal_d2.engine.snapshot_hook import CATEGORIES, SnapshotHook, evidence_source
from gal_d2.errors import UserError
from gal_d2.scoring.evidence import EvidenceStore


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
    hook.sources["trainer"] = lambda: {"step": np.array(hook.trainer.iter)}
    return hook


def test_taken_before_the_first_step_and_every_period(hook: SnapshotHook):
    run(hook, 0, 5)
    assert hook.snapshots.numbers() == [0, 1]
    assert hook.snapshots.at(0)["trainer.step"] == 0
    assert hook.snapshots.at(6)["trainer.step"] == 2  # after step 2, before step 3


def test_old_ones_go_when_no_checkpoint_needs_them(hook: SnapshotHook):
    run(hook, 0, 12)  # the checkpoint of step 12 is not written yet when snapshot 4 is taken
    assert hook.snapshots.numbers() == [1, 2, 3, 4]
    assert hook.snapshots.resume(6) == []


def test_a_resumed_run_takes_the_later_ones_again(hook: SnapshotHook):
    run(hook, 0, 8)
    again = SnapshotHook(hook.snapshots, {"other": lambda: {"x": np.array(5)}}, checkpoint_period=6)
    run(again, 4, 6)
    assert hook.snapshots.numbers() == [0, 1, 2]
    assert list(hook.snapshots.at(6)) == ["trainer.step"]
    assert list(hook.snapshots.at(9)) == ["other.x"]


def test_snapshots_keep_what_category_ids_mean(hook: SnapshotHook):
    hook.sources[CATEGORIES] = lambda: names_state({0: "cup", 1: "bun"})
    run(hook, 0, 8)
    run(hook, 7, 8)
    hook.sources[CATEGORIES] = lambda: names_state({1: "cup", 2: "bun"})
    with pytest.raises(UserError, match=r"the snapshots in .* id 0 is 'cup'.*start anew"):
        run(hook, 7, 8)


def test_snapshots_without_names_are_resumed_with_a_warning(hook: SnapshotHook, caplog):
    run(hook, 0, 8)
    hook.sources[CATEGORIES] = lambda: names_state({1: "cup", 2: "bun"})
    run(hook, 7, 8)
    assert "no category names" in caplog.text


def test_resuming_without_the_files_says_so(hook: SnapshotHook, caplog):
    with caplog.at_level(logging.WARNING, logger="gal_d2.engine.snapshot_hook"):
        run(hook, 7, 8)
    assert "lacks snapshots that the samples of steps from 7 on depend on" in caplog.text
    assert hook.snapshots.numbers() == [1, 2]
    assert hook.snapshots.at(7)["trainer.step"] == 7


def test_evidence_as_weights(tmp_path: Path):
    with PoolWriter(tmp_path) as writer:
        ids = [
            writer.add(c, np.full((2, 2, 4), 255, np.uint8), source=CutOutSource("test", seed=s))
            for c, s in ((3, 0), (3, 1), (8, 2), (8, 3))
        ]
    evidence = EvidenceStore(2)
    never, gone = ids[3], 5
    for step in range(40):
        evidence.update(
            torch.tensor([*ids[:3], gone]),
            torch.tensor([0, 0, 1, 1]),
            torch.tensor([1.0, -1.0, 0.5, 0.0]),
            torch.full((4,), 900.0),
            step,
        )
    arrays = evidence_source(evidence, InstancePool(tmp_path), {3: 0, 8: 1}, min_weight=0.2)()
    assert arrays["pool_ids"].tolist() == sorted(ids[:3])
    weight = dict(zip(arrays["pool_ids"].tolist(), arrays["weights"].tolist(), strict=True))
    assert weight[ids[0]] > 0.7 > 0.5 > weight[ids[1]] > 0.2
    assert never not in weight and gone not in weight


def test_no_evidence_yet(tmp_path: Path):
    with PoolWriter(tmp_path) as writer:
        writer.add(3, np.full((2, 2, 4), 255, np.uint8), source=CutOutSource("test"))
    arrays = evidence_source(EvidenceStore(1), InstancePool(tmp_path), {3: 0}, min_weight=0.2)()
    assert arrays["pool_ids"].shape == arrays["weights"].shape == (0,)
