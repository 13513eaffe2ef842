"""Replaying ledgers: what a posterior is given, and when it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import replay
import torch
from scored import scored

from gal_d2.errors import UserError
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.posterior import AUDITION, TRAINING
from gal_d2.setup.configuration import load_config

STEPS = 12
GOOD = np.array([True, False, True, False])
IDS = np.array([1, 2, 3, 4])


def write(folder: Path, score_of: dict[int, float], every: int = 1) -> None:
    with LedgerWriter(folder, category_ids=[7], category_frequency=["r"]) as ledger:
        for step in range(0, STEPS, every):
            scores = torch.tensor([score_of[i] for i in IDS.tolist()]) + 0.01 * step
            heads = {"box": scores, "mask": torch.full((4,), torch.nan)}
            losses = {"box": torch.ones(4), "mask": torch.ones(4)}
            rows = scored(IDS, scores, head_score=heads, head_loss=losses)
            ledger.append(step, rows, Decision.uniform(torch.ones(4).bool(), "always"), [9])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Training says the contrary of what is so; auditions, every third step, are right."""
    write(tmp_path / "ledger", {1: 0.0, 2: 1.0, 3: 0.1, 4: 0.9})
    write(tmp_path / "auditions", {1: 0.9, 2: 0.1, 3: 1.0, 4: 0.0}, every=3)
    return tmp_path


def test_scores_come_in_the_order_of_the_training(run: Path) -> None:
    scores = replay.read_scores(run, ["box", "mask"])
    assert scores.num_steps == STEPS
    updates = [(step, source) for step, source, _ in scores.updates()]
    expected = [
        (step, source)
        for step in range(STEPS)
        for source in ((TRAINING, AUDITION) if step % 3 == 0 else (TRAINING,))
    ]
    assert updates == expected
    assert sum(rows.stop - rows.start for *_, rows in scores.updates()) == 4 * len(expected)


@pytest.mark.parametrize(
    ("variant", "found"),
    [
        (replay.Variant("", (("box_score", 1.0),), sources=(AUDITION,)), 1.0),
        (replay.Variant("", (("box_score", 1.0),), sources=(TRAINING,)), 0.0),
        (replay.Variant("", (("box_score", 1.0),), share=0.0), 0.0),
        (replay.Variant("", (("box_score", 1.0),), period=STEPS), 1.0),
    ],
)
def test_what_it_is_given_is_what_it_knows(
    run: Path, repository: Path, variant: replay.Variant, found: float
) -> None:
    scores = replay.read_scores(run, ["box", "mask"])
    cfg = load_config(str(repository / "configs/miniature_gal.yaml"), [])
    values = replay.replay(scores, variant, cfg, IDS)
    assert values.shape == (3, 4)
    assert replay.mean_auc(values[-1], np.zeros(4, int), GOOD) == found


def test_it_is_asked_at_thirds(run: Path, repository: Path) -> None:
    scores = replay.read_scores(run, ["box", "mask"])
    cfg = load_config(str(repository / "configs/miniature_gal.yaml"), [])
    values = replay.replay(scores, replay.VARIANTS[0], cfg, np.array([1, 5]))
    assert len(np.unique(values[:, 0])) == 3 and (values[:, 1] == 0).all()


def test_a_run_without_auditions_is_named(run: Path) -> None:
    (run / "auditions").rename(run / "other")
    with pytest.raises(UserError, match="auditions does not exist: give the OUTPUT_DIR"):
        replay.read_scores(run, ["box"])
