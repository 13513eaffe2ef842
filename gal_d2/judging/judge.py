"""Decides, inside a training step, which pasted instances train the heads.

:class:`InstanceJudge` is asked by the ROI heads (:mod:`gal_d2.modeling.roi_heads`); it has the
scorer score, the policy decide and the ledger record. What it has in common with the published
recipe's :class:`~gal_d2.judging.batch_judge.BatchJudge` is :class:`Judge`.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from gal_d2.datasets.probe import probe_samples
from gal_d2.datasets.registration import load_metadata
from gal_d2.errors import UserError
from gal_d2.modeling.frozen import frozen_model
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.scorer import Begun, ContributionScorer, Plan, RealBatch
from gal_d2.selection.decision import AcceptanceContext, Decision, step_generator
from gal_d2.selection.ledger import LedgerWriter
from gal_d2.selection.policies import AcceptancePolicy, AlwaysAccept, build_acceptance_policy
from gal_d2.selection.posterior import Posterior
from gal_d2.visualization.contact_sheet import save_png
from gal_d2.visualization.samples import decision_sheet

logger = logging.getLogger(__name__)

GROUPS = "rcf"  # frequency groups by number, as the scoring package has them
SCORE_QUANTILES = (0.1, 0.5, 0.9)


def class_groups(metadata: Metadata) -> Tensor:
    """(C,) int64, the frequency group of each class of a data set, an index into ``GROUPS``."""
    return torch.tensor([GROUPS.index(f) for f in metadata.category_frequency])


def build_scorer(
    cfg: CfgNode, roi_heads: nn.Module, class_groups: Tensor, **options: Any
) -> ContributionScorer:
    """The scorer that ``GAL.SCORER`` describes.

    Args:
        cfg: the whole config.
        roi_heads: whose gradients are looked at.
        class_groups: (C,) int64, place of each class's frequency in ``GROUPS``.
        options: further arguments of :class:`~gal_d2.scoring.scorer.ContributionScorer`.

    Raises:
        UserError: an option is out of range.
    """
    node = cfg.GAL.SCORER
    for key in ("SCORE_WEIGHTS", "LOSS_WEIGHTS"):
        if len(node[key]) != len(node.HEADS):
            raise UserError(
                f"GAL.SCORER.{key} has {len(node[key])} entries, GAL.SCORER.HEADS has "
                f"{len(node.HEADS)}: give one weight for each head."
            )
    return ContributionScorer(
        roi_heads,
        heads=node.HEADS,
        gradient_heads=gradient_heads(cfg),
        score_weights=dict(zip(node.HEADS, node.SCORE_WEIGHTS, strict=True)),
        loss_weights=dict(zip(node.HEADS, node.LOSS_WEIGHTS, strict=True)),
        projection=node.PROJECTION,
        seed=node.SEED,
        class_groups=class_groups,
        momentum=node.MOMENTUM,
        num_partners=node.NUM_PARTNERS,
        **options,
    )


def gradient_heads(cfg: CfgNode) -> list[str]:
    """The heads of ``GAL.SCORER.HEADS`` whose gradients are taken.

    Raises:
        UserError: ``GAL.SCORER.GRADIENTS`` is neither "needed" nor "all".
    """
    node, signals = cfg.GAL.SCORER, cfg.GAL.POSTERIOR.SIGNALS
    if node.GRADIENTS not in ("needed", "all"):
        raise UserError(f"GAL.SCORER.GRADIENTS is '{node.GRADIENTS}': choose needed or all.")
    needed = [
        head
        for head, weight in zip(node.HEADS, node.SCORE_WEIGHTS, strict=True)
        if node.GRADIENTS == "all" or weight or "phi" in signals or f"{head}_score" in signals
    ]
    return needed or node.HEADS[:1]  # a class without a direction would stay young for ever


@dataclass
class Verdict:
    """The last step's scores and decisions, a row per pasted instance.

    Attributes:
        contribution, decision: of the same N instances.
        seconds: spent on them.
    """

    contribution: Contribution
    decision: Decision
    seconds: float


class Judge(ABC):
    """What the trainer and :class:`JudgeHook` know of a judge, whichever unit it decides on.

    Args:
        metadata: of the training set (:func:`~gal_d2.datasets.registration.load_metadata`).
        output_dir: has the ledger.
        seed: the run's seed.

    Attributes:
        class_groups: (C,) int64, frequency group of each class, an index into ``GROUPS``.
        posterior: what is known of each cut-out; None for a judge that scores no single ones.
        verdict: of the last step; None before the first.
    """

    def __init__(self, *, metadata: Metadata, output_dir: str | Path, seed: int = 0) -> None:
        self.class_groups = class_groups(metadata)
        self._metadata = metadata
        self._output_dir = Path(output_dir)
        self.ledger = self.open_ledger("ledger")
        self.posterior: Posterior | None = None
        self.seed = seed
        self.step = 0
        self.image_ids: Sequence[int] = ()
        self.verdict: Verdict | None = None
        self._restored = False

    @staticmethod
    def _run_arguments(cfg: CfgNode, seed: int) -> dict[str, Any]:
        """Arguments of this class from the config of a run."""
        return {
            "metadata": load_metadata(cfg.DATASETS.TRAIN[0]),
            "output_dir": cfg.OUTPUT_DIR,
            "seed": seed,
        }

    def open_ledger(self, name: str) -> LedgerWriter:
        """A ledger in the folder ``name`` of the run's output."""
        class_of_category = self._metadata.thing_dataset_id_to_contiguous_id
        return LedgerWriter(
            self._output_dir / name,
            category_ids=sorted(class_of_category, key=class_of_category.get),
            category_frequency=self._metadata.category_frequency,
            category_names=self._metadata.thing_classes,
            rank=comm.get_rank(),
            num_processes=comm.get_world_size(),
        )

    def start_step(self, step: int, batch: list[dict]) -> list[dict]:
        """Say which step comes, and with which samples, before the model is called.

        Returns:
            The samples to train on.
        """
        self.step = step
        self.image_ids = [sample["image_id"] for sample in batch]
        return batch

    def record(self, contribution: Contribution, decision: Decision, seconds: float) -> None:
        """Enter the step's N instances and what became of them."""
        self.ledger.append(self.step, contribution, decision, self.image_ids)
        self.verdict = Verdict(contribution, decision, seconds)

    @abstractmethod
    def finish_step(self) -> None:
        """Enter what became known since the forward pass; called while the device goes backward.

        A collective call.
        """

    def helpful(self, contribution: Contribution, decision: Decision) -> tuple[Tensor, Tensor]:
        """(N,) bool: which instances are thought to help, and of which that can be said.

        It guides what is generated next.
        """
        return decision.accept, ~decision.undecided

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Scalars of the last step besides those of :func:`decision_metrics`."""

    def state_dict(self) -> dict:
        """Tensors, numbers and strings only, in nested dicts."""
        return {} if self.posterior is None else {"posterior": self.posterior.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what :meth:`state_dict` gave; a warning where it is of another kind."""
        self._restored = True
        if self.posterior is not None:
            self.posterior.load_state_dict(state.get("posterior", {}))

    def resume(self, step: int) -> None:
        """Make ready to go on at ``step``: take back what the ledger has of it and later steps."""
        if step > 0 and not self._restored:
            logger.warning(
                "The checkpoint was made without scoring: directions and thresholds start afresh "
                "at step %d, and GAL.ACCEPT.WARM_UP applies until they are known.",
                step,
            )
        self.ledger.resume(step)


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
        # By start_step, for one forward pass: a user's hook may compute a loss in training mode.
        self._armed = False
        self._plan: Plan | None = None
        self._begun: Begun | None = None
        self._generator: torch.Generator | None = None
        self._seconds = 0.0

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
        }

    def start_step(self, step: int, batch: list[dict]) -> list[dict]:
        if self._armed:
            raise UserError(
                f"The ROI heads {type(self.roi_heads).__name__} did not ask the judge in the last "
                "step: have their forward call super().forward, and the model call its roi_heads."
            )
        self.finish_step()  # of the last one, where a training loop of the user's own has not
        start = time.perf_counter()
        self._armed = True
        self._probe = probe_samples(batch) if self.model is not None else []
        # On the CPU, while the device still does the last step. Targets that a model makes of other
        # things are not known yet.
        self._plan = None
        if all("instances" in sample for sample in batch):
            self._plan = self.scorer.plan(
                [sample["instances"] for sample in batch], learn=self.model is None
            )
        self._seconds = time.perf_counter() - start
        return super().start_step(step, batch)

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
        features = {name: feature.detach() for name, feature in features.items()}
        self._generator = step_generator(self.seed, self.step, comm.get_rank())
        if self._plan is None or not self._plan.is_of(targets):
            self._plan = self.scorer.plan(targets, learn=self.model is None)
        probe = self._probe_batch(features, targets) if self.model is not None else None
        self._begun = self.scorer.begin(self._plan, features, targets, self.image_ids, probe)
        self._seconds += time.perf_counter() - start
        if not self.policy.needs_scores:
            return None
        self.finish_step()
        contribution, decision = self.verdict.contribution, self.verdict.decision
        return self._plan.by_target(~decision.accept & (contribution.pool_id >= 0))

    def finish_step(self) -> None:
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        start = time.perf_counter()
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
        self.record(contribution, decision, self._seconds)

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
        return value > 0, value.isfinite()

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
        age = self.scorer.cache.steps_since_update[self.verdict.contribution.gt_class]
        return {"gal/cache_age": age[age >= 0].float().mean().item()} if (age >= 0).any() else {}


class JudgeHook(HookBase):
    """Writes metrics and pictures of a :class:`Judge`, and stores its ledger.

    Args:
        judge: of the trainer.
        checkpoint_period: steps between two checkpoints; the ledger is stored with each.
        picture_period: steps between two pictures; 0: none.
        output_dir: pictures go to its folder ``decisions``.
        image_format: ``cfg.INPUT.FORMAT``.
        dataset_name: of the class names.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        checkpoint_period: int,
        picture_period: int,
        output_dir: str,
        image_format: str,
        dataset_name: str,
    ) -> None:
        self.judge = judge
        self.checkpoint_period = checkpoint_period
        self.picture_period = picture_period
        self.output_dir = Path(output_dir)
        self.image_format = image_format
        self.class_names = MetadataCatalog.get(dataset_name).thing_classes

    def before_train(self) -> None:
        self.judge.resume(self.trainer.start_iter)

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        self.judge.finish_step()  # where a trainer of the user's own has not
        done = self.trainer.iter + 1
        is_last = done == self.trainer.max_iter
        if comm.is_main_process():
            seconds = time.perf_counter() - self._step_start
            storage = get_event_storage()
            storage.put_scalars(
                smoothing_hint=True,
                **decision_metrics(self.judge, self.judge.verdict.seconds / max(seconds, 1e-9)),
            )
            if self.picture_period and (done % self.picture_period == 0 or is_last):
                self._draw(done)
        if done % self.checkpoint_period == 0 or is_last:
            # Before the checkpoint: rows that it knows nothing of are taken back on resume.
            self.judge.ledger.flush()

    def after_train(self) -> None:
        # An interrupted run keeps what it has; a resumed one takes back what it does again.
        self.judge.ledger.flush()

    def _draw(self, done: int) -> None:
        verdict = self.judge.verdict
        if len(verdict.contribution) == 0:
            return
        sheet = decision_sheet(
            self.trainer.last_batch,
            verdict.contribution,
            verdict.decision,
            self.class_names,
            image_format=self.image_format,
            title=f"Step {done}",
        )
        save_png(sheet, self.output_dir / "decisions" / f"{done:07d}.png")


def decision_metrics(judge: Judge, time_share: float) -> dict[str, float]:
    """Scalars of the last step, of this process; a figure of nothing is left out.

    ``gal/accepted`` (share, also by frequency group), ``gal/undecided`` (share that the warm-up
    rule decided), ``gal/score_q..`` (quantiles), ``gal/time_share`` (of the step, spent on scoring)
    and the judge's own.
    """
    contribution, decision = judge.verdict.contribution, judge.verdict.decision
    metrics = {"gal/time_share": time_share, "gal/pasted": float(len(contribution))}
    if len(contribution) == 0:
        return metrics
    accept, classes = decision.accept.float(), contribution.gt_class
    metrics["gal/accepted"] = accept.mean().item()
    metrics["gal/undecided"] = decision.undecided.float().mean().item()
    for number, group in enumerate(GROUPS):
        in_group = judge.class_groups[classes] == number
        if in_group.any():
            metrics[f"gal/accepted_{group}"] = accept[in_group].mean().item()
    score = contribution.score[contribution.score.isfinite()]
    if len(score):
        values = score.quantile(torch.tensor(SCORE_QUANTILES)).tolist()
        for q, value in zip(SCORE_QUANTILES, values, strict=True):
            metrics[f"gal/score_q{round(100 * q)}"] = value
    return metrics | judge.metrics()
