"""A training takes verdicts in at fixed steps, and a resumed one what it took in before."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from gal_d2.review.verdict_hook import VerdictHook
from gal_d2.selection.posterior import Posterior


class Person:
    """Judges one more cut-out each time that the hook looks."""

    def __init__(self, start: int = 0) -> None:
        self.number = start

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        self.number += 1
        return np.arange(self.number), np.where(np.arange(self.number) % 2, 1, -1).astype(np.int8)


def run(folder: Path, judged, start: int, stop: int, posterior: Posterior | None = None) -> list:
    """Step by step, how many cut-outs the posterior knows verdicts of."""
    posterior = Posterior(1) if posterior is None else posterior
    hook = VerdictHook(posterior, judged, period=3, output_dir=folder)
    hook.trainer = SimpleNamespace(start_iter=start, iter=start)
    hook.before_train()
    known = []
    for step in range(start, stop):
        known.append(len(posterior.judged[0]))
        hook.trainer.iter = step
        hook.after_step()
    return known


def test_verdicts_come_in_with_the_snapshots(tmp_path):
    posterior = Posterior(1)
    assert run(tmp_path, Person(), 0, 8, posterior) == [1, 1, 1, 2, 2, 2, 3, 3]
    ids, signs = posterior.judged
    assert ids.tolist() == [0, 1, 2] and signs.tolist() == [-1, 1, -1]


def test_a_killed_run_sees_again_what_it_saw(tmp_path):
    whole = run(tmp_path, Person(), 0, 12)
    posterior = Posterior(1)
    posterior.judged = Person(1)()  # as the checkpoint of step 4 has it
    # Meanwhile somebody has judged a hundred: they count from the step on that was not done yet.
    again = run(tmp_path, Person(100), 4, 18, posterior)
    assert again[: 12 - 4] == whole[4:] and again[8:] == [5, 5, 5, 101, 101, 101]
    lines = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["bad"]) for line in lines] == [1, 1, 2, 2, 3, 51, 51]


def test_a_new_run_begins_with_what_is_known_now(tmp_path):
    run(tmp_path, Person(), 0, 6)
    assert run(tmp_path, Person(9), 0, 2) == [10, 10]


def test_a_broken_line_of_its_own_record_is_left_out(tmp_path, caplog):
    run(tmp_path, Person(), 0, 5)
    path = tmp_path / "verdicts.jsonl"
    path.write_text(path.read_text() + "{broken}\n{")
    posterior = Posterior(1)
    assert run(tmp_path, Person(50), 2, 7, posterior) == [0, 2, 2, 2, 51]
    assert "is broken" in caplog.text
