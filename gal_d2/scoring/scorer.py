"""Scores pasted instances against what real instances of their class teach, as a detector trains.

The facade of :mod:`gal_d2.scoring`: for an instance with projected gradient g under its class c,

    phi   = sum over heads of <mean raw gradient of real instances of c, g>
    score = sum over heads of w_h cos(d(c, h), g_h) - v_h z(loss_h)

with d the cached direction (:mod:`gal_d2.scoring.gradient_cache`) and z by how much the loss
exceeds what is usual among recent real instances of c, 0 where it does not: an easy instance is no
better than a usual one. An object that is not what it claims to be shows in the cosine of the box
head, an image of poor quality in the loss of the mask head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from gal_d2.data.fields import NO_POOL_ID, InstanceSource
from gal_d2.data.masks import visible_area
from gal_d2.errors import UserError
from gal_d2.scoring.acceptance import SCORE_KEY, loss_key
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.gathering import gather_columns
from gal_d2.scoring.gradient_cache import REAL, CacheRows, GradientCache
from gal_d2.scoring.non_finite import NonFiniteReport
from gal_d2.scoring.projected_gradients import ProjectedGradients, sum_by_instance
from gal_d2.scoring.reference_window import ReferenceWindow
from gal_d2.scoring.roi_losses import RoiBatch

# A loss further above the usual than this says no more; the unit is that of a standard deviation.
_MAX_EXCESS = 5.0


@dataclass(frozen=True)
class _Table:
    """The M instances of a batch, on the CPU, image by image."""

    image: Tensor
    local: Tensor
    gt_class: Tensor
    pasted: Tensor
    pool_id: Tensor
    usable: Tensor
    area: Tensor  # of the pasted ones; NaN for the others


@dataclass(frozen=True)
class _Scored:
    """Of U instances. ``gradient`` and ``loss`` by head; NaN rows where there is no value."""

    instance: Tensor
    gt_class: Tensor
    num_rois: Tensor
    gradient: dict[str, Tensor]
    loss: dict[str, Tensor]
    probabilities: Tensor | None


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
        score_weights: w, weight of each head's cosine; a head that is not named has 0. None: 1 for
            the box head, or for the only head.
        loss_weights: v, weight of each head's excess loss. None: 0.1 for the box head, 0.2 for the
            mask head.
        projection: k, rows of each layer's two random matrices; None for full gradients.
        seed: of the random matrices.
        bias: also the gradients of biases.
        class_groups: (C,) frequency group of each class, 0 rare, 1 common, 2 frequent; None: one
            group.
        momentum, shrinkage, num_partners, partner_every, by_layer: of the
            :class:`~gal_d2.scoring.gradient_cache.GradientCache`.
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
        score_weights: Mapping[str, float] | None = None,
        loss_weights: Mapping[str, float] | None = None,
        projection: int | None = 16,
        seed: int = 0,
        bias: bool = False,
        class_groups: Tensor | None = None,
        momentum: float = 0.98,
        shrinkage: float = 2.0,
        num_partners: int = 4,
        partner_every: int = 50,
        by_layer: bool = False,
        contrast_heads: Sequence[str] | None = None,
        max_real_per_class: int = 4,
        max_counterfactuals: int = 64,
        reference_size: int = 64,
        reference_min: int = 16,
    ) -> None:
        self.gradients = ProjectedGradients(roi_heads, heads, k=projection, seed=seed, bias=bias)
        self.num_classes = roi_heads.num_classes
        self.score_weights = self._weights("SCORE_WEIGHTS", score_weights, {"box": 1.0})
        if score_weights is None and len(self.heads) == 1:
            self.score_weights = {self.heads[0]: 1.0}
        self.loss_weights = self._weights("LOSS_WEIGHTS", loss_weights, {"box": 0.1, "mask": 0.2})
        if max_real_per_class < 1:
            raise UserError(
                f"GAL.SCORER.MAX_REAL_PER_CLASS is {max_real_per_class}: set it to at least 1."
            )
        self.max_real_per_class, self.max_counterfactuals = max_real_per_class, max_counterfactuals
        if contrast_heads is None:
            contrast_heads = self.gradients.classifying_heads
        unknown = [head for head in contrast_heads if head not in self.heads]
        if unknown:
            raise ValueError(f"contrast_heads has {unknown}, heads are {self.heads}")
        if class_groups is None:
            class_groups = torch.zeros(self.num_classes, dtype=torch.int64)
        layouts = self.gradients.layouts
        self.cache = GradientCache(
            {
                head: [part.stop - part.start for part in layout.slices.values()]
                for head, layout in layouts.items()
            },
            self.num_classes,
            class_groups=class_groups,
            momentum=momentum,
            shrinkage=shrinkage,
            num_partners=num_partners,
            contrast_heads=contrast_heads,
            partner_every=partner_every,
            by_layer=by_layer,
            signature=self.gradients.signature(),
            device=next(roi_heads.parameters()).device,
        )
        self.reference = {
            key: ReferenceWindow(class_groups, size=reference_size, n_min=reference_min)
            for key in (SCORE_KEY, *(loss_key(head) for head in self.heads))
        }
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
        proposals: Sequence[tuple[Tensor, Tensor]] | None = None,
        probe: RealBatch | None = None,
    ) -> Contribution:
        """Score the pasted instances, then learn from the real ones, in one pass of each head.

        A collective call. The scores do not see this batch's real instances: the state of the step
        before is what pasted and real ones alike are compared with.

        Args:
            features: the feature maps that the ROI heads get, by name; gradients never reach them.
            targets: per image; ``gt_boxes``, ``gt_classes``, ``gt_masks`` (for the mask head),
                ``instance_source`` (``InstanceSource``; all real without it) and ``pool_id``.
            image_ids: per image, its name in warnings; its position in the batch without it.
            proposals: ROIs of the pasted instances, as for :meth:`score`. Real ones have one ROI,
                their ground-truth box.
            probe: other images to learn from in place of this batch's, in a pass of their own.

        Returns:
            A row per pasted instance, image by image, in the order of the targets.
        """
        contribution, candidates = self._run(
            features, targets, image_ids, score=True, learn=probe is None, proposals=proposals
        )
        if probe is not None:
            self._run(
                probe.features,
                probe.targets,
                probe.image_ids,
                score=False,
                learn=True,
                candidates=candidates,
            )
        return contribution

    def score(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
        *,
        proposals: Sequence[tuple[Tensor, Tensor]] | None = None,
        which: str = "pasted",
    ) -> Contribution:
        """Score without learning; no communication. Arguments as for :meth:`step`.

        Args:
            proposals: per image, (P, 4) XYXY boxes and (P,) int64, the target that each belongs to:
                ROIs to score on in place of the ground-truth boxes. Gradients of an instance's
                ROIs add up; its losses are averaged.
            which: ``"pasted"``, ``"real"`` or ``"all"``.
        """
        contribution, _ = self._run(
            features, targets, image_ids, score=True, learn=False, proposals=proposals, which=which
        )
        return contribution

    def update(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        image_ids: Sequence | None = None,
    ) -> None:
        """Learn from the real instances without scoring; a collective call."""
        self._run(features, targets, image_ids, score=False, learn=True)

    def _run(
        self,
        features,
        targets,
        image_ids,
        *,
        score: bool,
        learn: bool,
        proposals=None,
        which: str = "pasted",
        candidates: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Contribution, tuple[Tensor, Tensor] | None]:
        """The wanted instances, and what the pasted ones resemble (see :meth:`_candidates`)."""
        device = next(iter(features.values())).device
        if self.cache.device != device:  # detectron2 moves a model after it has built it
            self.cache.to(device)
        table = self._table(targets)
        wanted = {
            "pasted": table.pasted,
            "real": ~table.pasted,
            "all": torch.ones_like(table.pasted),
        }[which]
        chosen = (wanted & table.usable) if score else torch.zeros_like(wanted)
        real = self._choose_real(table) if learn else torch.zeros(0, dtype=torch.int64)
        chosen[real] = True
        instances = chosen.nonzero()[:, 0]

        rois, owner = self._rois(targets, table, instances, real, proposals)
        scored, relabelled = self._gradients(features, rois, owner, instances, table, real)
        self._report(scored, table, image_ids)
        contribution = self._contribution(scored, table)
        if candidates is None:
            candidates = self._candidates(scored, table)
        if learn:
            self._learn(scored, relabelled, contribution, real, candidates)
        return self._select(contribution, scored.instance, wanted, table), candidates

    # -- From targets to gradients

    def _table(self, targets: Sequence[Instances]) -> _Table:
        columns = {
            "image": [],
            "local": [],
            "gt_class": [],
            "pasted": [],
            "pool_id": [],
            "usable": [],
            "area": [],
        }
        for image, target in enumerate(targets):
            n = len(target)
            nothing = torch.zeros(n, dtype=torch.int64)
            classes = target.gt_classes.cpu().long()
            boxes = target.gt_boxes.tensor.detach().cpu()
            source = target.instance_source.cpu() if target.has("instance_source") else nothing
            sides = boxes[:, 2:] - boxes[:, :2]
            pasted = source == InstanceSource.PASTED
            columns["image"].append(nothing + image)
            columns["local"].append(torch.arange(n))
            columns["gt_class"].append(classes)
            columns["pasted"].append(pasted)
            columns["area"].append(visible_area(target, pasted))
            columns["pool_id"].append(
                target.pool_id.cpu().long() if target.has("pool_id") else nothing + NO_POOL_ID
            )
            columns["usable"].append(
                boxes.isfinite().all(1)
                & (sides > 0).all(1)
                & (classes >= 0)
                & (classes < self.num_classes)
            )
        return _Table(**{name: torch.cat(parts) for name, parts in columns.items()})

    def _choose_real(self, table: _Table) -> Tensor:
        """At most ``max_real_per_class`` real instances of each class, spread over the batch."""
        real = (table.usable & ~table.pasted).nonzero()[:, 0]
        chosen = []
        for c in table.gt_class[real].unique():
            mine = real[table.gt_class[real] == c]
            if len(mine) > self.max_real_per_class:
                step = len(mine) / self.max_real_per_class
                mine = mine[(torch.arange(self.max_real_per_class) * step).long()]
            chosen.append(mine)
        return torch.cat(chosen).sort().values if chosen else real

    def _rois(self, targets, table: _Table, instances: Tensor, real: Tensor, proposals):
        """Regions of the given instances, and (M,) which of them owns each region.

        Those that are learnt from (``real``) have one, their box, with proposals too.
        """
        boxes, masks, owner = [], [], []
        position = torch.full((len(table.image),), -1, dtype=torch.int64)
        position[instances] = torch.arange(len(instances))
        learnt = torch.zeros(len(table.image), dtype=torch.bool)
        learnt[real] = True
        first = 0
        for image, target in enumerate(targets):
            here = position[first : first + len(target)]
            by_box = (here >= 0) & (learnt[first : first + len(target)] | (proposals is None))
            first += len(target)
            index = by_box.nonzero()[:, 0]
            box = target.gt_boxes.tensor.detach()[index.to(target.gt_boxes.device)]
            if proposals is not None:
                proposed, belongs = proposals[image]
                belongs = belongs.cpu().long()
                keep = (here[belongs] >= 0) & ~by_box[belongs]
                index = torch.cat([index, belongs[keep]])
                box = torch.cat([box, proposed.detach()[keep.to(proposed.device)].to(box)])
            boxes.append(Boxes(box))
            owner.append(here[index])
            if self.gradients.need_masks:
                masks.append(target.gt_masks[index.to(target.gt_masks.device)])
        return RoiBatch(boxes, masks or None), torch.cat(owner)

    def _gradients(self, features, rois, owner, instances, table, real):
        """Gradients of the instances, and the cache rows of relabelled real ones by head."""
        device = self.cache.device
        classes = table.gt_class[instances]
        row, as_class, slot = self.cache.counterfactuals(
            table.gt_class[real], self.max_counterfactuals
        )
        region_of = torch.zeros(len(instances), dtype=torch.int64)
        region_of[owner] = torch.arange(len(owner))  # the only one of a real instance
        region = region_of[torch.searchsorted(instances, real)][row]
        gradient, loss, relabelled, probabilities = {}, {}, {}, None
        counts = torch.bincount(owner, minlength=len(instances)).to(device)
        owner = owner.to(device)
        own_rows = torch.arange(len(owner))
        for head in self.heads:
            contrast = head in self.cache.contrast_heads
            extra = len(row) if contrast else 0
            result = self.gradients(
                head,
                features,
                rois,
                torch.cat([classes[owner.cpu()], as_class[:extra]]),
                torch.cat([own_rows, region[:extra]]),
            )
            own, n = len(own_rows), len(instances)
            gradient[head] = sum_by_instance(result.gradient[:own], owner, n)
            loss[head] = sum_by_instance(result.loss[:own], owner, n) / counts
            if result.probabilities is not None:
                probabilities = sum_by_instance(result.probabilities[:own], owner, n)
                probabilities /= counts[:, None]
            relabelled[head] = CacheRows(result.gradient[own:], as_class[:extra], slot[:extra])
        scored = _Scored(instances, classes, counts, gradient, loss, probabilities)
        return scored, relabelled

    def _report(self, scored: _Scored, table: _Table, image_ids: Sequence | None) -> None:
        """Name what is not finite; make its rows NaN, so that nothing is computed with them."""
        images = table.image[scored.instance].tolist()
        names = images if image_ids is None else [image_ids[image] for image in images]
        pool_ids = table.pool_id[scored.instance]
        has_roi = scored.num_rois > 0
        for head in self.heads:
            bad_loss = has_roi & ~scored.loss[head].isfinite()
            bad_gradient = has_roi & ~scored.gradient[head].isfinite().all(1)
            self.non_finite.add(f"loss of the {head} head", bad_loss, names, pool_ids)
            self.non_finite.add(
                f"gradient of the {head} head", bad_gradient & ~bad_loss, names, pool_ids
            )
            bad = bad_loss | bad_gradient
            scored.gradient[head][bad] = torch.nan
            scored.loss[head][bad] = torch.nan

    # -- From gradients to scores

    @torch.no_grad()
    def _contribution(self, scored: _Scored, table: _Table) -> Contribution:
        classes, cache = scored.gt_class, self.cache
        phi = torch.zeros(len(classes), device=cache.device)
        head_score = {}
        for head, gradient in scored.gradient.items():
            phi += (cache.real_gradient(head, classes) * gradient).sum(1)
            unit = cache.unit(head, gradient)
            head_score[head] = (cache.direction(head, classes) * unit).sum(1)
        score = torch.zeros_like(phi)
        for head, weight in self.score_weights.items():
            score += weight * head_score[head]
        for head, weight in self.loss_weights.items():
            if weight:
                score -= weight * self._excess(head, classes, scored.loss[head])
        return Contribution(
            pool_id=table.pool_id[scored.instance].to(cache.device),
            image_index=table.image[scored.instance].to(cache.device),
            gt_class=classes.to(cache.device),
            phi=phi,
            score=score,
            head_score=head_score,
            head_loss=scored.loss,
            num_rois=scored.num_rois,
            area=table.area[scored.instance].to(cache.device),
        )

    def _excess(self, head: str, classes: Tensor, loss: Tensor) -> Tensor:
        """(N,) loss above the median of recent real instances of the class, over half the distance
        of their 16th and 84th percentile (a standard deviation, were they normal); 0 below it."""
        window = self.reference[loss_key(head)]
        low, median, high = (window.quantile(classes, q).to(loss) for q in (0.16, 0.5, 0.84))
        # A class whose few instances happen to agree is no reason to divide by almost nothing.
        spread = torch.maximum((high - low) / 2, 0.05 * median.abs()).clamp(min=1e-6)
        return ((loss - median) / spread).clamp(0, _MAX_EXCESS)

    def _select(
        self, contribution: Contribution, instance: Tensor, wanted: Tensor, table: _Table
    ) -> Contribution:
        """Rows of the wanted instances; missing values for those that were not scored."""
        wanted = wanted.nonzero()[:, 0]
        device = contribution.score.device
        position = torch.full((len(table.image),), -1, dtype=torch.int64)
        position[instance] = torch.arange(len(instance))
        source = position[wanted].to(device)
        absent = source < 0

        def values(column: Tensor, missing: float) -> Tensor:
            padded = torch.cat([column, column.new_full((1,), missing)])
            return padded[torch.where(absent, len(column), source)]

        return Contribution(
            pool_id=table.pool_id[wanted].to(device),
            image_index=table.image[wanted].to(device),
            gt_class=table.gt_class[wanted].to(device),
            phi=values(contribution.phi, torch.nan),
            score=values(contribution.score, torch.nan),
            head_score={h: values(c, torch.nan) for h, c in contribution.head_score.items()},
            head_loss={h: values(c, torch.nan) for h, c in contribution.head_loss.items()},
            num_rois=values(contribution.num_rois, 0),
            area=table.area[wanted].to(device),
        )

    # -- Learning

    def _learn(
        self,
        scored: _Scored,
        relabelled: dict[str, CacheRows],
        contribution: Contribution,
        real: Tensor,
        candidates: tuple[Tensor, Tensor] | None,
    ) -> None:
        rows = torch.searchsorted(scored.instance, real)
        self.cache.update(
            {
                head: CacheRows(
                    torch.cat(
                        [scored.gradient[head][rows.to(extra.gradient.device)], extra.gradient]
                    ),
                    torch.cat([scored.gt_class[rows], extra.classes]),
                    torch.cat([torch.full_like(rows, REAL), extra.slots]),
                )
                for head, extra in relabelled.items()
            },
            candidates,
        )
        of_real = contribution[rows.to(contribution.score.device)]
        keys = [SCORE_KEY, *(loss_key(head) for head in self.heads)]
        values = [of_real.score, *(of_real.head_loss[head] for head in self.heads)]
        classes, *values = gather_columns(of_real.gt_class, *values)
        for key, column in zip(keys, values, strict=True):
            self.reference[key].add_gathered(classes, column)

    def _candidates(self, scored: _Scored, table: _Table) -> tuple[Tensor, Tensor] | None:
        """(N,) classes and (N, C) class probabilities of the scored pasted instances."""
        if scored.probabilities is None:
            return None
        pasted = table.pasted[scored.instance]
        return scored.gt_class[pasted], scored.probabilities.cpu()[pasted]

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
