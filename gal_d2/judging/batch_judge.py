"""The published recipe, ``GAL.ACCEPT.UNIT: batch``: a step's pastes are accepted all or none.

arXiv 2406.02435 asks once a step whether the whole model's gradient on the pasted objects points
where that on real images of their classes does. It costs two more forward and backward passes.
It is here to be compared with: what it needs is done as well as we can, on the same data, with the
same detector.

Three things are as in the paper: the gradients are those of the classification loss by every
trainable weight; the reference averages over steps with momentum 0.1; and a batch that is not
accepted is replaced by the same images without the pastes. One is not: all processes decide
together, on the cosine of the mean gradients, so their number does not matter.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from gal_d2.copy_paste.fields import NO_POOL_ID, InstanceSource
from gal_d2.copy_paste.masks import visible_area
from gal_d2.datasets.probe import probe_samples
from gal_d2.distributed import is_distributed
from gal_d2.errors import UserError
from gal_d2.judging.judge import Judge
from gal_d2.modeling.frozen import frozen_model
from gal_d2.modeling.roi_heads import can_classify
from gal_d2.scoring.classification_loss import classification_loss
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.gradients.whole_gradient import MomentumGradient, flat_gradient, mean_gradient
from gal_d2.scoring.non_finite import NonFiniteReport
from gal_d2.selection.batch_rules import BatchDecision, BatchRule, build_batch_rule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassificationGradient:
    """Of a batch of one process.

    Attributes:
        total: (P,) float32, summed over ROIs and stages, by all trainable weights.
        num_rois: how many ROIs it sums over (of a cascade, in the stages together).
        rois_of: per image, (N,) int64, how many of them are matched to each target.
    """

    total: Tensor
    num_rois: int
    rois_of: list[Tensor]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The weights that training changes, in the model's order."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def classification_gradient(
    model: GeneralizedRCNN,
    batch: Sequence[dict],
    *,
    pasted_only: bool,
    autocast_dtype: torch.dtype | None = None,
    loss_scale: float = 1.0,
) -> ClassificationGradient:
    """The gradient of the box head's classification loss by the whole model's weights.

    Proposals and ROIs are sampled as for training. The pass leaves no trace: statistics are frozen,
    random generators are put back, and nothing is added to the weights' ``.grad``, so that
    DistributedDataParallel does not notice it. With one image more or less in the batch the others'
    share of ``total`` is the same (but for the padding of images of different sizes).

    Args:
        model: in training mode, not wrapped; its ROI heads are GALROIHeads or GALCascadeROIHeads.
        batch: samples of the mapper; "sample_seed" seeds the choice of their ROIs.
        pasted_only: only ROIs that are matched to pasted objects count.
        autocast_dtype: as in training.
        loss_scale: of fp16; see :func:`~gal_d2.scoring.gradients.whole_gradient.flat_gradient`.
    """
    device = model.device
    targets = [sample["instances"].to(device) for sample in batch]
    seeds = [sample.get("sample_seed", 0) for sample in batch]
    cuda = [device] if device.type == "cuda" else []
    with (
        frozen_model(model),
        torch.random.fork_rng(cuda),
        EventStorage(),  # not the training's: these are not its proposals
        torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None),
    ):
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        with torch.no_grad():
            torch.manual_seed(0)  # of the RPN's loss, which is not used
            proposals, _ = model.proposal_generator(images, features, targets)
        stages = model.roi_heads.classify(features, proposals, targets, seeds)

        total, num_rois = 0.0, 0
        rois_of = [torch.zeros(len(t), dtype=torch.int64, device=device) for t in targets]
        for rois in stages:
            chosen = torch.ones_like(rois.target, dtype=torch.bool)
            if pasted_only:
                chosen = _is_pasted(rois.image, rois.target, targets)
            loss = classification_loss(rois.logits.float(), rois.gt_classes, rois.predictor)
            total = total + loss[chosen].sum()
            num_rois += int(chosen.sum())
            for image, counts in enumerate(rois_of):
                mine = rois.target[chosen & (rois.image == image)]
                counts += torch.bincount(mine[mine >= 0], minlength=len(counts))
    # The scale fits losses that are means over ROIs; a sum would overflow fp16 sooner.
    scale = loss_scale / max(num_rois, 1)
    gradient = flat_gradient(total, trainable(model), scale=scale)
    return ClassificationGradient(gradient, num_rois, rois_of)


def _is_pasted(image: Tensor, target: Tensor, targets: Sequence) -> Tensor:
    """(R,) bool: which ROIs are matched to a pasted object."""
    starts, is_pasted = [0], []
    for instances in targets:
        starts.append(starts[-1] + len(instances))
        is_pasted.append(instances.instance_source == InstanceSource.PASTED)
    # One more, for the ROIs of the background.
    flat = torch.cat([*is_pasted, torch.zeros(1, dtype=torch.bool, device=target.device)])
    place = torch.tensor(starts, device=target.device)[image] + target
    return flat[torch.where(target >= 0, place, len(flat) - 1)]


def batch_contribution(
    batch: Sequence[dict], rois_of: Mapping[int, Tensor], cosine: float, product: float
) -> Contribution:
    """A row per pasted instance, image by image; all have the batch's score.

    Args:
        batch: samples of the mapper.
        rois_of: by position in the batch, (N,) the ROIs of each target; not of images without
            pastes.
        cosine, product: of the batch's gradient with the average one; NaN where there is none.
    """
    rows = []
    for image, num_rois in rois_of.items():
        instances = batch[image]["instances"]
        pasted = instances.instance_source == InstanceSource.PASTED
        count = int(pasted.sum())
        rows.append(
            Contribution(
                pool_id=instances.pool_id[pasted],
                image_index=torch.full((count,), image),
                gt_class=instances.gt_classes[pasted],
                phi=torch.full((count,), product),
                score=torch.full((count,), cosine),
                head_score={},
                head_loss={},
                num_rois=num_rois.cpu()[pasted],
                area=visible_area(instances, pasted)[pasted],
            )
        )
    return Contribution.cat(rows) if rows else Contribution.empty(())


class BatchJudge(Judge):
    """Accepts a step's pastes, or has the step train on the same images without them.

    Also built as ``BatchJudge(cfg, model, seed, autocast_dtype)``.

    Args:
        model: the detector, not wrapped in DistributedDataParallel.
        rule: accepts or rejects.
        momentum: of the average gradient, weight of the old one.
        autocast_dtype: as in training.
        metadata, output_dir, seed: as for :class:`~gal_d2.judging.judge.Judge`.

    Attributes:
        cache: the average gradient on probe images.
        decision: of the last step; None before the first.
        loss_scale: asked for the factor of fp16's losses.

    Raises:
        UserError: a model that this cannot look into, or an option out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        rule: BatchRule,
        momentum: float = 0.1,
        autocast_dtype: torch.dtype | None = None,
        metadata: Metadata,
        output_dir: str | Path,
        seed: int = 0,
    ) -> None:
        heads = getattr(model, "roi_heads", None)
        if not isinstance(model, GeneralizedRCNN) or not can_classify(heads):
            raise UserError(
                f"GAL.ACCEPT.UNIT is 'batch', which works with a GeneralizedRCNN whose ROI heads "
                f"sample, match and run as StandardROIHeads or CascadeROIHeads do, and not with "
                f"{type(model).__name__} with {type(heads).__name__}: set MODEL.ROI_HEADS.NAME to "
                "GALROIHeads or GALCascadeROIHeads, or GAL.ACCEPT.UNIT to instance."
            )
        if not 0 <= momentum < 1:
            raise UserError(
                f"GAL.ACCEPT.BATCH_MOMENTUM is {momentum}: set it to a value in [0, 1)."
            )
        super().__init__(metadata=metadata, output_dir=output_dir, seed=seed)
        self.model = model
        self.autocast_dtype = autocast_dtype
        self.rule = rule
        self.cache = MomentumGradient(momentum)
        self.non_finite = NonFiniteReport()
        self.decision: BatchDecision | None = None
        self.loss_scale: Callable[[], float] = lambda: 1.0

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        seed: int,
        autocast_dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        return {
            **cls._run_arguments(cfg, seed),
            "model": model,
            "rule": build_batch_rule(cfg),
            "momentum": cfg.GAL.ACCEPT.BATCH_MOMENTUM,
            "autocast_dtype": autocast_dtype,
        }

    def start_step(self, step: int, batch: list[dict]) -> list[dict]:
        """Decide; give back the batch, or its samples without pastes. A collective call."""
        start = time.perf_counter()
        super().start_step(step, batch)
        real, _ = self._mean_gradient(probe_samples(batch), pasted_only=False)
        if real is not None:
            self.cache.update(real)
        with_pastes = [image for image, sample in enumerate(batch) if sample["num_pasted"]]
        pasted, rois_of = self._mean_gradient([batch[i] for i in with_pastes], pasted_only=True)
        cosine = product = math.nan
        if pasted is not None and real is not None:
            cosine, product = self.cache.compare(pasted)
        self.decision = self.rule.decide(cosine)
        contribution = batch_contribution(
            batch, dict(zip(with_pastes, rois_of, strict=True)), cosine, product
        )
        self.record(
            contribution,
            self.decision.for_instances(len(contribution)),
            time.perf_counter() - start,
        )
        if self.decision.accept:
            return batch
        return [sample["unpasted"] for sample in batch]

    def finish_step(self) -> None:
        """Everything was said before the forward pass."""

    def _mean_gradient(
        self, samples: list[dict], *, pasted_only: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """(P,) mean over the ROIs of all processes, None where there is none or it is not finite;
        and, per image, the number of ROIs of each of this process's targets. A collective call."""
        if samples:
            own = classification_gradient(
                self.model,
                samples,
                pasted_only=pasted_only,
                autocast_dtype=self.autocast_dtype,
                loss_scale=self.loss_scale(),
            )
        else:
            weights = trainable(self.model)
            nothing = torch.zeros(sum(w.numel() for w in weights), device=weights[0].device)
            own = ClassificationGradient(nothing, 0, [])
        # By the norm: `isfinite` of so many numbers takes as long as a backward pass.
        is_finite = math.isfinite(own.total.norm().item())
        if not is_finite:
            self.non_finite.add(
                f"whole-model gradient on {'pasted objects' if pasted_only else 'probe images'}",
                torch.ones(len(samples), dtype=torch.bool),
                [sample["image_id"] for sample in samples],
                torch.full((len(samples),), NO_POOL_ID),
            )
        mean, num_rois = mean_gradient(own.total, own.num_rois)
        is_finite = math.isfinite(mean.norm().item()) if is_distributed() else is_finite
        return (mean if num_rois > 0 and is_finite else None), own.rois_of

    def metrics(self) -> dict[str, float]:
        """``gal/threshold``: what the cosine had to reach; left out where there was none."""
        threshold = self.decision.threshold
        return {} if math.isnan(threshold) else {"gal/threshold": threshold}

    def state_dict(self) -> dict:
        own = {"cache": self.cache.state_dict(), "rule": self.rule.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if "cache" not in state or "rule" not in state:
            logger.warning(
                "The checkpoint was made with GAL.ACCEPT.UNIT 'instance': the gradient on real "
                "images starts afresh."
            )
        elif self.cache.load_state_dict(state["cache"], trainable(self.model)):
            self.rule.load_state_dict(state["rule"])
