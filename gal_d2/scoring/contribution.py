"""What a pasted instance does to the loss on real data, for many instances at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass
class Contribution:
    """Scores of N pasted instances, image by image, in the order of the targets that were scored.

    A value that does not exist is NaN, never 0: an instance without an ROI, a class of which no
    real instance has been seen yet, a loss or gradient that was not finite.

    Attributes:
        pool_id: (N,) int64, the cut-out in the instance pool; -1 if it is not from the pool.
        image_index: (N,) int64, position of its image in the batch.
        gt_class: (N,) int64, contiguous class index that it was pasted as.
        phi: (N,) float32, raw first-order contribution ``<g_real, g>``: by how much a step along
            the gradient lowers the loss on real instances of its class, per unit of learning
            rate. Sum over the heads; in nats squared per squared unit of weight. Positive helps.
        score: (N,) float32, the combined normalised score. Higher helps more; no unit.
        head_score: per head, (N,) float32 in [-1, 1], cosine with the class's direction.
        head_loss: per head, (N,) float32, mean loss per ROI in nats, not weighted by the model's
            loss weights.
        num_rois: (N,) int64, how many ROIs the instance was scored on.
        area: (N,) float32, pixels of the training image in which it is visible (of its box, in a
            data set without masks).
    """

    pool_id: torch.Tensor
    image_index: torch.Tensor
    gt_class: torch.Tensor
    phi: torch.Tensor
    score: torch.Tensor
    head_score: dict[str, torch.Tensor]
    head_loss: dict[str, torch.Tensor]
    num_rois: torch.Tensor
    area: torch.Tensor

    def __post_init__(self) -> None:
        shape = (len(self.pool_id),)
        for name, tensor in self._tensors():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, pool_id has {shape}")
        if self.head_score.keys() != self.head_loss.keys():
            raise ValueError(
                f"heads of head_score {list(self.head_score)} and of head_loss "
                f"{list(self.head_loss)} differ"
            )

    def _tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                yield from ((f"{field.name}[{head!r}]", tensor) for head, tensor in value.items())
            else:
                yield field.name, value

    def _map(self, function) -> Contribution:
        values = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                values[field.name] = {head: function(tensor) for head, tensor in value.items()}
            else:
                values[field.name] = function(value)
        return Contribution(**values)

    def __len__(self) -> int:
        return len(self.pool_id)

    def __getitem__(self, index) -> Contribution:
        """Rows by slice, integer tensor or boolean mask."""
        if isinstance(index, int):
            index = [index]
        return self._map(lambda tensor: tensor[index])

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.head_score)

    @property
    def missing(self) -> torch.Tensor:
        """(N,) bool, instances that have no combined score."""
        return torch.isnan(self.score)

    def to(self, device: torch.device | str) -> Contribution:
        return self._map(lambda tensor: tensor.to(device))

    @classmethod
    def empty(cls, heads: Sequence[str], device: torch.device | str = "cpu") -> Contribution:
        """Of no instances."""
        integers = {
            name: torch.empty(0, dtype=torch.int64, device=device)
            for name in ("pool_id", "image_index", "gt_class", "num_rois")
        }
        return cls(
            phi=torch.empty(0, device=device),
            score=torch.empty(0, device=device),
            area=torch.empty(0, device=device),
            head_score={head: torch.empty(0, device=device) for head in heads},
            head_loss={head: torch.empty(0, device=device) for head in heads},
            **integers,
        )

    @classmethod
    def cat(cls, parts: Sequence[Contribution]) -> Contribution:
        """Rows of all parts, in order. ``image_index`` stays as it is in each part.

        Raises:
            ValueError: no parts, or parts with different heads.
        """
        if not parts:
            raise ValueError("Contribution.cat needs at least one part")
        heads = parts[0].heads
        if any(part.heads != heads for part in parts):
            raise ValueError(f"parts have different heads: {[part.heads for part in parts]}")
        values = {}
        for field in dataclasses.fields(cls):
            column = [getattr(part, field.name) for part in parts]
            if isinstance(column[0], dict):
                values[field.name] = {h: torch.cat([value[h] for value in column]) for h in heads}
            else:
                values[field.name] = torch.cat(column)
        return cls(**values)
