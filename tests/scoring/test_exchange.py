"""What a process sends arrives at all, also where lengths grow from step to step."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gal_d2.scoring.exchange import PackedExchange, as_floats, as_integers, send_together

LENGTHS = [((2, 3), (0, 0)), ((1, 1), (2, 2)), ((0, 50), (7, 1)), ((3, 4), (3, 4))]


def _vectors(step, rank):
    small, large = LENGTHS[step][rank]
    number = 100.0 * step + 10 * rank
    return torch.full((small,), number + 1), torch.full((large,), number + 2)


def _process(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    exchange, collectives = PackedExchange(), []
    gather = dist.all_gather_into_tensor

    def counted(*arguments):
        collectives.append(1)
        return gather(*arguments)

    dist.all_gather_into_tensor = counted
    found = []
    for step in range(len(LENGTHS)):
        small, large = _vectors(step, rank)
        known = as_floats(torch.tensor([-step, 1 << 40]))
        begun = exchange.start(known, [small[:1], small[1:]], [large[:1], large[1:]])
        found.append((*begun.get(), len(collectives)))
        collectives.clear()
    torch.save(found, f"{folder}/found{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"found{rank}.pth") for rank in range(2)]


def test_all_have_the_rows_of_all(found):
    for of_process in found:
        for step, (small, large, _) in enumerate(of_process):
            for rank in range(2):
                own = _vectors(step, rank)
                assert as_integers(small[rank][:4]).tolist() == [-step, 1 << 40]
                assert torch.equal(small[rank][4:], own[0]) and torch.equal(large[rank], own[1])


def test_one_collective_where_there_is_room(found):
    # The first step finds out how much is sent; the third sends more than any before.
    assert [[step[-1] for step in of_process] for of_process in found] == [[2, 1, 2, 1]] * 2


def test_one_process_keeps_its_rows():
    large = [torch.ones(2, 3)]
    small, found = PackedExchange().start(torch.ones(2), [torch.zeros(1, 2)], large).get()
    assert [part.tolist() for part in small] == [[1.0, 1.0, 0.0, 0.0]]
    assert found[0][0] is large[0]


def test_tensors_are_sent_as_they_are():
    tensors = [torch.arange(3), torch.zeros(0, dtype=torch.int64), torch.arange(4).view(2, 2)]
    for there, here in zip(send_together(tensors, torch.device("cpu")), tensors, strict=True):
        assert torch.equal(there, here)
