"""Per class, the direction in weight space that lowers the loss on real instances of that class.

For class c and head h the cache keeps a momentum average of the *normalised* projected gradients of
real instances, p(c, h), and for up to S classes that candidates of c are confused with, the same of
their real instances *relabelled as c*, n(c, s, h). The direction is the contrast

    d(c, h)  ~  p(c, h) - sum over s of  w_s r_s n(c, s, h)

with w_s the share of confusion (sum 1) and r_s the reliability of an average over few instances.
An object of class c lies along p; an object of the confused class that claims to be c lies along n.
Without the contrast the two are hardly told apart.

The cache is no ``nn.Module``: it must stay out of the detector's parameters, buffers and weights
file. It has a ``state_dict`` of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.scoring.exchange import send, send_together
from gal_d2.scoring.gradients.averages import (
    DirectionWeights,
    dot,
    full_precision,
    move_averages,
    prior_weights,
    reliability,
    unbias,
)
from gal_d2.scoring.gradients.cache_rows import REAL, CacheRows
from gal_d2.scoring.gradients.confusion import ConfusionEstimate
from gal_d2.scoring.gradients.grouping import membership
from gal_d2.scoring.gradients.partners import choose_partners, choose_relabelled
from gal_d2.scoring.gradients.signature import obstacle

logger = logging.getLogger(__name__)


class GradientCache:
    """Directions of all classes. Alike on all processes that learn from the same rows.

    Args:
        layer_sizes: per head, the lengths of its layers' parts of a gradient vector.
        num_classes: C.
        class_groups: (C,) frequency group of each class; None: one group.
        momentum: weight of the old average per instance, in [0, 1).
        shrinkage: n0. An average worth n instances counts n / (n + n0), the rest is the mean of
            its frequency group's classes, which is shrunk towards that of all classes alike.
        num_partners: S, confused classes per class to contrast with; 0: no contrast.
        contrast_heads: heads whose direction is a contrast; None: all.
        partner_every: updates between two choices of partners.
        signature: what a checkpoint must agree on besides the shapes (plain numbers and text).
        device: of the averages; the bookkeeping stays on the CPU.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        layer_sizes: Mapping[str, Sequence[int]],
        num_classes: int,
        *,
        class_groups: Tensor | None = None,
        momentum: float = 0.95,
        shrinkage: float = 2.0,
        num_partners: int = 4,
        contrast_heads: Sequence[str] | None = None,
        partner_every: int = 50,
        signature: dict | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= momentum < 1:
            raise UserError(f"GAL.SCORER.MOMENTUM is {momentum}: set it to at least 0, below 1.")
        if shrinkage < 0:
            raise ValueError(f"shrinkage must be at least 0, not {shrinkage}.")
        if num_partners < 0:
            raise UserError(f"GAL.SCORER.NUM_PARTNERS is {num_partners}: set it to at least 0.")
        if partner_every < 1:
            raise ValueError(f"partner_every must be at least 1, not {partner_every}.")
        if class_groups is None:
            class_groups = torch.zeros(num_classes, dtype=torch.int64)
        class_groups = torch.as_tensor(class_groups).long().cpu()
        if class_groups.shape != (num_classes,):
            raise ValueError(f"class_groups has shape {class_groups.shape}, not ({num_classes},)")

        self.layer_sizes = {head: list(sizes) for head, sizes in layer_sizes.items()}
        self.num_classes, self.num_partners = num_classes, min(num_partners, num_classes - 1)
        self.class_groups, self._num_groups = class_groups, int(class_groups.max()) + 1
        self.momentum, self.shrinkage = momentum, shrinkage
        self.partner_every = partner_every
        heads = tuple(self.layer_sizes)
        contrast_heads = heads if contrast_heads is None else tuple(contrast_heads)
        self.contrast_heads = contrast_heads if self.num_partners else ()
        self.device = torch.device(device)
        self.signature = {
            **(signature or {}),
            "sizes": self.layer_sizes,
            "num_classes": num_classes,
            "num_partners": self.num_partners,
            "contrast_heads": list(self.contrast_heads),
        }
        self._reset()

    def _reset(self) -> None:
        c, s = self.num_classes, self.num_partners
        sizes = {head: sum(parts) for head, parts in self.layer_sizes.items()}
        # Averages of normalised gradients, then those of the gradients as they are.
        self._both = {h: torch.zeros(2 * c, d, device=self.device) for h, d in sizes.items()}
        # Half precision, because the negatives are most of the memory; entries of averaged unit
        # vectors are far from float16's limits.
        self._negative = {
            h: torch.zeros(c, s, sizes[h], device=self.device, dtype=torch.float16)
            for h in self.contrast_heads
        }
        self._real_count = {h: torch.zeros(c, dtype=torch.int64) for h in sizes}
        self._negative_count = {
            h: torch.zeros(c, s, dtype=torch.int64) for h in self.contrast_heads
        }
        self._partners = torch.full((c, s), -1, dtype=torch.int64)
        self._updates = torch.zeros(c, dtype=torch.int64)
        self._last_update = torch.full((c,), -1, dtype=torch.int64)
        self._step = torch.zeros((), dtype=torch.int64)
        self.confusion = ConfusionEstimate(c)
        self._priors: dict[str, Tensor] = {}

    def to(self, device: torch.device | str) -> None:
        """Move the averages."""
        self.device = torch.device(device)
        for by_head in (self._both, self._negative):
            by_head.update({head: tensor.to(device) for head, tensor in by_head.items()})

    # -- What it knows

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(self.layer_sizes)

    @property
    def partners(self) -> Tensor:
        """(C, S) int64 on the CPU: the class in each contrast slot, -1 in an empty one."""
        return self._partners

    @property
    def num_updates(self) -> Tensor:
        """(C,) int64 on the CPU: steps that brought real instances of the class."""
        return self._updates

    @property
    def steps_since_update(self) -> Tensor:
        """(C,) int64 on the CPU: steps since the last one; -1 for a class that never had any."""
        return torch.where(self._last_update < 0, -1, self._step - 1 - self._last_update)

    def count(self, head: str) -> Tensor:
        """(C,) int64 on the CPU: real instances in the average."""
        return self._real_count[head]

    def negative_count(self, head: str) -> Tensor:
        """(C, S) int64 on the CPU: relabelled instances in each slot's average."""
        return self._negative_count[head]

    def real_gradient(self, head: str, classes: Tensor) -> Tensor:
        """(N, D) float32 mean gradient, *not* normalised, of real instances; NaN if never seen."""
        classes = classes.cpu()
        raw = self.raw_rows(head, send(classes, self.device))
        return raw * send(self.raw_factor(head, classes), self.device)[:, None]

    def raw_rows(self, head: str, classes: Tensor) -> Tensor:
        """(N, D) sums behind :meth:`real_gradient`, which is them times :meth:`raw_factor`.

        Args:
            head: its name.
            classes: (N,) int64 on the averages' device.
        """
        return self._both[head].index_select(0, classes + self.num_classes)

    def raw_factor(self, head: str, classes: Tensor) -> Tensor:
        """(N,) float32 on the CPU; NaN for a class never seen."""
        counts = self._real_count[head][classes]
        return unbias(counts, self.momentum).masked_fill(counts == 0, torch.nan)

    @full_precision
    def direction(self, head: str, classes: Tensor) -> Tensor:
        """(N, D) float32 of norm 1; NaN for a class of which no real instance has been seen.

        Args:
            head: its name.
            classes: (N,) int64.
        """
        classes = classes.cpu()
        weights = self.direction_weights(head, classes)
        weights = DirectionWeights(*send_together(weights.tensors(), self.device))
        mean = self.direction_rows(head, send(classes, self.device), weights)
        mean = F.normalize(mean, dim=1)
        unknown = send(self._real_count[head][classes] == 0, self.device)
        unknown = unknown | (mean.norm(dim=1) < 0.5)
        return mean.masked_fill(unknown[:, None], torch.nan)

    def direction_weights(self, head: str, classes: Tensor) -> DirectionWeights:
        """The weights of :meth:`direction_rows`, on the CPU; ``classes`` (N,) are there too."""
        counts = self._real_count[head][classes]
        own = unbias(counts, self.momentum)[:, None]
        groups = F.one_hot(self.class_groups[classes], self._num_groups).float()
        if self.shrinkage > 0:
            share = reliability(counts, self.momentum, self.shrinkage)[:, None]
            own, groups = share * own, (1 - share) * groups
        else:
            groups = torch.zeros_like(groups)
        if head in self._negative:
            own = torch.cat([own, -self._contrast_weights(head, classes)], dim=1)
        return DirectionWeights(own, groups, self._prior_weights(head))

    def direction_rows(self, head: str, classes: Tensor, weights: DirectionWeights) -> Tensor:
        """(N, D) directions before they are normalised.

        Args:
            head: its name.
            classes: (N,) int64, and the weights of the same rows: on the averages' device.
            weights: see :meth:`direction_weights`.
        """
        real = self._both[head][: self.num_classes]
        own = real.index_select(0, classes)
        if head in self._negative:
            negative = self._negative[head].index_select(0, classes)
            averages = torch.cat([own[:, None], negative], dim=1)  # in the wider type
            own = torch.bmm(weights.own[:, None], averages)[:, 0]
        else:
            own = own * weights.own
        return torch.addmm(own, weights.group, weights.prior @ real)

    @full_precision
    def products(
        self, head: str, classes: Tensor, weights: DirectionWeights, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What cosines and contributions are made of; nothing here waits for a device.

        Args:
            head, classes, weights: as for :meth:`direction_rows`.
            gradient: (N, D) of instances of these classes.

        Returns:
            (N,) each: the gradient's product with the direction, which is not normalised; the
            direction's norm; and its product with :meth:`raw_rows`.
        """
        direction = self.direction_rows(head, classes, weights)
        norm = torch.linalg.vector_norm(direction, dim=1)
        return dot(direction, gradient), norm, dot(self.raw_rows(head, classes), gradient)

    def _contrast_weights(self, head: str, classes: Tensor) -> Tensor:
        """(N, S): what of each slot's average is taken off."""
        counts = self._negative_count[head][classes]
        mass = self.confusion.mass_of(classes, self._partners[classes]) * (counts > 0)
        share = mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
        return (
            share
            * reliability(counts, self.momentum, self.shrinkage)
            * unbias(counts, self.momentum)
        )

    def _prior_weights(self, head: str) -> Tensor:
        """(G, C): of what a class without instances of its own is shrunk to."""
        if head not in self._priors:
            self._priors[head] = prior_weights(
                self._real_count[head],
                self.class_groups,
                self._num_groups,
                momentum=self.momentum,
                shrinkage=self.shrinkage,
            )
        return self._priors[head]

    # -- How it learns

    def counterfactuals(self, classes: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which real instances of (R,) classes to relabel as what, at most ``limit``.

        Returns:
            As :func:`~gal_d2.scoring.gradients.partners.choose_relabelled`.
        """
        if not self.contrast_heads or len(classes) == 0:
            empty = torch.zeros(0, dtype=torch.int64)
            return empty, empty, empty
        counts = self._negative_count[self.contrast_heads[0]]
        return choose_relabelled(classes.cpu(), self._partners, counts, limit)

    @full_precision
    def update(
        self,
        rows: Mapping[str, CacheRows],
        candidates: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Learn from one step. No communication: rows and candidates are those of all processes.

        A row that is zero, NaN or infinite is left out.

        Args:
            rows: by head; every head of the cache.
            candidates: of pasted instances, (N,) int64 classes and (N, C) probabilities of the
                classifier; None: none.
        """
        updated = torch.zeros(self.num_classes, dtype=torch.bool)
        for head in self.heads:
            self._learn(head, rows[head], updated)
        self._updates += updated
        self._last_update[updated] = self._step
        self._step += 1
        self._priors.clear()
        if candidates is not None:
            self.confusion.update(self.confusion.summarise(*candidates))
        if self.num_partners and int(self._step) % self.partner_every == 0:
            self._choose_partners()

    def _learn(self, head: str, rows: CacheRows, updated: Tensor) -> None:
        classes, slots = rows.classes.cpu(), rows.slots.cpu()
        gradient = rows.gradient.detach().to(self.device, torch.float32)
        norm = rows.norm if rows.norm is not None else gradient.norm(dim=1).cpu()
        usable = norm.isfinite() & (norm > 0)
        if not usable.all():
            kept = usable.nonzero()[:, 0]
            gradient = gradient.index_select(0, send(kept, self.device))
            classes, slots, norm = classes[kept], slots[kept], norm[kept]
        # A mean of normalised rows is a product with the rows as they are.
        scale = 1 / norm
        is_real = slots == REAL
        keys, members = membership(classes, is_real)
        if len(keys):
            counts = members.sum(1)
            mean = members / counts[:, None]
            self._real_count[head][keys] += counts.long()
            updated[keys] = True
            mean = torch.cat([mean * scale, mean])
            places = torch.cat([keys, keys + self.num_classes])
            move_averages(self._both[head], places, mean, counts.repeat(2), gradient, self.momentum)
        if head in self._negative:
            keys, members = membership(classes * self.num_partners + slots, ~is_real)
            if len(keys):
                counts = members.sum(1)
                mean = members / counts[:, None] * scale
                self._negative_count[head].view(-1)[keys] += counts.long()
                buffer = self._negative[head].view(-1, gradient.shape[1])
                move_averages(buffer, keys, mean, counts, gradient, self.momentum)

    def _choose_partners(self) -> None:
        """Give each class its partners; a slot with a new one starts anew."""
        seen = self._updates > 0
        for c, free in choose_partners(
            self.confusion.ids, self.confusion.mass, seen, self._partners
        ):
            for head in self.contrast_heads:
                self._negative_count[head][c, free] = 0
                self._negative[head][c, free.to(self.device)] = 0

    # -- Checkpoints

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "partners": self._partners,
            "updates": self._updates,
            "last_update": self._last_update,
            "step": self._step,
            "confusion_ids": self.confusion.ids,
            "confusion_mass": self.confusion.mass,
        }
        for name, by_head in (
            ("real", {h: both[: self.num_classes] for h, both in self._both.items()}),
            ("raw", {h: both[self.num_classes :] for h, both in self._both.items()}),
            ("negative", self._negative),
            ("real_count", self._real_count),
            ("negative_count", self._negative_count),
        ):
            tensors.update({f"{name}.{head}": tensor for head, tensor in by_head.items()})
        return tensors

    def state_dict(self) -> dict:
        """The state, by reference as in ``nn.Module``, and the signature."""
        return {"signature": self.signature, **self._tensors()}

    def load_state_dict(self, state: Mapping | None) -> bool:
        """Restore; True if it could be.

        A state that is missing, or was written with other heads, layers, classes or projection, is
        reported in one sentence and the cache starts fresh.
        """
        reason = obstacle(state, self.signature)
        if reason is not None:
            logger.warning("The gradient cache starts fresh: %s.", reason)
            self._reset()
            return False
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self._priors.clear()
        return True
