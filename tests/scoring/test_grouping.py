from __future__ import annotations

import torch

from gal_d2.scoring.gradients.grouping import membership


def test_rows_of_a_key_add_up():
    keys, members = membership(torch.tensor([7, 3, 7]))
    assert keys.tolist() == [3, 7]
    sums = members @ torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert sums.tolist() == [[2.0, 20.0], [4.0, 40.0]]


def test_only_rows_that_count():
    keys, members = membership(torch.tensor([7, 3, 7]), torch.tensor([False, False, True]))
    assert keys.tolist() == [7] and members.tolist() == [[0.0, 0.0, 1.0]]
    keys, members = membership(torch.zeros(0, dtype=torch.int64))
    assert keys.shape == (0,) and members.shape == (0, 0)
