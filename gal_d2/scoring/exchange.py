"""What the processes tell each other in a step, in one exchange, and what the host reads of it.

The host says early what it will want to know, and waits late: :class:`HostCopy` and
:class:`PackedExchange` begin something that is done while the device computes other things.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gal_d2.distributed import collective_device, is_distributed


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device is doing."""
    return tensor.to(device, non_blocking=True)


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host, all of one type, on a device: one copy."""
    if device.type == "cpu":
        return list(tensors)
    flat = send(torch.cat([tensor.flatten() for tensor in tensors]), device)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def as_floats(integers: Tensor) -> Tensor:
    """(N,) int64 as (2N,) float32 of the same bits, to travel with floats. On the CPU."""
    return integers.contiguous().view(torch.float32)


def as_integers(floats: Tensor) -> Tensor:
    """What :func:`as_floats` made, as int64 again."""
    return floats.clone().view(torch.int64)


class HostCopy:
    """A copy of a tensor on the host; :meth:`get` waits until it is there."""

    def __init__(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        self._done: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
        else:
            self._copy = tensor.to("cpu", non_blocking=True)

    def get(self) -> Tensor:
        if self._done is not None:
            self._done.synchronize()
        return self._copy


class PackedExchange:
    """Exchanges float32 vectors whose lengths differ between processes, usually in one collective.

    No process knows the others' lengths, so all send as much as was ever needed. Where a vector is
    longer than that, all see it, and send once more.
    """

    def __init__(self) -> None:
        self._room = (0, 0)

    def start(self, known: Tensor, small: Sequence[Tensor], large: Sequence[Tensor]) -> Exchange:
        """Begin; a collective call.

        Args:
            known: (n,) float32 on the host.
            small: float32 on the device, which the host wants to know.
            large: float32 on the device, which it does not.
        """
        return Exchange(self, known, torch.cat([part.flatten() for part in small]), large)

    def gather(self, vectors: Sequence[Tensor]) -> Tensor:
        """(processes, 4 + room) of two vectors each: their lengths' bits, then what has room."""
        room, device = self._room, collective_device()
        own = torch.zeros(4 + sum(room), device=device)
        lengths = torch.tensor([len(vector) for vector in vectors])
        own[:4] = send(as_floats(lengths), device)
        start = 4
        for vector, length in zip(vectors, room, strict=True):
            if len(vector) <= length:
                own[start : start + len(vector)] = vector.to(device)
            start += length
        gathered = own.new_empty(dist.get_world_size(), len(own))
        dist.all_gather_into_tensor(gathered.view(-1), own)
        return gathered

    def make_room(self, lengths: Tensor) -> bool:
        """Whether the longest of (processes, 2) lengths have room now that had none before."""
        longest = lengths.max(0).values.tolist()
        before = self._room
        # Doubled, so that a process that needs ever more does not exchange twice at every step.
        self._room = tuple(
            room if need <= room else max(need, 2 * room)
            for need, room in zip(longest, before, strict=True)
        )
        return self._room != before


class Exchange:
    """An exchange that has begun."""

    def __init__(
        self, owner: PackedExchange, known: Tensor, small: Tensor, large: Sequence[Tensor]
    ) -> None:
        self._owner, self._large, self._device = owner, large, small.device
        self._is_distributed = is_distributed()
        if self._is_distributed:
            device = collective_device()
            flat = [part.flatten().to(device) for part in large] or [torch.zeros(0, device=device)]
            self._vectors = torch.cat([send(known, device), small.to(device)]), torch.cat(flat)
            self._gather()
        else:
            self._known, self._small = known, HostCopy(small)

    def _gather(self) -> None:
        self._gathered = self._owner.gather(self._vectors)
        self._host = HostCopy(self._gathered[:, : 4 + self._owner._room[0]])

    def get(self) -> tuple[list[Tensor], list[Tensor | Sequence[Tensor]]]:
        """Wait; a collective call.

        Returns:
            By process, ``known`` and ``small`` in one vector on the host, and ``large`` in one on
            the device; of this process alone, where there is no other, ``large`` as it came.
        """
        if not self._is_distributed:
            return [torch.cat([self._known, self._small.get()])], [self._large]
        host = self._host.get()
        lengths = as_integers(host[:, :4].flatten()).view(-1, 2)
        if self._owner.make_room(lengths):
            self._gather()
            host = self._host.get()
        start = 4 + self._owner._room[0]
        small = [row[4 : 4 + n] for row, n in zip(host, lengths[:, 0].tolist(), strict=True)]
        large = [
            row[start : start + n].to(self._device)
            for row, n in zip(self._gathered, lengths[:, 1].tolist(), strict=True)
        ]
        return small, large
