"""benchmarks/launches.py: it sees what a device would, and the judge stays within its budget."""

from __future__ import annotations

import dataclasses

import launches
import pytest
import torch
from launches import DEVICE, DeviceCounter, OnDevice, count_step, pretending

# At commit 6619933 it were 790, and the host waited 198 times.
MAX_LAUNCHES = 115
MAX_WAITS = 1


@pytest.mark.parametrize("options", [(), ("GAL.ACCEPT.POLICY", "quantile")], ids=["always", "asks"])
def test_a_step_asks_for_little_and_waits_once(options):
    counter = count_step(dataclasses.replace(launches.SETTINGS[0], options=options))
    assert 50 < counter.launches.total() <= MAX_LAUNCHES
    assert counter.waits.total() <= MAX_WAITS, counter.waits


@pytest.mark.parametrize(
    ("function", "num_launches", "num_waits"),
    [
        (lambda x: x + 1, 1, 0),
        (lambda x: x.view(2, 2).T[0], 0, 0),
        (lambda x: x.cpu() + 1, 1, 1),
        (lambda x: x.to("cpu", non_blocking=True), 1, 1),
        (lambda x: torch.ones(2).to(x.device), 1, 1),
        (lambda x: torch.ones(2).to(x.device, non_blocking=True), 1, 0),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1, 1),
        (lambda x: torch.zeros(3, device=x.device), 1, 0),
        (lambda x: x.sum().item(), 2, 1),
        (lambda x: bool((x > 0).any()), 3, 1),
        (lambda x: x.tolist(), 1, 1),
        (lambda x: x[x > 1], 2, 1),
        (lambda x: x.masked_fill(x > 1, 0.0), 2, 0),
        (lambda x: x[torch.tensor([0, 2])], 1, 1),
        (lambda x: x.nonzero(), 1, 1),
        (lambda x: torch.unique(x), 1, 1),
        (lambda x: torch.equal(x, x), 1, 1),
    ],
)
def test_what_counts(function, num_launches, num_waits):
    counter = DeviceCounter()
    with pretending(), counter:
        function(OnDevice(torch.arange(4.0)))
    assert (counter.launches.total(), counter.waits.total()) == (num_launches, num_waits)


def test_values_and_gradients_are_those_of_the_cpu():
    x = OnDevice(torch.tensor([1.0, 2.0])).requires_grad_()
    with DeviceCounter():
        y = x * x
        y += 1  # in place
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.device == DEVICE and y.tolist() == [2.0, 5.0]
    assert gradient.tolist() == [2.0, 4.0]


def test_a_mixture_of_host_and_device_is_an_error():
    with DeviceCounter(), pytest.raises(RuntimeError, match="one of the host"):
        OnDevice(torch.ones(2)) + torch.ones(2)
