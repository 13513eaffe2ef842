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

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.scoring.exchange import send, send_together
from gal_d2.scoring.gradients.confusion import ConfusionEstimate
from gal_d2.scoring.gradients.grouping import membership

logger = logging.getLogger(__name__)

REAL = -1  # the slot of a real instance under its own class
# A newcomer takes a partner's slot only if candidates resemble it this much more: the slot's
# average is lost with the partner.
_HYSTERESIS = 1.5


@dataclass(frozen=True)
class CacheRows:
    """Gradients of one head that enter the cache; R rows.

    Attributes:
        gradient: (R, D) float32, not normalised.
        classes: (R,) int64, the class that the gradient was taken under.
        slots: (R,) int64, :data:`REAL`, or the slot of a relabelled instance's true class.
        norm: (R,) float32 on the CPU, of the gradients; None: not known there yet.
    """

    gradient: Tensor
    classes: Tensor
    slots: Tensor
    norm: Tensor | None = None


@dataclass(frozen=True)
class DirectionWeights:
    """How the directions of N rows are made of the averages, with G frequency groups.

    Attributes:
        own: (N, 1 + S) weights of the class's average and of its slots' (without contrast (N, 1)).
        group: (N, G) weight of each group's prior.
        prior: (G, C) weights of the classes' averages in the groups' priors.
    """

    own: Tensor
    group: Tensor
    prior: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.own, self.group, self.prior]


def effective_count(count: Tensor, momentum: float) -> Tensor:
    """How many equally weighted samples a momentum average of ``count`` is worth (Kish).

    At most (1 + momentum) / (1 - momentum). float64.
    """
    power = momentum ** count.double()
    return (1 - power) / (1 + power) * (1 + momentum) / (1 - momentum)


def unit_rows(gradient: Tensor, layer_sizes: Sequence[int], by_layer: bool) -> Tensor:
    """(R, D) rows of norm 1; zero rows stay zero.

    Args:
        gradient: (R, D).
        layer_sizes: lengths of the layers' parts, sum D.
        by_layer: every layer's part gets the same norm first.
    """
    if by_layer:
        parts = [F.normalize(part, dim=1) for part in gradient.split(list(layer_sizes), dim=1)]
        gradient = torch.cat(parts, dim=1)
    return F.normalize(gradient, dim=1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(N,) products of the rows of two (N, D)."""
    return torch.bmm(a[:, None], b[:, :, None]).flatten()


def _full_precision(method):
    """Products of gradients must not be rounded when a caller is under autocast."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return wrapper


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
        by_layer: give each layer of a head the same weight in the cosine.
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
        by_layer: bool = False,
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
        self.momentum, self.shrinkage, self.by_layer = momentum, shrinkage, by_layer
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
            "by_layer": by_layer,
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

    @property
    def nbytes(self) -> int:
        """Memory of the whole state."""
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    def count(self, head: str) -> Tensor:
        """(C,) int64 on the CPU: real instances in the average."""
        return self._real_count[head]

    def negative_count(self, head: str) -> Tensor:
        """(C, S) int64 on the CPU: relabelled instances in each slot's average."""
        return self._negative_count[head]

    def unit(self, head: str, gradient: Tensor) -> Tensor:
        """Gradients of a head as they enter the averages and the cosine: (R, D), norm 1."""
        return unit_rows(gradient, self.layer_sizes[head], self.by_layer)

    def _unbias(self, counts: Tensor) -> Tensor:
        """Factor that corrects averages which started at zero; 0 where nothing has come in yet."""
        weight = 1 - self.momentum ** counts.double()
        return torch.where(counts > 0, 1 / weight, 0.0).float()

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
        return self._unbias(counts).masked_fill(counts == 0, torch.nan)

    @_full_precision
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
        mean = unit_rows(mean, self.layer_sizes[head], self.by_layer)
        unknown = send(self._real_count[head][classes] == 0, self.device)
        unknown = unknown | (mean.norm(dim=1) < 0.5)
        return mean.masked_fill(unknown[:, None], torch.nan)

    def direction_weights(self, head: str, classes: Tensor) -> DirectionWeights:
        """The weights of :meth:`direction_rows`, on the CPU; ``classes`` (N,) are there too."""
        counts = self._real_count[head][classes]
        own = self._unbias(counts)[:, None]
        groups = F.one_hot(self.class_groups[classes], self._num_groups).float()
        if self.shrinkage > 0:
            share = self._reliability(counts)[:, None]
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

    @_full_precision
    def products(
        self, head: str, classes: Tensor, weights: DirectionWeights, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What cosines and contributions are made of; nothing here waits for a device.

        Args:
            head, classes, weights: as for :meth:`direction_rows`.
            gradient: (N, D) of instances of these classes.

        Returns:
            (N,) each: the gradient's product with the direction, which is not normalised; the
            direction's norm; and its product with :meth:`raw_rows`. With ``by_layer`` the first is
            such that its quotient with both norms is the cosine.
        """
        direction = self.direction_rows(head, classes, weights)
        norm = torch.linalg.vector_norm(direction, dim=1)
        if self.by_layer:
            along = _dot(self.unit(head, direction), self.unit(head, gradient))
            along = along * norm * torch.linalg.vector_norm(gradient, dim=1)
        else:
            along = _dot(direction, gradient)
        return along, norm, _dot(self.raw_rows(head, classes), gradient)

    def _reliability(self, counts: Tensor) -> Tensor:
        """n / (n + n0) by the number of instances; (...,) float32."""
        n = effective_count(counts, self.momentum)
        return torch.where(n > 0, n / (n + self.shrinkage), 0.0).float()

    def _contrast_weights(self, head: str, classes: Tensor) -> Tensor:
        """(N, S): what of each slot's average is taken off."""
        counts = self._negative_count[head][classes]
        mass = self.confusion.mass_of(classes, self._partners[classes]) * (counts > 0)
        share = mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
        return share * self._reliability(counts) * self._unbias(counts)

    def _prior_weights(self, head: str) -> Tensor:
        """(G, C): of what a class without instances of its own is shrunk to."""
        if head not in self._priors:
            counts = self._real_count[head]
            seen = (counts > 0).float()
            members = F.one_hot(self.class_groups, self._num_groups).T * seen
            in_group = members.sum(1, keepdim=True)
            share = in_group / (in_group + self.shrinkage) if self.shrinkage else in_group.sign()
            mean = share * members / in_group.clamp(min=1) + (1 - share) * seen / seen.sum().clamp(
                min=1
            )
            self._priors[head] = mean * self._unbias(counts)
        return self._priors[head]

    # -- How it learns

    def counterfactuals(self, classes: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which real instances to relabel as what, the thinnest slots first.

        Args:
            classes: (R,) int64, true classes of the real instances at hand.
            limit: at most so many rows.

        Returns:
            Three (K,) int64 tensors on the CPU: row in ``classes``, the class to relabel it as, and
            the slot of that class that it belongs to.
        """
        if not self.contrast_heads or len(classes) == 0:
            empty = torch.zeros(0, dtype=torch.int64)
            return empty, empty, empty
        keys = self._partners.flatten()
        filled = (keys >= 0).nonzero()[:, 0]
        row, position = (classes.cpu()[:, None] == keys[filled][None, :]).nonzero().unbind(1)
        key = filled[position]
        counts = self._negative_count[self.contrast_heads[0]].flatten()[key]
        order = counts.argsort(stable=True)[:limit]
        row, key = row[order], key[order]
        return row, key // self.num_partners, key % self.num_partners

    @_full_precision
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
        if self.by_layer:
            unit = self.unit(head, gradient)
            scale = torch.ones_like(norm)
        is_real = slots == REAL
        keys, members = membership(classes, is_real)
        if len(keys):
            counts = members.sum(1)
            mean = members / counts[:, None]
            self._real_count[head][keys] += counts.long()
            updated[keys] = True
            if self.by_layer:
                gradient = torch.cat([unit, gradient])
                mean = torch.block_diag(mean, mean)
            else:
                mean = torch.cat([mean * scale, mean])
            places = torch.cat([keys, keys + self.num_classes])
            self._move(self._both[head], places, mean, counts.repeat(2), gradient)
        if head in self._negative:
            keys, members = membership(classes * self.num_partners + slots, ~is_real)
            if len(keys):
                counts = members.sum(1)
                mean = members / counts[:, None] * scale
                self._negative_count[head].view(-1)[keys] += counts.long()
                buffer = self._negative[head].view(-1, gradient.shape[1])
                self._move(buffer, keys, mean, counts, unit if self.by_layer else gradient)

    def _move(
        self, buffer: Tensor, places: Tensor, mean: Tensor, counts: Tensor, rows: Tensor
    ) -> None:
        """Let the averages at U places follow the means of their new rows.

        Args:
            buffer: (..., D) on the device.
            places: (U,) int64, with weights ``mean`` (U, R) of the rows and their number
                ``counts`` (U,): on the CPU.
            rows: (R, D) on the device.
        """
        decay = (self.momentum ** counts.double()).float()[:, None]
        decay, mean = send_together([decay, (1 - decay) * mean], self.device)
        places = send(places, self.device)
        old = buffer.index_select(0, places).float()
        # index_add on a GPU adds in whatever order its threads arrive; a product does not.
        buffer.index_copy_(0, places, torch.addmm(old * decay, mean, rows).to(buffer.dtype))

    def _choose_partners(self) -> None:
        """Give the slots of each class to the classes that its candidates resemble most.

        Only a class of which real instances have been seen can be a partner. A partner that stays
        keeps its slot; a slot with a new partner starts anew.
        """
        ids, mass = self.confusion.ids, self.confusion.mass
        seen = self._updates > 0
        mass = mass * ((ids >= 0) & seen[ids.clamp(min=0)])
        incumbent = (ids[:, :, None] == self._partners[:, None, :]).any(2)
        rank = mass * torch.where(incumbent, _HYSTERESIS, 1.0)
        top = rank.sort(dim=1, descending=True, stable=True)
        chosen = ids.gather(1, top.indices)[:, : self.num_partners]
        chosen = chosen.masked_fill(top.values[:, : self.num_partners] == 0, -1)
        missing = self.num_partners - chosen.shape[1]
        chosen = F.pad(chosen, (0, missing), value=-1)

        stays = (self._partners[:, :, None] == chosen[:, None, :]).any(2) & (self._partners >= 0)
        enters = ~(chosen[:, :, None] == self._partners[:, None, :]).any(2) & (chosen >= 0)
        changed = enters.any(1) | ((self._partners >= 0) & ~stays).any(1)
        for c in changed.nonzero()[:, 0].tolist():
            self._partners[c, ~stays[c]] = -1
            free = (self._partners[c] < 0).nonzero()[:, 0]
            new = chosen[c, enters[c]]
            self._partners[c, free[: len(new)]] = new
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
        reason = None
        if not state:
            reason = "the checkpoint has none (it was written without scoring)"
        elif state.get("signature") != self.signature:
            theirs = state.get("signature") or {}
            differing = [
                key
                for key in sorted({*self.signature, *theirs})
                if theirs.get(key) != self.signature.get(key)
            ]
            reason = f"the checkpoint's differs in {', '.join(differing)}"
        if reason is not None:
            logger.warning("The gradient cache starts fresh: %s.", reason)
            self._reset()
            return False
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self._priors.clear()
        return True
