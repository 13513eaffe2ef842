"""Per-instance gradients of named heads: one forward and backward for all instances together.

For an instance with regions R and a head with layers l, the vector kept is the concatenation over l
of ``sum over r in R of P_rows,l G_l,r P_columns,l^T``, G_l,r being the gradient of that ROI's own
loss (not of a mean). Inner products of two such vectors equal, in expectation over the random
matrices, those of the full gradients (:mod:`gal_d2.scoring.gradients.layer_projection`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from gal_d2.errors import UserError
from gal_d2.scoring.gradients.layer_capture import LayerCapture
from gal_d2.scoring.gradients.layer_projection import LayerProjection
from gal_d2.scoring.roi_losses import HeadLoss, build_head_losses, frozen_statistics
from gal_d2.scoring.rois import RoiBatch

# Keeps the small gradients of per-instance losses above float16's smallest number under autocast.
# A power of two: exact in the other types.
_LOSS_SCALE = 1024.0


@dataclass(frozen=True)
class HeadLayout:
    """Where each layer's part lies in the vectors of a head.

    Attributes:
        slices: by layer name, in order; the slices are adjacent.
        shapes: by layer name, (rows, columns) of its weight's part.
    """

    slices: dict[str, slice]
    shapes: dict[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """D, the length of a vector."""
        return sum(part.stop - part.start for part in self.slices.values())


@dataclass
class HeadGradients:
    """Of R rows, for one head.

    Attributes:
        gradient: (R, D) float32, of each row's own loss; None where only that was asked for.
        loss: (R,) float32, nats.
        probabilities: (R, num_classes) float32, or None if the head does not classify.
    """

    gradient: Tensor | None
    loss: Tensor
    probabilities: Tensor | None

    def spread(self, index: Tensor, rows: int) -> HeadGradients:
        """Of ``rows`` rows, whose losses are NaN and probabilities 0 but at the R of ``index``.

        Args:
            index: (R,) int64, where these rows belong. There are no gradients.
            rows: how many there are.
        """
        loss = self.loss.new_full((rows,), torch.nan).index_copy_(0, index, self.loss)
        share = self.probabilities
        if share is not None:
            share = share.new_zeros(rows, share.shape[1]).index_copy_(0, index, share)
        return HeadGradients(None, loss, share)


class ProjectedGradients:
    """Per-ROI gradients of the named heads of a detectron2 ROI-heads module.

    Training state is left as it was: no ``.grad`` changes, no random number is drawn, running
    statistics stay.

    Args:
        roi_heads: ``StandardROIHeads`` or a subclass such as ``CascadeROIHeads``.
        heads: ``"box"``, ``"mask"`` or others that are registered.
        k: rows of each layer's two random matrices; None for the full gradient.
        seed: of the random matrices.
        chunk: rows that go through a head at once (memory).

    Raises:
        UserError: a head that the model does not have, or one without any layer to score.
    """

    def __init__(
        self,
        roi_heads: nn.Module,
        heads: Sequence[str] = ("box", "mask"),
        *,
        k: int | None = 16,
        seed: int = 0,
        chunk: int = 512,
    ) -> None:
        if k is not None and k < 1:
            raise UserError(f"GAL.SCORER.PROJECTION is {k}: set it to at least 1.")
        self.k, self.seed, self.chunk = k, seed, chunk
        self.roi_heads = roi_heads
        self._losses = build_head_losses(roi_heads, heads)
        self._layers = {name: loss.layers() for name, loss in self._losses.items()}
        for name, layers in self._layers.items():
            if not layers:
                raise UserError(
                    f"The head '{name}' has no linear layer or 2-d convolution to score: leave it "
                    "out of GAL.SCORER.HEADS."
                )
        self._projections = {
            head: {
                name: LayerProjection(name, layer, k=k, seed=seed) for name, layer in layers.items()
            }
            for head, layers in self._layers.items()
        }
        self.layouts = {head: self._layout(head) for head in self._losses}

    def _layout(self, head: str) -> HeadLayout:
        slices, shapes, start = {}, {}, 0
        for name, projection in self._projections[head].items():
            slices[name] = slice(start, start + projection.size)
            shapes[name] = projection.shape
            start += projection.size
        return HeadLayout(slices, shapes)

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self._losses)

    @property
    def head_losses(self) -> dict[str, HeadLoss]:
        """By the heads' names."""
        return self._losses

    @property
    def classifying_heads(self) -> tuple[str, ...]:
        """The heads whose losses tell classes apart."""
        return tuple(name for name, loss in self._losses.items() if loss.classifies)

    def need_masks(self, heads: Iterable[str]) -> bool:
        """Whether one of these heads looks at the masks of regions."""
        return any(self._losses[head].needs_masks for head in heads)

    def full_precision(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The feature maps that the heads pool from, for all heads at once, as float32."""
        by_head = [loss.feature_names() for loss in self._losses.values()]
        names = sorted({*chain(*by_head)}) if all(by_head) else features
        return {name: features[name].detach().float() for name in names}

    def signature(self) -> dict:
        """What two runs must share for their vectors to be comparable; plain numbers and text."""
        return {
            "k": self.k,
            "seed": self.seed,
            "layers": {
                head: {
                    name: [*projection.weight_shape, projection.checksum]
                    for name, projection in projections.items()
                }
                for head, projections in self._projections.items()
            },
        }

    def __call__(
        self,
        head: str,
        features: Mapping[str, Tensor],
        rois: RoiBatch,
        classes: Tensor,
        index: Tensor | None = None,
        *,
        backward: bool = True,
    ) -> HeadGradients:
        """Gradients of R rows. A row is a region under a class; a region may have several rows.

        Args:
            head: its name.
            features: the feature maps that the ROI heads get; gradients never reach them.
            rois: M regions.
            classes: (R,) int64 in [0, num_classes), what each row claims to be.
            index: (R,) int64, the region of each row; None: row r is region r.
            backward: take gradients; without, the losses alone cost half or less.
        """
        loss = self._losses[head]
        device = next(iter(features.values())).device
        classes = classes.to(device, non_blocking=True)
        if len(classes) == 0:
            size = self.layouts[head].size
            nothing = torch.zeros(0, size, device=device)
            return HeadGradients(nothing if backward else None, nothing[:, 0], None)
        if index is not None:
            index = index.to(device, non_blocking=True)
        elif len(classes) > self.chunk:
            index = torch.arange(len(rois), device=device)
        with frozen_statistics(list(loss.modules().values())):
            with torch.no_grad():
                pooled = loss.pool(features, rois)
            parts = [
                self._run(
                    loss,
                    pooled,
                    rois,
                    classes[start : start + self.chunk],
                    None if index is None else index[start : start + self.chunk],
                    backward,
                )
                for start in range(0, len(classes), self.chunk)
            ]
        if len(parts) == 1:
            return HeadGradients(*parts[0])
        gradient, losses, probabilities = zip(*parts, strict=True)
        return HeadGradients(
            torch.cat(gradient) if backward else None,
            torch.cat(losses),
            None if probabilities[0] is None else torch.cat(probabilities),
        )

    def _run(
        self,
        loss: HeadLoss,
        pooled: Tensor,
        rois: RoiBatch,
        classes: Tensor,
        index: Tensor | None,
        backward: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        projections, layout = self._projections[loss.name], self.layouts[loss.name]
        selected = loss.class_channels()
        channels = {} if selected is None else {selected: classes}
        rows = pooled if index is None else pooled.index_select(0, index)
        capture = LayerCapture(self._layers[loss.name], channels)
        with torch.set_grad_enabled(backward), capture:
            losses, probabilities = loss.losses(
                rows, classes, rois, slice(None) if index is None else index
            )
            # Rows do not see each other: the gradient of the sum holds each row's own.
            total = losses.sum() * _LOSS_SCALE if backward else None
        if total is None:
            return None, losses, probabilities
        parts: dict[str, Tensor] = {}
        for call, output_gradient in capture.gradients(total):
            part = projections[call.layer](call, output_gradient)
            earlier = parts.get(call.layer)  # a layer may be used more than once
            parts[call.layer] = part if earlier is None else earlier + part
        gradient = torch.cat(
            [
                parts[name]
                if name in parts
                else pooled.new_zeros(len(rows), size.stop - size.start)
                for name, size in layout.slices.items()
            ],
            dim=1,
        )
        return gradient / _LOSS_SCALE, losses.detach(), probabilities


def sum_by_instance(rows: Tensor, instance: Tensor, num_instances: int) -> Tensor:
    """Sum rows that belong to the same instance.

    Args:
        rows: (R, ...) per ROI.
        instance: (R,) int64 in [0, num_instances).
        num_instances: N.

    Returns:
        (N, ...); 0 for an instance without an ROI.
    """
    return rows.new_zeros(num_instances, *rows.shape[1:]).index_add_(0, instance, rows)
