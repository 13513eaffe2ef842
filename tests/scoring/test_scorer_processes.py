"""Two gloo processes with different batches hold the same cache, and resume bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

STEPS = 4


def _batch(tiny_module, rank, step):
    rows = [
        (image, [4 + 3 * step + 5 * image, 6 + rank, 34 + 2 * rank, 40], (image + step) % 3, 0, -1)
        for image in range(2)
    ]
    rows += [(0, [10, 10, 40 + step, 50], 1, 1, 100 + rank), (1, [5, 5, 40, 30], 0, 1, 7)]
    if rank == 1 and step == 1:
        rows = []  # a process without instances
    targets = tiny_module.make_targets(rows)
    return tiny_module.random_features(seed=10 * rank + step), targets


def _train(scorer, tiny_module, rank, steps):
    for step in steps:
        scorer.step(*_batch(tiny_module, rank, step))


def _process(rank, folder, tests):
    torch.set_num_threads(1)
    sys.path.insert(0, tests)
    import roi_heads_fixtures as tiny_module

    from gal_d2.scoring.scorer import ContributionScorer

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )

    def build():
        return ContributionScorer(
            tiny_module.tiny_roi_heads(), partner_every=1, reference_min=1, shrinkage=1.0
        )

    scorer = build()
    _train(scorer, tiny_module, rank, range(STEPS // 2))
    if rank == 0:  # as detectron2 does: one process writes the checkpoint, all read it
        torch.save(scorer.state_dict(), f"{folder}/half.pth")
    dist.barrier()
    resumed = build()
    assert resumed.load_state_dict(torch.load(f"{folder}/half.pth"))
    for s, name in ((scorer, "straight"), (resumed, "resumed")):
        _train(s, tiny_module, rank, range(STEPS // 2, STEPS))
        torch.save(s.state_dict(), f"{folder}/{name}{rank}.pth")
    dist.destroy_process_group()


def _flat(state, prefix=""):
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            yield prefix + key, value
        elif isinstance(value, dict) and key != "signature":
            yield from _flat(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_process, (str(folder), str(Path(__file__).parents[1])), nprocs=2)
    return {
        name: dict(_flat(torch.load(folder / f"{name}.pth")))
        for name in ("straight0", "straight1", "resumed0", "resumed1")
    }


@pytest.mark.parametrize("name", ["straight1", "resumed0", "resumed1"])
def test_all_hold_the_same_state_bit_for_bit(states, name):
    assert states[name].keys() == states["straight0"].keys()
    for key, tensor in states["straight0"].items():
        same = torch.equal(tensor, states[name][key])
        assert same or torch.equal(tensor.nan_to_num(), states[name][key].nan_to_num()), key


def test_rows_of_both_processes_are_in_it(states):
    count = states["straight0"]["cache.real_count.box"]
    # Two real instances per step and process, but for the step that one has none in.
    assert count.sum() == 2 * STEPS * 2 - 2
    assert states["straight0"]["cache.negative_count.box"].sum() > 0
