"""What goes into a layer and what comes out, before its norm and activation.

detectron2's ``Conv2d`` applies norm and activation inside ``forward``, so a module hook sees the
wrong gradient. This looks at the functional calls (``F.conv2d`` ...) instead, and knows a layer by
the weight that it passes: any module that ends in one of those calls is captured, wrapped or not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

LINEAR, CONV, CONV_TRANSPOSE = "linear", "conv", "conv_transpose"

_KIND_OF_MODULE = {
    nn.Linear: LINEAR,
    nn.Conv2d: CONV,
    nn.ConvTranspose2d: CONV_TRANSPOSE,
}
_KIND_OF_FUNCTION = {
    F.linear: LINEAR,
    F.conv2d: CONV,
    F.conv_transpose2d: CONV_TRANSPOSE,
}
_ARGUMENTS = {
    LINEAR: ("input", "weight", "bias"),
    CONV: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    CONV_TRANSPOSE: (
        *("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
}
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
)


def kind_of(layer: nn.Module) -> str | None:
    """``linear``, ``conv`` or ``conv_transpose``; None for what cannot be captured."""
    for module_type, kind in _KIND_OF_MODULE.items():
        if isinstance(layer, module_type):
            return kind
    return None


def find_layers(module: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The layers of a head whose gradient can be captured, by their name in it, in module order.

    Parameters of norms are left out. Other layers with parameters are left out and named in a
    warning.

    Args:
        module: a head.
        skip: child names; a layer in or below a child of such a name is left out.

    Raises:
        UserError: a layer computes its weight anew at every use (weight norm, for example).
    """
    layers, left_out = {}, []
    for name, child in module.named_modules():
        if any(part in skip for part in name.split(".")):
            continue
        if kind_of(child) is not None:
            if not isinstance(child.weight, nn.Parameter):
                raise UserError(
                    f"The weight of layer '{name or type(child).__name__}' is computed by a "
                    "parametrization, so the scorer cannot take its gradient: remove the "
                    "parametrization, or leave this head out of GAL.SCORER.HEADS."
                )
            layers[name] = child
        elif not isinstance(child, _NORMS) and any(True for _ in child.parameters(recurse=False)):
            left_out.append(f"{name} ({type(child).__name__})")
    if left_out:
        logger.warning("The scorer leaves out the parameters of %s.", ", ".join(left_out))
    return layers


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer.

    Attributes:
        layer: its name.
        input: A, as it came in; detached. (R, C, H, W), or (R, ..., C) for a linear layer.
        output_edge: place in the graph of the output before norm and activation: what B, the
            gradient, is taken at. It stays right when an activation overwrites the output.
        options: stride, padding, dilation, groups of a convolution.
        channels: (R,) int64, the one output channel that was computed for each row; None: all.
    """

    layer: str
    input: Tensor
    output_edge: torch.autograd.graph.GradientEdge
    options: dict[str, Any]
    channels: Tensor | None = None


class LayerCapture(TorchFunctionMode):
    """While active, records the calls of the given layers in ``calls``, in order.

    Under ``torch.no_grad`` there is nothing to record; channels are selected all the same.

    Args:
        layers: by name.
        channels: by name of a 1x1 convolution, (R,) int64: compute this one output channel of each
            row, so that its output is (R, 1, H, W). A mask predictor has one channel for each of
            1,203 classes, and the loss looks at one.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], channels: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self._names = {id(layer.weight): name for name, layer in layers.items()}
        self._channels = channels or {}
        self.calls: list[LayerCall] = []
        self._versions: list[tuple[Tensor, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        kind = _KIND_OF_FUNCTION.get(func)
        if kind is None:
            return func(*args, **kwargs)
        kwargs.update(zip(_ARGUMENTS[kind], args, strict=False))
        name = self._names.get(id(kwargs["weight"]))
        if name is None:
            return func(**kwargs)
        if not kwargs["weight"].requires_grad:
            # A frozen layer too has to start the graph. Nothing asks for the weight's gradient.
            kwargs["weight"] = kwargs["weight"].detach().requires_grad_()
        channels = self._channels.get(name)
        output = func(**kwargs) if channels is None else _conv_of_channels(channels, **kwargs)
        if not torch.is_grad_enabled():
            return output
        inputs = kwargs["input"].detach()
        self._versions.append((inputs, inputs._version))
        self.calls.append(
            LayerCall(
                name,
                inputs,
                torch.autograd.graph.get_gradient_edge(output),
                {
                    "stride": kwargs.get("stride", 1),
                    "padding": kwargs.get("padding", 0),
                    "dilation": kwargs.get("dilation", 1),
                    "groups": kwargs.get("groups", 1),
                }
                if kind != LINEAR
                else {},
                channels,
            )
        )
        return output

    def gradients(self, loss: Tensor) -> Iterator[tuple[LayerCall, Tensor]]:
        """Pairs of a call and the gradient B of ``loss`` at its output (zeros where none).

        Frees the graph. The gradients of parameters are neither computed nor touched.

        Raises:
            RuntimeError: the head overwrote a layer's input after the layer had used it.
        """
        for call, (inputs, version) in zip(self.calls, self._versions, strict=True):
            if inputs._version != version:
                raise RuntimeError(
                    f"The input of layer {call.layer} was overwritten in place after its use; its "
                    "gradient cannot be taken."
                )
        edges = [call.output_edge for call in self.calls]
        gradients = torch.autograd.grad(loss, edges, allow_unused=True)
        for call, gradient in zip(self.calls, gradients, strict=True):
            if gradient is not None:
                yield call, gradient


def can_select_channels(layer: nn.Module) -> bool:
    """Is it a plain 1x1 convolution, of which :class:`LayerCapture` can compute one channel?"""
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and layer.padding in ((0, 0), "valid", "same")
        and getattr(layer, "norm", None) is None
        and getattr(layer, "activation", None) is None
    )


def _conv_of_channels(channels: Tensor, input: Tensor, weight: Tensor, bias=None, **_) -> Tensor:
    """(R, 1, H, W): output channel ``channels[r]`` of row r of a 1x1 convolution."""
    output = torch.bmm(weight[channels].flatten(1)[:, None], input.flatten(2))
    if bias is not None:
        output = output + bias[channels, None, None]
    return output.unflatten(2, input.shape[2:])
