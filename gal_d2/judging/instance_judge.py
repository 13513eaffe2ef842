"""Decides, inside a training step, which pasted instances train the heads.

:class:`InstanceJudge` is asked by the ROI heads (:mod:`gal_d2.modeling.roi_heads`); it has the
scorer score, the policy decide and the ledger record. What it has in common with the published
recipe's :class:`~gal_d2.judging.batch_judge.BatchJudge` is :class:`~gal_d2.judging.judge.Judge`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from gal_d2.datasets.probe import probe_samples
from gal_d2.errors import UserError
from gal_d2.judging.build_scorer import build_scorer
from gal_d2.judging.judge import Judge, class_groups
from gal_d2.modeling.frozen import frozen_model
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.plan import Plan
from gal_d2.scoring.scorer import Begun, ContributionScorer, RealBatch
from gal_d2.selection.decision import AcceptanceContext, Decision, step_generator
from gal_d2.selection.policies import AcceptancePolicy, AlwaysAccept, build_acceptance_policy
from gal_d2.selection.posterior import Posterior


class InstanceJudge(Judge):
    """Scores the pasted instances of each training step and accepts or rejects each.

    Called by the ROI heads of the model in training, once a step, on every process. Also built as
    ``InstanceJudge(cfg, roi_heads, seed, model)``.

    Args:
        roi_heads: whose gradients are looked at.
        scorer: of these heads.
        policy: accepts and rejects.
        posterior: of what ``scorer`` gives.
        probe_model: the detector that ``roi_heads`` is part of, to learn from held-out images; None
            to learn from the training batch.
        min_age: steps in which real instances of a class must have come for a score to count.
        period: every period-th step is scored and learnt from. At the others the judge rests: it
            enters what was pasted, asks nothing of the heads and exchanges nothing.
        metadata, output_dir, seed: as for :class:`Judge`.

    Raises:
        UserError: an option is out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        roi_heads: nn.Module,
        scorer: ContributionScorer,
        policy: AcceptancePolicy,
        posterior: Posterior,
        probe_model: nn.Module | None = None,
        min_age: int = 20,
        period: int = 1,
        metadata: Metadata,
        output_dir: str | Path,
        seed: int = 0,
    ) -> None:
        super().__init__(metadata=metadata, output_dir=output_dir, seed=seed)
        self.roi_heads = roi_heads
        self.scorer, self.policy, self.posterior = scorer, policy, posterior
        self.model = probe_model
        self._probe: list[dict] = []
        self.min_age = min_age
        self.period = period
        self._check_period()
        # By start_step, for one forward pass: a user's hook may compute a loss in training mode.
        self._armed = False
        self._plan: Plan | None = None
        # What finish_step has to finish; of a step that is not scored, its plan.
        self._begun: Begun | Plan | None = None
        self._generator: torch.Generator | None = None
        self._seconds = self._scored_seconds = 0.0

    @classmethod
    def from_config(
        cls, cfg: CfgNode, roi_heads: nn.Module, seed: int, model: nn.Module | None = None
    ) -> dict[str, Any]:
        node = cfg.GAL.SCORER
        if node.TARGET not in ("train", "probe"):
            raise UserError(f"GAL.SCORER.TARGET is '{node.TARGET}': choose train or probe.")
        if node.TARGET == "probe" and model is None:
            raise ValueError("with GAL.SCORER.TARGET 'probe' the judge needs the model")
        run = cls._run_arguments(cfg, seed)
        return {
            **run,
            "roi_heads": roi_heads,
            "scorer": build_scorer(cfg, roi_heads, class_groups(run["metadata"])),
            "policy": build_acceptance_policy(cfg),
            "posterior": Posterior.from_config(cfg),
            "probe_model": model if node.TARGET == "probe" else None,
            "min_age": cfg.GAL.ACCEPT.WARM_UP.MIN_AGE,
            "period": node.PERIOD,
        }

    def _check_period(self) -> None:
        key = f"GAL.SCORER.PERIOD is {self.period}"
        if self.period < 1:
            raise UserError(f"{key}: set it to 1 or more.")
        if self.period > 1 and self.policy.needs_scores:
            raise UserError(
                f"{key}, but with GAL.ACCEPT.POLICY '{self.policy.name}' every step's pastes are "
                "accepted or rejected in that step: set GAL.SCORER.PERIOD to 1, or "
                "GAL.ACCEPT.POLICY to always."
            )
        if self.period > 1 and self.model is not None:
            raise UserError(
                f"{key}, but GAL.SCORER.TARGET is 'probe', which learns from images of every step: "
                "set GAL.SCORER.PERIOD to 1, or GAL.SCORER.TARGET to train."
            )

    @property
    def is_scored(self) -> bool:
        """Whether this step is; by its number alone, so that all processes agree."""
        return (self.step + 1) % self.period == 0

    def start_step(self, step: int, batch: list[dict]) -> list[dict]:
        if self._armed:
            raise UserError(
                f"The ROI heads {type(self.roi_heads).__name__} did not ask the judge in the last "
                "step: have their forward call super().forward, and the model call its roi_heads."
            )
        self.finish_step()  # of the last one, where a training loop of the user's own has not
        start = time.perf_counter()
        batch = super().start_step(step, batch)
        self._armed = True
        self._probe = probe_samples(batch) if self.model is not None else []
        # On the CPU, while the device still does the last step. Targets that a model makes of other
        # things are not known yet.
        self._plan = None
        if all("instances" in sample for sample in batch):
            self._plan = self._plan_for([sample["instances"] for sample in batch])
        self._seconds = time.perf_counter() - start
        return batch

    def _plan_for(self, targets: Sequence[Instances]) -> Plan:
        return self.scorer.plan(targets, learn=self.is_scored and self.model is None)

    def __call__(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
    ) -> list[Tensor] | None:
        """Per image, (N,) bool: True for the targets that must not train the heads.

        Objects that are not from the pool are never rejected: their labels are real. A call that
        :meth:`start_step` did not announce rejects nothing and teaches nothing. Where a policy
        does not look at scores, nothing waits for them: :meth:`finish_step` does.

        Returns:
            None: reject nothing.
        """
        if not self._armed:
            return None
        self._armed = False
        start = time.perf_counter()
        self._generator = step_generator(self.seed, self.step, comm.get_rank())
        if self._plan is None or not self._plan.is_of(targets):
            self._plan = self._plan_for(targets)
        if not self.is_scored:
            self._begun = self._plan
            self._seconds += time.perf_counter() - start
            return None
        features = {name: feature.detach() for name, feature in features.items()}
        probe = self._probe_batch(features, targets) if self.model is not None else None
        self._begun = self.scorer.begin(self._plan, features, targets, self.image_ids, probe)
        self._seconds += time.perf_counter() - start
        if not self.policy.needs_scores:
            return None
        self.finish_step()
        contribution, decision = self.judged.contribution, self.judged.decision
        return self._plan.by_target(~decision.accept & (contribution.pool_id >= 0))

    def finish_step(self) -> None:
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        start = time.perf_counter()
        if isinstance(begun, Plan):
            contribution = unscored(begun, self.scorer.heads)
        else:
            contribution, of_all = self.scorer.finish(begun)
            self.posterior.add_gathered(of_all, self.step, leave_out=self.is_young(of_all))
        context = AcceptanceContext(
            class_group=self.class_groups,
            num_updates=self.scorer.cache.num_updates,
            generator=self._generator,
            value=self._value(contribution),
        )
        decision = self.policy.decide(contribution, context)
        self._seconds += time.perf_counter() - start
        if not isinstance(begun, Plan):
            self._scored_seconds = self._seconds
        self.record(contribution, decision, self._scored_seconds / self.period)

    @torch.no_grad()
    def _probe_batch(
        self, features: Mapping[str, Tensor], targets: Sequence[Instances]
    ) -> RealBatch:
        """The feature maps and targets of this step's probe images."""
        if not self._probe:  # the other processes may have some: learning is a collective call
            return RealBatch(features, [target[:0] for target in targets])
        with frozen_model(self.model):
            images = self.model.preprocess_image(self._probe)
            features = self.model.backbone(images.tensor)
        targets = [sample["instances"] for sample in self._probe]
        return RealBatch(features, targets, [sample["image_id"] for sample in self._probe])

    def _value(self, contribution: Contribution) -> Tensor:
        """(N,) float32 on the CPU; NaN for one that has no score yet or is not from the pool."""
        belief = self.posterior.get(contribution.pool_id)
        value = torch.from_numpy(self.posterior.value_of(belief)).float()
        return value.masked_fill(torch.from_numpy(belief.count == 0), torch.nan)

    def helpful(self, contribution: Contribution, decision: Decision) -> tuple[Tensor, Tensor]:
        """Where everything drawn trains, those that are better than their class's candidates."""
        if decision.policy != AlwaysAccept.name:
            return super().helpful(contribution, decision)
        value = self._value(contribution)
        return value > 0, value.isfinite() & (contribution.num_rois > 0)

    def is_young(self, contribution: Contribution) -> Tensor:
        """(N,) bool: whose score is not worth remembering, its class's direction being too new."""
        return self.scorer.cache.num_updates[contribution.gt_class] < self.min_age

    def state_dict(self) -> dict:
        own = {"scorer": self.scorer.state_dict(), "policy": self.policy.state_dict()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.scorer.load_state_dict(state.get("scorer")):
            self.policy.load_state_dict(state["policy"])

    def metrics(self) -> dict[str, float]:
        """``gal/cache_age``: mean number of steps since a pasted class's direction changed."""
        age = self.scorer.cache.steps_since_update[self.judged.contribution.gt_class]
        return {"gal/cache_age": age[age >= 0].float().mean().item()} if (age >= 0).any() else {}


def unscored(plan: Plan, heads: Sequence[str]) -> Contribution:
    """The pastes of a plan that nobody asked the heads about: no ROI, and no score."""
    table = plan.table[plan.wanted]
    nothing = torch.full((len(table),), torch.nan)
    return Contribution(
        pool_id=table.pool_id,
        image_index=table.image,
        gt_class=table.gt_class,
        phi=nothing,
        score=nothing,
        head_score=dict.fromkeys(heads, nothing),
        head_loss=dict.fromkeys(heads, nothing),
        num_rois=torch.zeros_like(table.num_rois),
        area=table.area,
    )
