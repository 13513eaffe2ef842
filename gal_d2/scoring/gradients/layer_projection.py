"""One layer's per-instance gradient, through two small random matrices or in full.

The gradient of a weight is a matrix, ``G = sum_p r_p c_p^T`` over positions p: for a linear layer
or a convolution, r is the gradient B at the output (its channels) and c the input A (channels x
kernel, unfolded); for a transposed convolution the two swap. In memory order, G is the weight's
own layout, (rows, columns) = (first dimension, all others), with groups too.

What is kept is ``P_r G P_c^T``. It never builds G or the unfolded A: ``P_c`` applied to all patches
is a convolution with few output channels. Entries of P are +-1/sqrt(k), so that inner products are
preserved in expectation (Johnson-Lindenstrauss; the idea is that of TRAK, arXiv 2303.14186, and of
LoGra, arXiv 2405.13954).
"""

from __future__ import annotations

import hashlib
import math
import zlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as nn_grad

from gal_d2.scoring.gradients.layer_capture import CONV_TRANSPOSE, LINEAR, LayerCall, kind_of


def random_matrix(size: int, k: int, seed: int, name: str) -> Tensor:
    """(min(k, size), size) float32: +-1/sqrt(k) at random, or the identity where size <= k.

    Depends on the arguments alone: processes and resumed runs agree.
    """
    if size <= k:
        return torch.eye(size)
    digest = hashlib.sha256(f"{seed}:{name}:{k}x{size}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    signs = torch.randint(0, 2, (k, size), generator=generator, dtype=torch.float32)
    return (2 * signs - 1) / math.sqrt(k)


class LayerProjection:
    """Turns A and B of a layer into one vector per row (a row of the batch is one ROI).

    Args:
        name: of the layer; part of what seeds its matrices.
        layer: a linear layer, convolution or transposed convolution.
        k: rows of each random matrix; None keeps the full gradient (slow and large: a reference).
        seed: of the matrices.
    """

    def __init__(self, name: str, layer: nn.Module, *, k: int | None, seed: int) -> None:
        self.name = name
        self.kind = kind_of(layer)
        self.weight_shape = tuple(layer.weight.shape)
        self.out_channels = (
            layer.out_channels if self.kind == CONV_TRANSPOSE else self.weight_shape[0]
        )
        self.exact = k is None
        rows, columns = self.weight_shape[0], math.prod(self.weight_shape[1:])
        if self.exact:
            self.shape = (rows, columns)
            self._matrices = {}
            self.size = rows * columns
        else:
            self._matrices = {
                "rows": random_matrix(rows, k, seed, f"{name}.rows"),
                "columns": random_matrix(columns, k, seed, f"{name}.columns"),
            }
            self.shape = (min(k, rows), min(k, columns))
            self.size = math.prod(self.shape)

    @property
    def checksum(self) -> int:
        """Of the random matrices."""
        value = 0
        for matrix in self._matrices.values():
            value = zlib.crc32(matrix.cpu().numpy().tobytes(), value)
        return value

    def _matrix(self, which: str, device: torch.device) -> Tensor:
        if self._matrices[which].device != device:
            self._matrices[which] = self._matrices[which].to(device, non_blocking=True)
        return self._matrices[which]

    def __call__(self, call: LayerCall, gradient: Tensor) -> Tensor:
        """(R, size) float32.

        Args:
            call: of this layer, with A.
            gradient: B, the gradient at the output before norm and activation.
        """
        with torch.autocast(gradient.device.type, enabled=False), torch.no_grad():
            inputs, gradient = call.input.float(), gradient.float()
            if self.kind == LINEAR:
                inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
                gradient = gradient.reshape(len(gradient), -1, gradient.shape[-1])
                return self._linear(inputs, gradient).flatten(1)
            return self._conv(call, inputs, gradient).flatten(1)

    def _all_channels(self, call: LayerCall, values: Tensor) -> Tensor:
        """(R, all output channels, ...) from (R, 1, ...), where one channel was computed."""
        if call.channels is None:
            return values
        full = values.new_zeros(len(values), self.out_channels, *values.shape[2:])
        full[torch.arange(len(values), device=values.device), call.channels] = values[:, 0]
        return full

    def _linear(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        if not self.exact:
            gradient = gradient @ self._matrix("rows", gradient.device).T
            inputs = inputs @ self._matrix("columns", inputs.device).T
        return gradient.transpose(1, 2) @ inputs

    def _conv(self, call: LayerCall, inputs: Tensor, gradient: Tensor) -> Tensor:
        # `large` is on the side of the convolution that the kernel slides over.
        small, large = gradient, inputs
        if self.kind == CONV_TRANSPOSE:
            small, large = inputs, gradient
        if self.exact:
            return self._conv_exact(call, self._all_channels(call, small), large)

        n, groups = len(small), call.options["groups"]
        rows = self._matrix("rows", small.device)
        small = small.flatten(2).unflatten(1, (groups, -1))
        if call.channels is None:
            rows = rows.unflatten(1, (groups, -1)).transpose(0, 1)
        else:
            rows = rows.T.index_select(0, call.channels)[:, None, :, None]
        projected_rows = rows @ small  # (R, groups, k, positions)
        columns = self._matrix("columns", large.device)
        filters = columns.reshape(len(columns), *self.weight_shape[1:])
        large = large.reshape(n * groups, -1, *large.shape[2:])
        patches = F.conv2d(
            large,
            filters,
            stride=call.options["stride"],
            padding=call.options["padding"],
            dilation=call.options["dilation"],
        )
        if self.kind == CONV_TRANSPOSE:
            # With output padding beyond the stride there is one position more than inputs.
            patches = patches[..., : inputs.shape[2], : inputs.shape[3]]
        patches = patches.reshape(n, groups, len(columns), -1)
        if groups == 1:
            return projected_rows[:, 0] @ patches[:, 0].transpose(1, 2)
        # Groups share P_c and have rows of their own in P_r: their sketches add up.
        return torch.einsum("ngkp,ngcp->nkc", projected_rows, patches)

    def _conv_exact(self, call: LayerCall, small: Tensor, large: Tensor) -> Tensor:
        """(R, rows, columns): the batch folded into groups of one weight-gradient convolution."""
        n, padding = len(small), call.options["padding"]
        if isinstance(padding, str):
            padding = _padding_of(padding, self.weight_shape[2:], call.options["dilation"])
        gradient = nn_grad.conv2d_weight(
            large.reshape(1, -1, *large.shape[2:]),
            (n * self.weight_shape[0], *self.weight_shape[1:]),
            small.reshape(1, -1, *small.shape[2:]),
            stride=call.options["stride"],
            padding=padding,
            dilation=call.options["dilation"],
            groups=n * call.options["groups"],
        )
        return gradient.reshape(n, self.weight_shape[0], -1)


def _padding_of(name: str, kernel: tuple[int, ...], dilation) -> tuple[int, ...]:
    """Pixels at either side for ``padding="same"`` or ``"valid"``."""
    if name == "valid":
        return (0,) * len(kernel)
    dilations = (dilation,) * len(kernel) if isinstance(dilation, int) else tuple(dilation)
    totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    if any(total % 2 for total in totals):
        raise NotImplementedError(
            "padding='same' with an even kernel pads unevenly; the exact mode does not support it"
        )
    return tuple(total // 2 for total in totals)
