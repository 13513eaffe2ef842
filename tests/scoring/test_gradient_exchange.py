from __future__ import annotations

import torch

from gal_d2.scoring.gradient_exchange import gather_rows, sum_by_key


def test_rows_of_a_key_add_up():
    keys, sums = sum_by_key(
        torch.tensor([7, 3, 7]), torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    )
    assert keys.tolist() == [3, 7]
    assert sums.tolist() == [[2.0, 20.0], [4.0, 40.0]]
    keys, sums = sum_by_key(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    assert keys.shape == (0,) and sums.shape == (0, 2)


def test_autocast_does_not_round_the_sums():
    values = torch.tensor([[1.001], [2.002]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, sums = sum_by_key(torch.tensor([0, 0]), values)
    torch.testing.assert_close(sums, torch.tensor([[3.003]]))


def test_one_process_keeps_its_rows():
    block = torch.ones(2, 3)
    assert gather_rows(block)[0] is block
