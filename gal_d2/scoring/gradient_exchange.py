"""Sums of gradients of all processes, alike on each of them to the last bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from gal_d2.scoring.gathering import collective_device, is_distributed


def sum_by_key(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Sum rows with the same key, in an order that does not vary from run to run.

    Args:
        keys: (R,) integers.
        values: (R, W) float32, finite.

    Returns:
        (U,) the keys in ascending order, (U, W) float32 the sums.
    """
    unique, inverse = torch.unique(keys, return_inverse=True)
    # A product with a 0/1 matrix: index_add on a GPU adds in whatever order its threads arrive.
    membership = inverse[None] == torch.arange(len(unique), device=keys.device)[:, None]
    with torch.autocast(values.device.type, enabled=False):
        return unique, membership.to(values.dtype) @ values


def gather_rows(*blocks: Tensor) -> tuple[Tensor, ...]:
    """Concatenate the rows of all processes in rank order, in two exchanges.

    A collective call: every process makes it at the same point, one without rows too.

    Args:
        blocks: (R_i, W_i) float32. Numbers of rows may differ between processes; the number of
            blocks and their widths may not.

    Returns:
        One tensor per block on its device, (sum of R_i over the processes, W_i).
    """
    if not is_distributed():
        return blocks
    device = collective_device()
    counts = torch.tensor([len(block) for block in blocks], device=device)
    all_counts = [torch.empty_like(counts) for _ in range(dist.get_world_size())]
    dist.all_gather(all_counts, counts)
    all_counts = torch.stack(all_counts).tolist()

    widths = [block.shape[1] for block in blocks]
    sizes = [_lengths(row, widths) for row in all_counts]
    flat = torch.zeros(max(1, *(sum(size) for size in sizes)), device=device)
    own = torch.cat([block.detach().to(device, torch.float32).flatten() for block in blocks])
    flat[: len(own)] = own
    gathered = [torch.empty_like(flat) for _ in sizes]
    dist.all_gather(gathered, flat)

    parts = [buffer[: sum(size)].split(size) for buffer, size in zip(gathered, sizes, strict=True)]
    return tuple(
        torch.cat([part[i].reshape(-1, width) for part in parts]).to(block.device)
        for i, (block, width) in enumerate(zip(blocks, widths, strict=True))
    )


def _lengths(counts: Sequence[int], widths: Sequence[int]) -> list[int]:
    return [count * width for count, width in zip(counts, widths, strict=True)]
