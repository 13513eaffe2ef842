"""Rows and scalars of all processes, so that a decision does not depend on how many there are."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there is a process group, be it of this process alone."""
    return dist.is_available() and dist.is_initialized()


def collective_device() -> torch.device:
    """Where tensors have to be that are exchanged."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _to_bits(column: Tensor) -> Tensor:
    """A column as int64 without loss: floats by the bits of their float64."""
    column = column.detach()
    return column.double().view(torch.int64) if column.is_floating_point() else column.long()


def _from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits.view(torch.float64).to(dtype) if dtype.is_floating_point else bits.to(dtype)


def gather_columns(*columns: Tensor) -> tuple[Tensor, ...]:
    """Concatenate the rows of all processes in rank order, in one exchange.

    A collective call: every process makes it at the same point, one without rows too.

    Args:
        columns: tensors of shape (N,) with the same N; N may differ between processes, the number
            of columns and their dtypes may not. Floats travel as float64, the rest as int64.

    Returns:
        One CPU tensor per column, of shape (sum of N over the processes,) and the column's dtype.
    """
    if not is_distributed():
        return tuple(column.detach().cpu() for column in columns)
    device = collective_device()
    rows = torch.stack([_to_bits(column.to(device)) for column in columns], dim=1).contiguous()
    sizes = torch.empty(dist.get_world_size(), dtype=torch.int64, device=device)
    dist.all_gather_into_tensor(sizes, torch.tensor([len(rows)], device=device))
    sizes = sizes.tolist()

    padded = rows.new_zeros(max(sizes), rows.shape[1])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    table = torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)]).cpu()
    return tuple(
        _from_bits(table[:, i].contiguous(), column.dtype) for i, column in enumerate(columns)
    )


def all_processes(flag: bool) -> bool:
    """Whether a flag is set in every process; a collective call."""
    if not is_distributed():
        return flag
    all_set = torch.tensor(int(flag), device=collective_device())
    dist.all_reduce(all_set, dist.ReduceOp.MIN)
    return bool(all_set)


def mean_over_processes(value: float | Tensor) -> float:
    """Mean of one number over the processes that have it; NaN where none does.

    A collective call. A NaN or infinite value counts as "has none".
    """
    (values,) = gather_columns(torch.as_tensor(value, dtype=torch.float64).reshape(1))
    values = values[values.isfinite()]
    return float(values.mean()) if len(values) else math.nan
