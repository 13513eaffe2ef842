"""A training with a reviewer: verdicts reach what is drawn, and a resumed run draws the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_runs import ledger

from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import Verdict, VerdictFile
from gal_d2.selection.posterior_view import PosteriorView
from gal_d2.selection.snapshots import Snapshots


def options(output: Path, pool: Path, *more: str) -> list[str]:
    return [
        *("OUTPUT_DIR", str(output), "GAL.POOL.ROOT", str(pool), "GAL.AUDITION.IMAGES", "0.0"),
        *("GAL.POOL.CANDIDATES", "8", "GAL.POOL.BEST", "1", *more),
        *("GAL.SNAPSHOTS.PERIOD", "3", "GAL.SNAPSHOTS.LAG", "0", "DATALOADER.NUM_WORKERS", "0"),
    ]


def say(pool: InstancePool, pool_ids: list[int], word: str) -> None:
    VerdictFile(pool.root).add(
        Verdict.now(i, int(pool.category_of(np.array([i]))[0]), "", word, "ann") for i in pool_ids
    )


def test_what_is_judged_bad_is_not_pasted(
    train, lvis_root, candidates, tmp_path, monkeypatch, caplog
):
    pool_root = tmp_path / "pool"
    pool_root.mkdir()
    for shard in candidates.glob("*.arrow"):
        (pool_root / shard.name).hardlink_to(shard)
    pool = InstancePool(pool_root)
    first = [int(pool.ids(category)[0]) for category in pool.category_ids.tolist()]
    bad = [int(i) for c in pool.category_ids.tolist() for i in pool.ids(c)[1:5]]
    say(pool, first, "good")
    say(pool, bad[::2], "bad")

    whole = tmp_path / "whole"
    trainer = train(lvis_root, "lvis_gal", *options(whole, pool_root))
    rows = ledger(whole)
    drawn = set(rows["pool_id"].tolist())
    # Of eight candidates out of ten one is the best: what is judged good is drawn most.
    counts = {i: int((rows["pool_id"] == i).sum()) for i in drawn}
    assert not drawn & set(bad[::2]) and sum(counts[i] for i in first) > len(rows["step"]) / 3
    assert trainer.judge.posterior.judged[0].tolist() == sorted([*first, *bad[::2]])

    # Interrupted after step 8, with the checkpoint of step 6; then others are judged.
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr("gal_d2.engine.trainer.GALTrainer.after_step", stop_after(8), raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(lvis_root, "lvis_gal", *options(cut, pool_root))
    say(pool, bad[1::2], "bad")
    train(lvis_root, "lvis_gal", *options(cut, pool_root), resume=True)
    again = ledger(cut)
    seen = rows["step"] < 9  # until the snapshot of step 9, which was not taken before
    assert again["pool_id"][again["step"] < 9].tolist() == rows["pool_id"][seen].tolist()
    late = set(again["pool_id"][again["step"] >= 9].tolist())
    assert late and not late & set(bad)
    view = PosteriorView(Snapshots(cut / "snapshots", period=3, lag=0))
    view.follow(9)
    assert (view.moments(np.array(bad))[0] == -3).all()
    view.follow(8)
    assert not (view.moments(np.array(bad[1::2]))[0] == -3).any()


def stop_after(step: int):
    from detectron2.engine import TrainerBase

    def after_step(self) -> None:
        TrainerBase.after_step(self)
        if self.iter == step - 1:
            raise KeyboardInterrupt

    return after_step
