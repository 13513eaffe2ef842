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
from gal_d2.scoring.confusion import ConfusionEstimate
from gal_d2.scoring.gradient_exchange import gather_rows, sum_by_key

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
    """

    gradient: Tensor
    classes: Tensor
    slots: Tensor


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


def _full_precision(method):
    """Products of gradients must not be rounded when a caller is under autocast."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return wrapper


class GradientCache:
    """Directions of all classes. Alike on all processes; see :meth:`update`.

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
            raise UserError(f"GAL.SCORER.SHRINKAGE is {shrinkage}: set it to at least 0.")
        if num_partners < 0:
            raise UserError(f"GAL.SCORER.NUM_PARTNERS is {num_partners}: set it to at least 0.")
        if partner_every < 1:
            raise UserError(f"GAL.SCORER.PARTNER_EVERY is {partner_every}: set it to at least 1.")
        if class_groups is None:
            class_groups = torch.zeros(num_classes, dtype=torch.int64)
        class_groups = torch.as_tensor(class_groups).long().cpu()
        if class_groups.shape != (num_classes,):
            raise ValueError(f"class_groups has shape {class_groups.shape}, not ({num_classes},)")

        self.layer_sizes = {head: list(sizes) for head, sizes in layer_sizes.items()}
        self.num_classes, self.num_partners = num_classes, min(num_partners, num_classes - 1)
        self.class_groups = class_groups
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
        self._real = {h: torch.zeros(c, d, device=self.device) for h, d in sizes.items()}
        self._raw = {h: torch.zeros(c, d, device=self.device) for h, d in sizes.items()}
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
        for by_head in (self._real, self._raw, self._negative, self._priors):
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
    def age(self) -> Tensor:
        """(C,) int64 on the CPU: steps since then; -1 for a class that never had any."""
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
        return torch.where(counts > 0, 1 / weight, 0.0).float().to(self.device)

    def real_gradient(self, head: str, classes: Tensor) -> Tensor:
        """(N, D) float32 mean gradient, *not* normalised, of real instances; NaN if never seen."""
        index, counts = classes.to(self.device), self._real_count[head][classes.cpu()]
        mean = self._raw[head][index] * self._unbias(counts)[:, None]
        mean[(counts == 0).to(self.device)] = torch.nan
        return mean

    @_full_precision
    def direction(self, head: str, classes: Tensor) -> Tensor:
        """(N, D) float32 of norm 1; NaN for a class of which no real instance has been seen.

        Args:
            head: its name.
            classes: (N,) int64.
        """
        unique, inverse = torch.unique(classes.cpu(), return_inverse=True)
        counts = self._real_count[head][unique]
        mean = self._real[head][unique.to(self.device)] * self._unbias(counts)[:, None]
        if self.shrinkage > 0:
            own = self._reliability(counts)[:, None]
            mean = own * mean + (1 - own) * self._prior(head)[self.class_groups[unique]]
        if head in self._negative:
            mean = mean - self._contrast(head, unique)
        mean = unit_rows(mean, self.layer_sizes[head], self.by_layer)
        unknown = (counts == 0).to(self.device) | (mean.norm(dim=1) < 0.5)
        mean[unknown] = torch.nan
        return mean[inverse.to(self.device)]

    def _reliability(self, counts: Tensor) -> Tensor:
        """n / (n + n0) by the number of instances; (...,) float32 on the averages' device."""
        n = effective_count(counts, self.momentum)
        return torch.where(n > 0, n / (n + self.shrinkage), 0.0).float().to(self.device)

    def _contrast(self, head: str, classes: Tensor) -> Tensor:
        counts = self._negative_count[head][classes]
        mass = self.confusion.mass_of(classes, self._partners[classes]) * (counts > 0)
        share = mass / mass.sum(1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)
        weight = share.to(self.device) * self._reliability(counts) * self._unbias(counts)
        negative = self._negative[head][classes.to(self.device)].float()
        return torch.einsum("ns,nsd->nd", weight, negative)

    def _prior(self, head: str) -> Tensor:
        """(groups, D): what a class without instances of its own is shrunk to."""
        if head not in self._priors:
            counts = self._real_count[head]
            seen = (counts > 0).nonzero()[:, 0]
            mean = self._real[head][seen.to(self.device)] * self._unbias(counts[seen])[:, None]
            groups = F.one_hot(self.class_groups, int(self.class_groups.max()) + 1)[seen]
            groups = groups.to(mean)
            in_group = groups.sum(0)[:, None]
            overall = mean.sum(0, keepdim=True) / max(len(seen), 1)
            group_mean = (groups.T @ mean) / in_group.clamp(min=1)
            weight = in_group / (in_group + self.shrinkage)
            self._priors[head] = weight * group_mean + (1 - weight) * overall
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
        """Learn from one step; a collective call, also for a process without rows.

        The sums of all processes are gathered and then applied alike on each. A row that is zero,
        NaN or infinite is left out.

        Args:
            rows: by head; every head of the cache.
            candidates: of pasted instances, (N,) int64 classes and (N, C) probabilities of the
                classifier; None: none.
        """
        blocks = []
        for head in self.heads:
            blocks += self._sums(head, rows[head])
        no_candidates = torch.zeros(0, dtype=torch.int64), torch.zeros(0, self.num_classes)
        blocks.append(self.confusion.summarise(*(candidates or no_candidates)))
        *blocks, confusion = gather_rows(*blocks)

        updated = torch.zeros(self.num_classes, dtype=torch.bool)
        for head in self.heads:
            self._apply_real(head, blocks.pop(0), updated)
            if head in self._negative:
                self._apply_negative(head, blocks.pop(0))
        self._updates += updated
        self._last_update[updated] = self._step
        self._step += 1
        self._priors.clear()
        self.confusion.update(confusion)
        if self.num_partners and int(self._step) % self.partner_every == 0:
            self._choose_partners()

    def _sums(self, head: str, rows: CacheRows) -> list[Tensor]:
        """Blocks (key, count, sums) of this process: real ones, then those of the contrast."""
        gradient = rows.gradient.detach().to(self.device, torch.float32)
        classes, slots = rows.classes.to(self.device), rows.slots.to(self.device)
        size = gradient.square().sum(1)
        usable = size.isfinite() & (size > 0)
        unit = self.unit(head, gradient)
        one = torch.ones(len(gradient), 1, device=self.device)

        def block(mask: Tensor, keys: Tensor, values: list[Tensor]) -> Tensor:
            keys, sums = sum_by_key(keys[mask], torch.cat([one, *values], dim=1)[mask])
            return torch.cat([keys[:, None].float(), sums], dim=1)

        blocks = [block(usable & (slots == REAL), classes, [unit, gradient])]
        if head in self._negative:
            keys = classes * self.num_partners + slots
            blocks.append(block(usable & (slots != REAL), keys, [unit]))
        return blocks

    def _merge(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Over all processes: keys (U,), instances of each (U,) on the CPU, their mean (U, W)."""
        keys, sums = sum_by_key(block[:, 0].long(), block[:, 1:])
        return keys, sums[:, 0].round().long().cpu(), sums[:, 1:] / sums[:, :1]

    def _decay(self, counts: Tensor) -> Tensor:
        return (self.momentum ** counts.double()).float().to(self.device)[:, None]

    def _apply_real(self, head: str, block: Tensor, updated: Tensor) -> None:
        if len(block) == 0:
            return
        classes, counts, mean = self._merge(block)
        decay = self._decay(counts)
        size = mean.shape[1] // 2
        for buffer, new in ((self._real, mean[:, :size]), (self._raw, mean[:, size:])):
            buffer[head][classes] = decay * buffer[head][classes] + (1 - decay) * new
        self._real_count[head][classes.cpu()] += counts
        updated[classes.cpu()] = True

    def _apply_negative(self, head: str, block: Tensor) -> None:
        if len(block) == 0:
            return
        keys, counts, mean = self._merge(block)
        decay = self._decay(counts)
        buffer = self._negative[head].view(-1, mean.shape[1])
        buffer[keys] = (decay * buffer[keys].float() + (1 - decay) * mean).half()
        self._negative_count[head].view(-1)[keys.cpu()] += counts

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
            ("real", self._real),
            ("raw", self._raw),
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
