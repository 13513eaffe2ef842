"""Which other classes the candidates of a class resemble, kept for the few that matter."""

from __future__ import annotations

import torch
from torch import Tensor

from gal_d2.scoring.gradients.grouping import membership


class ConfusionEstimate:
    """Running mean, by class, of the classifier's probability of each *other* class.

    Sparse: per class the ``top`` largest, so that 1,203 classes take 0.2 MB instead of 6. What
    falls out of the top is forgotten. Lives on the CPU.

    Args:
        num_classes: C.
        momentum: weight of the old mean per candidate.
        top: M, other classes kept per class; fewer where there are fewer.
    """

    def __init__(self, num_classes: int, *, momentum: float = 0.95, top: int = 16) -> None:
        self.momentum = momentum
        self.top = max(1, min(top, num_classes - 1))
        self.ids = torch.full((num_classes, self.top), -1, dtype=torch.int64)
        self.mass = torch.zeros(num_classes, self.top)

    def summarise(self, classes: Tensor, probabilities: Tensor) -> Tensor:
        """What a step contributes.

        Args:
            classes: (N,) int64, what each candidate was pasted as.
            probabilities: (N, C) of the classes.

        Returns:
            (U, 2 + 2M) float32 on the CPU, a row per class: class, number of candidates, ids of
            the likeliest other classes and their mean probabilities.
        """
        classes, probabilities = classes.cpu(), probabilities.detach().float().cpu()
        usable = probabilities.isfinite().all(1)
        classes, probabilities = classes[usable], probabilities[usable]
        if len(classes) == 0 or probabilities.shape[1] < 2:
            return torch.zeros(0, 2 + 2 * self.top)
        keys, members = membership(classes)
        count = members.sum(1, keepdim=True)
        mean = members @ probabilities / count
        mean[torch.arange(len(keys)), keys] = -1.0  # the class itself is no confusion
        mass, ids = mean.topk(self.top, dim=1)
        return torch.cat([keys[:, None].float(), count, ids.float(), mass], dim=1)

    def update(self, rows: Tensor) -> None:
        """Apply rows of :meth:`summarise`, of one or several calls, in their order."""
        while len(rows):
            classes = rows[:, 0].long()
            earlier = (classes[:, None] == classes[None, :]).tril(-1).any(1)
            self._apply(rows[~earlier])
            rows = rows[earlier]

    def _apply(self, rows: Tensor) -> None:
        classes = rows[:, 0].long()
        decay = (self.momentum ** rows[:, 1].double()).float()[:, None]
        new_ids, new_mass = rows[:, 2 : 2 + self.top].long(), rows[:, 2 + self.top :].clamp(min=0)
        ids, mass = self.ids[classes], self.mass[classes]
        same = ids[:, :, None] == new_ids[:, None, :]
        mass = decay * mass + (1 - decay) * (same * new_mass[:, None, :]).sum(2)
        unseen = (1 - decay) * new_mass * ~same.any(1)
        mass, ids = torch.cat([mass, unseen], dim=1), torch.cat([ids, new_ids], dim=1)
        mass, order = mass.sort(dim=1, descending=True, stable=True)
        mass, ids = mass[:, : self.top], ids.gather(1, order)[:, : self.top]
        self.mass[classes] = mass
        self.ids[classes] = ids.masked_fill(mass == 0, -1)

    def mass_of(self, classes: Tensor, others: Tensor) -> Tensor:
        """Mean probability of ``others`` (N, S; -1: none) for ``classes`` (N,): (N, S) float32."""
        same = (self.ids[classes][:, None, :] == others[:, :, None]) & (others >= 0)[:, :, None]
        return (same * self.mass[classes][:, None, :]).sum(2)
