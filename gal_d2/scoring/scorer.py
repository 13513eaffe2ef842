"""Scores pasted instances against what real instances of their class teach, as a detector trains.

The facade of :mod:`gal_d2.scoring`. :mod:`gal_d2.scoring.score` has the formula,
:mod:`gal_d2.scoring.gradients.directions` the directions that instances are compared with.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.structures import Instances
from torch import Tensor, nn

from gal_d2.distributed import is_distributed
from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.exchange import Exchange, HostCopy, PackedExchange
from gal_d2.scoring.gradients.directions import GradientCache
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.head_pass import ask_heads
from gal_d2.scoring.non_finite import NonFiniteReport
from gal_d2.scoring.plan import InstanceTable, Plan, plan_batch
from gal_d2.scoring.reference_window import ReferenceWindow
from gal_d2.scoring.rows import Part, RowFormat, Rows, candidates
from gal_d2.scoring.score import USUAL, HeadValues, score_instances


def loss_key(head: str) -> str:
    """Key of the window of real instances' losses of a head."""
    return f"loss/{head}"


@dataclass(frozen=True)
class Begun:
    """A step that a device is computing; :meth:`ContributionScorer.finish` takes it.

    Attributes:
        plans: of the batch, and of the probe if there is one; ``image_ids``: theirs.
        exchange: of their rows.
    """

    plans: list[Plan]
    image_ids: list[Sequence | None]
    exchange: Exchange


@dataclass(frozen=True)
class RealBatch:
    """Images with real instances to learn from; arguments of :meth:`ContributionScorer.update`."""

    features: Mapping[str, Tensor]
    targets: Sequence[Instances]
    image_ids: Sequence | None = None


class ContributionScorer:
    """Scores the pasted instances of a batch and learns from its real ones.

    Every instance is scored on one ROI, its ground-truth box. The heads' training state is left as
    it is, and nothing here belongs to the model's parameters, buffers or ``state_dict``.

    :meth:`step` and :meth:`update` exchange rows between processes: each process calls them at each
    step, also with a batch without instances.

    Args:
        roi_heads: ``StandardROIHeads`` or a subclass such as ``CascadeROIHeads``.
        heads: what to score on: ``"box"``, ``"mask"``, or what a user registered
            (:mod:`gal_d2.scoring.roi_losses`).
        gradient_heads: those of them whose gradients are taken; None: all. Another has a loss, but
            no cosine and no part in phi.
        score_weights: w, weight of each head's cosine; a head that is not named has 0. None: 1 for
            the box head, or for the only head.
        loss_weights: v, weight of each head's excess loss. None: 0.1 for the box head, 0.2 for the
            mask head.
        projection: k, rows of each layer's two random matrices; None for full gradients.
        seed: of the random matrices.
        class_groups: (C,) frequency group of each class, 0 rare, 1 common, 2 frequent; None: one
            group.
        momentum, shrinkage, num_partners, partner_every: of the
            :class:`~gal_d2.scoring.gradients.directions.GradientCache`.
        contrast_heads: heads with a contrast. None: those that classify, of ours the box head,
            whose rows are cheap.
        max_real_per_class: real instances of a class that a process learns from in a step.
        max_counterfactuals: relabelled real instances in a step and process.
        reference_size: recent real instances kept per class, to compare with.
        reference_min: instances from which on a class is compared with its own alone.

    Raises:
        UserError: a head that the model does not have, or an option out of range.
    """

    def __init__(
        self,
        roi_heads: nn.Module,
        *,
        heads: Sequence[str] = ("box", "mask"),
        gradient_heads: Sequence[str] | None = None,
        score_weights: Mapping[str, float] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        projection: int | None = 16,
        seed: int = 0,
        class_groups: Tensor | None = None,
        momentum: float = 0.98,
        shrinkage: float = 2.0,
        num_partners: int = 4,
        partner_every: int = 50,
        contrast_heads: Sequence[str] | None = None,
        max_real_per_class: int = 4,
        max_counterfactuals: int = 64,
        reference_size: int = 64,
        reference_min: int = 16,
    ) -> None:
        self.gradients = ProjectedGradients(roi_heads, heads, k=projection, seed=seed)
        self.num_classes = roi_heads.num_classes
        wanted = self.heads if gradient_heads is None else gradient_heads
        self.gradient_heads = tuple(head for head in self.heads if head in wanted)
        self.score_weights = self._weights("SCORE_WEIGHTS", score_weights, {"box": 1.0})
        if score_weights is None and len(self.heads) == 1:
            self.score_weights = {self.heads[0]: 1.0}
        self.loss_weights = self._weights("LOSS_WEIGHTS", loss_weights, {"box": 0.1, "mask": 0.2})
        if max_real_per_class < 1:
            raise ValueError(f"max_real_per_class is {max_real_per_class}: set it to at least 1.")
        self.max_real_per_class, self.max_counterfactuals = max_real_per_class, max_counterfactuals
        if contrast_heads is None:
            contrast_heads = [
                head for head in self.gradients.classifying_heads if head in self.gradient_heads
            ]
        for name, named in (
            ("contrast_heads", contrast_heads),
            ("score_weights", self.score_weights),
        ):
            unknown = [head for head in named if head not in self.gradient_heads]
            if unknown:
                raise ValueError(f"{name} has {unknown}, gradient_heads are {self.gradient_heads}")
        if class_groups is None:
            class_groups = torch.zeros(self.num_classes, dtype=torch.int64)
        layouts = self.gradients.layouts
        self.cache = GradientCache(
            {
                head: [part.stop - part.start for part in layout.slices.values()]
                for head, layout in layouts.items()
                if head in self.gradient_heads
            },
            self.num_classes,
            class_groups=class_groups,
            momentum=momentum,
            shrinkage=shrinkage,
            num_partners=num_partners,
            contrast_heads=contrast_heads,
            partner_every=partner_every,
            signature=self.gradients.signature(),
            device=next(roi_heads.parameters()).device,
        )
        self.reference = {
            key: ReferenceWindow(class_groups, size=reference_size, n_min=reference_min)
            for key in map(loss_key, self.heads)
        }
        self._format = RowFormat(
            self.heads,
            tuple(head for head in self.heads if head in self.cache.contrast_heads),
            {head: layouts[head].size for head in self.gradient_heads},
            self.num_classes,
        )
        self._exchange = PackedExchange()
        self.non_finite = NonFiniteReport()

    @property
    def heads(self) -> tuple[str, ...]:
        return self.gradients.heads

    def _known(self, key: str, heads: Sequence[str]) -> Sequence[str]:
        for head in heads:
            if head not in self.heads:
                raise UserError(
                    f"GAL.SCORER.{key} names '{head}', but GAL.SCORER.HEADS has "
                    f"{', '.join(self.heads)}: name one of these."
                )
        return heads

    def _weights(self, key: str, weights: Mapping[str, float] | None, default: dict) -> dict:
        if weights is None:
            return {head: weight for head, weight in default.items() if head in self.heads}
        self._known(key, list(weights))
        return {head: float(weight) for head, weight in weights.items() if weight != 0}

    # -- What a training step calls

    def step(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
        *,
        probe: RealBatch | None = None,
    ) -> Contribution:
        """Score the pasted instances, then learn from the real ones, in one pass of each head.

        A collective call. The scores do not see this batch's real instances: the state of the step
        before is what pasted and real ones alike are compared with.

        Args:
            features: the feature maps that the ROI heads get, by name; gradients never reach them.
            targets: per image, on any device; ``gt_boxes``, ``gt_classes``, ``gt_masks`` (for the
                mask head), ``instance_source`` (``InstanceSource``; all real without it) and
                ``pool_id``.
            image_ids: per image, its name in warnings; its position in the batch without it.
            probe: other images to learn from in place of this batch's, in a pass of their own.

        Returns:
            A row per pasted instance, image by image, in the order of the targets; on the CPU.
        """
        plan = self.plan(targets, learn=probe is None)
        contribution, _ = self.finish(self.begin(plan, features, targets, image_ids, probe))
        return contribution

    def score(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
        *,
        which: str = "pasted",
    ) -> Contribution:
        """Score without learning; no communication. Arguments as for :meth:`step`.

        Args:
            which: ``"pasted"``, ``"real"`` or ``"all"``.
        """
        plan = self.plan(targets, learn=False, which=which)
        rows = self._ask(plan, features, targets)
        values = HostCopy(rows.values).get()
        self._report(plan.table, values, image_ids)
        return self._contribution(plan.table, values)[plan.wanted]

    def update(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
    ) -> None:
        """Learn from the real instances without scoring; a collective call."""
        plan = self.plan(targets, learn=True, which="none")
        self.finish(self.begin(plan, features, targets, image_ids))

    # -- A step in three parts, so that nobody waits

    def plan(
        self,
        targets: Sequence[Instances],
        *,
        learn: bool,
        which: str = "pasted",
    ) -> Plan:
        """Say what is to be done with a batch.

        Args:
            targets: as for :meth:`step`, on the CPU; for those on a device the host waits.
            learn: whether its real instances are learnt from.
            which: as for :meth:`score`; ``"none"`` scores nothing.
        """
        return plan_batch(
            targets,
            num_classes=self.num_classes,
            learn=learn,
            which=which,
            max_real_per_class=self.max_real_per_class,
            is_known=torch.stack([window.is_full for window in self.reference.values()]).all(0),
            relabel=functools.partial(self.cache.counterfactuals, limit=self.max_counterfactuals),
        )

    def begin(
        self,
        plan: Plan,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
        probe: RealBatch | None = None,
    ) -> Begun:
        """Have the device compute what was planned; a collective call.

        Args:
            plan: of this batch, made after the step before was finished.
            features, targets, image_ids, probe: as for :meth:`step`.
        """
        plans, rows = [plan], [self._ask(plan, features, targets)]
        if probe is not None:
            plans.append(self.plan(probe.targets, learn=True, which="none"))
            rows.append(self._ask(plans[1], probe.features, probe.targets))
        table = InstanceTable.cat([p.table for p in plans])
        known = self._format.known(table, plans[-1], len(rows[0].probabilities))
        values = torch.cat([r.values for r in rows], dim=2) if probe else rows[0].values
        return Begun(
            plans,
            [image_ids, probe.image_ids if probe else None],
            self._exchange.start(
                known,
                [values, rows[-1].extra_norm, rows[0].probabilities],
                rows[-1].learnt,
            ),
        )

    def finish(self, begun: Begun) -> tuple[Contribution, Contribution]:
        """Wait for what was begun, and learn from it; a collective call.

        Returns:
            As :meth:`step`; and the rows of the pasted instances of all processes, rank by rank.
        """
        small, large = begun.exchange.get()
        parts = [self._format.unpack(part) for part in small]
        table = InstanceTable.cat([part.table for part in parts])
        values = torch.cat([part.values for part in parts], dim=2)
        rank = dist.get_rank() if is_distributed() else 0
        first = start = sum(len(part.table) for part in parts[:rank])
        for plan, image_ids in zip(begun.plans, begun.image_ids, strict=False):
            own = slice(start, start + len(plan.table))
            self._report(table[own], values[:, :, own], image_ids)
            start = own.stop
        contribution = self._contribution(table, values)
        if begun.plans[-1].learn:
            self._learn(parts, large, table, contribution)
        plan = begun.plans[0]
        own = contribution[first : first + len(plan.table)]
        return own[plan.wanted], contribution[table.pasted]

    def _ask(
        self, plan: Plan, features: Mapping[str, Tensor], targets: Sequence[Instances]
    ) -> Rows:
        return ask_heads(plan, features, targets, gradients=self.gradients, cache=self.cache)

    # -- From what the heads say to scores; on the CPU

    def _report(self, table: InstanceTable, values: Tensor, image_ids: Sequence | None) -> None:
        """Name what is not finite."""
        images = table.image.tolist()
        names = images if image_ids is None else [image_ids[image] for image in images]
        for head, (loss, norm, *_) in zip(self.heads, values, strict=True):
            asked = table.num_rois > 0
            if head not in self.gradient_heads:
                asked &= table.compared
            bad_loss = asked & ~loss.isfinite()
            bad_gradient = asked & ~norm.isfinite() & ~bad_loss
            for what, bad in (("loss", bad_loss), ("gradient", bad_gradient)):
                self.non_finite.add(f"{what} of the {head} head", bad, names, table.pool_id)

    def _contribution(self, table: InstanceTable, values: Tensor) -> Contribution:
        classes = table.gt_class.clamp(0, self.num_classes - 1)
        scores = score_instances(
            {head: HeadValues(*rows) for head, rows in zip(self.heads, values, strict=True)},
            table.num_rois > 0,
            {head: self.cache.raw_factor(head, classes) for head in self.gradient_heads},
            {
                head: self.reference[loss_key(head)].quantiles(classes, USUAL)
                for head, weight in self.loss_weights.items()
                if weight
            },
            self.score_weights,
            self.loss_weights,
        )
        return Contribution(
            pool_id=table.pool_id,
            image_index=table.image,
            gt_class=table.gt_class,
            phi=scores.phi,
            score=scores.score,
            head_score=scores.head_score,
            head_loss=scores.head_loss,
            num_rois=table.num_rois,
            area=table.area,
        )

    # -- Learning

    def _learn(
        self, parts: list[Part], large: list, table: InstanceTable, contribution: Contribution
    ) -> None:
        """Let directions, windows and confusions follow what all processes found."""
        self.cache.update(self._format.cache_rows(parts, large), candidates(parts))
        of_real = contribution[table.learnt & table.compared]
        for head, loss in of_real.head_loss.items():
            self.reference[loss_key(head)].add_gathered(of_real.gt_class, loss)

    # -- Checkpoints

    def state_dict(self) -> dict:
        return {
            "cache": self.cache.state_dict(),
            "reference": {key: window.state_dict() for key, window in self.reference.items()},
        }

    def load_state_dict(self, state: Mapping | None) -> bool:
        """Restore; True if it could be. Otherwise says why in one sentence and starts fresh."""
        state = state or {}
        if not self.cache.load_state_dict(state.get("cache")):
            return False
        for key, window in self.reference.items():
            window.load_state_dict(state["reference"].get(key, {}))
        return True
