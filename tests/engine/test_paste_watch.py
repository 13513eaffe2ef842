"""A training all of whose pastes vanish is stopped in its first steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Instances

from gal_d2.engine.paste_watch import PasteWatch
from gal_d2.errors import UserError


def sample(drawn: int, pasted: int, real: int = 2, **more: int) -> dict:
    instances = Instances((4, 4))
    instances.pool_id = torch.tensor([-1] * real + list(range(pasted)))
    return {"instances": instances, "num_drawn": drawn, "num_pasted": pasted + real, **more}


def run(batches: list[list[dict]], max_iter: int = 1000, start: int = 0) -> PasteWatch:
    watch = PasteWatch("the/pool")
    for step, batch in enumerate(batches, start):
        watch.trainer = SimpleNamespace(last_batch=batch, iter=step, max_iter=max_iter)
        watch.after_step()
    return watch


def test_nothing_pasted_is_one_sentence_with_its_numbers() -> None:
    batch = [sample(4, 0, num_unusable=3, num_corrupt=1)]
    assert run([batch] * 4)
    with pytest.raises(UserError, match="nothing is pasted: 20 cut-outs .*the/pool in 5 steps, 15"):
        run([batch] * 5)


def test_the_last_step_counts_as_well() -> None:
    with pytest.raises(UserError, match="in 3 steps"):
        run([[sample(4, 0)]] * 3, max_iter=3)


def test_one_paste_is_enough() -> None:
    run([[sample(4, 0), sample(4, 1)]] + [[sample(4, 0)]] * 120)


def test_real_objects_that_are_pasted_are_none_of_the_pool() -> None:
    with pytest.raises(UserError):
        run([[sample(4, 0, real=9)]] * 5)


def test_a_pool_that_is_yet_to_be_filled_draws_nothing() -> None:
    run([[sample(0, 0)]] * 120)


def test_a_resumed_run_counts_its_own_steps() -> None:
    with pytest.raises(UserError, match="in 5 steps"):
        run([[sample(4, 0)]] * 5, start=500)
