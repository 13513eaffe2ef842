"""Which pasted instances train the heads: one small class per policy.

An instance policy looks at the contribution of each pasted instance and answers per instance, in
the same step. A batch rule (the published recipe) looks at one cosine and answers for the batch.

An instance without a usable score (it has no ROI, its score is not finite, its class's gradient
cache is young, or there is nothing yet to compare it with) is *undecided*; the policy's
:class:`WarmUp` says what becomes of it. Decisions that involve recent scores exchange them between
processes: every process must call ``decide`` at every step, also with no instances.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor

from gal_d2.distributed import mean_over_processes
from gal_d2.errors import UserError
from gal_d2.scoring.reference_window import ReferenceWindow

if TYPE_CHECKING:
    from gal_d2.scoring.contribution import Contribution

__all__ = [
    "ACCEPTANCE_REGISTRY",
    "BATCH_RULE_REGISTRY",
    "AcceptanceContext",
    "AcceptancePolicy",
    "AlwaysAccept",
    "BatchDecision",
    "BatchPercentile",
    "BatchRule",
    "BatchThreshold",
    "CalibratedAccept",
    "Decision",
    "MaskLossVeto",
    "NeverAccept",
    "QuantileAccept",
    "RandomAccept",
    "ReferenceWindow",
    "ThresholdAccept",
    "TopKAccept",
    "WarmUp",
    "build_acceptance_policy",
    "build_batch_rule",
    "loss_key",
    "step_generator",
]

ACCEPTANCE_REGISTRY = Registry("ACCEPTANCE")
ACCEPTANCE_REGISTRY.__doc__ = """
Policies by the name that ``GAL.ACCEPT.POLICY`` gives. An entry is called with the config.
"""
BATCH_RULE_REGISTRY = Registry("BATCH_RULE")
BATCH_RULE_REGISTRY.__doc__ = """
Rules of the published recipe by the name that ``GAL.ACCEPT.POLICY`` gives with ``UNIT: batch``.
"""

SCORE_KEY = "score"


def loss_key(head: str) -> str:
    """Key in ``AcceptanceContext.reference`` of real instances' losses of a head."""
    return f"loss/{head}"


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """A generator for one step of one process: a resumed run draws what the first one drew."""
    (state,) = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> 1))


@dataclass(frozen=True)
class AcceptanceContext:
    """What a decision may depend on besides the contribution.

    Attributes:
        step: training iteration, from 0.
        max_steps: iterations of the whole training.
        class_group: (C,) int64, frequency group by class: 0 rare, 1 common, 2 frequent.
        class_age: (C,) int64, number of updates that the gradient cache of each class has seen.
        reference: windows of recent *real* instances: their scores under ``"score"``, the losses of
            a head under ``loss_key(head)``.
        generator: randomness of this step and process (CPU); see :func:`step_generator`.
        value: (N,) float32 on the CPU, what all scores of each cut-out so far, this one included,
            say of it relative to its class (:mod:`gal_d2.selection.posterior`); NaN where nothing
            is known. None: not kept.
    """

    step: int
    max_steps: int
    class_group: Tensor
    class_age: Tensor
    reference: Mapping[str, ReferenceWindow] = field(default_factory=dict)
    generator: torch.Generator | None = None
    value: Tensor | None = None

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(max(self.step / max(self.max_steps - 1, 1), 0.0), 1.0)

    def reference_for(self, key: str) -> ReferenceWindow:
        if key not in self.reference:
            known = ", ".join(sorted(self.reference)) or "none"
            raise UserError(
                f"The acceptance policy needs recent real instances' '{key}', but the scorer keeps "
                f"{known}: add the head to GAL.SCORER.HEADS or choose another GAL.ACCEPT.POLICY."
            )
        return self.reference[key]


@dataclass(frozen=True)
class Decision:
    """What becomes of each of N pasted instances. All tensors on the device of the scores.

    Attributes:
        accept: (N,) bool; True: its ROIs train the heads.
        value: (N,) float32, what was decided on: the score of this exposure, or what all of them
            add up to; NaN where neither decided.
        threshold: (N,) float32, what the value had to reach; NaN where none decided.
        policy: name of the policy.
        undecided: (N,) bool; True: the warm-up rule spoke, not the score.
        vetoed: (N,) bool; True: rejected for its loss although the policy had accepted it.
    """

    accept: Tensor
    value: Tensor
    threshold: Tensor
    policy: str
    undecided: Tensor
    vetoed: Tensor

    @classmethod
    def uniform(
        cls,
        accept: Tensor,
        policy: str,
        *,
        value: float | Tensor = math.nan,
        threshold: float | Tensor = math.nan,
    ) -> Decision:
        """A decision without warm-up or veto; ``value`` and ``threshold`` are the same for all, or
        (N,)."""

        def column(number: float | Tensor) -> Tensor:
            number = torch.as_tensor(number, dtype=torch.float32, device=accept.device)
            return number.expand(accept.shape).clone()

        nothing = torch.zeros_like(accept)
        return cls(accept, column(value), column(threshold), policy, nothing, nothing.clone())


def _check_range(key: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise UserError(
            f"The configuration key GAL.ACCEPT.{key} is {value}: set it to a value in "
            f"[{low:g}, {high:g}]."
        )
    return value


def _check_at_least(key: str, value: int, low: int) -> int:
    if value < low:
        raise UserError(
            f"The configuration key GAL.ACCEPT.{key} is {value}: set it to {low} or more."
        )
    return value


def _draw(count: int, rate: float, generator: torch.Generator | None) -> Tensor:
    """(count,) bool, True with probability ``rate``; always consumes ``count`` numbers."""
    return torch.rand(count, generator=generator) < rate


@dataclass(frozen=True)
class WarmUp:
    """What happens to an instance that its score cannot judge.

    Attributes:
        min_age: updates that a class's cache needs before its scores count.
        rule: "accept", "reject", or "random" at ``rate``.
        rate: probability of acceptance under "random".
    """

    min_age: int = 20
    rule: str = "accept"
    rate: float = 0.5

    RULES: ClassVar[tuple[str, ...]] = ("accept", "random", "reject")

    def __post_init__(self) -> None:
        if self.rule not in self.RULES:
            raise UserError(
                f"The configuration key GAL.ACCEPT.WARM_UP.RULE is '{self.rule}': set it to one of "
                f"{', '.join(self.RULES)}."
            )
        _check_range("WARM_UP.RATE", self.rate, 0, 1)
        _check_at_least("WARM_UP.MIN_AGE", self.min_age, 0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WarmUp:
        node = cfg.GAL.ACCEPT.WARM_UP
        return cls(min_age=node.MIN_AGE, rule=node.RULE, rate=node.RATE)

    def accept(self, count: int, generator: torch.Generator | None) -> Tensor:
        """(count,) bool on the CPU."""
        rate = {"accept": 1.0, "random": self.rate, "reject": 0.0}[self.rule]
        return _draw(count, rate, generator)


def _register(registry: Registry, name: str) -> Callable[[type], type]:
    """Register a class under the name that a config spells, not under the class's own."""

    def decorate(cls: type) -> type:
        cls.name = name
        registry._do_register(name, cls)
        return cls

    return decorate


class _Stateful:
    """No state, unless a subclass has some."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors only, in nested dicts: ``torch.load(weights_only=True)`` reads it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""


class AcceptancePolicy(_Stateful, ABC):
    """Decides per pasted instance.

    Attributes:
        by_value: whether it decides on what a cut-out's scores add up to, not on this exposure's
            score.
        needs_scores: whether anything can be rejected; if not, training does not wait for scores.
    """

    name: ClassVar[str]
    by_value: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = True

    @abstractmethod
    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        """Accept or reject each of the N instances of ``contribution``."""


@_register(ACCEPTANCE_REGISTRY, "always")
class AlwaysAccept(AcceptancePolicy):
    """Plain copy-paste: every instance trains the heads."""

    needs_scores = False

    @configurable
    def __init__(self) -> None:
        pass

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        accept = torch.ones_like(contribution.score, dtype=torch.bool)
        return Decision.uniform(accept, self.name)


@_register(ACCEPTANCE_REGISTRY, "never")
class NeverAccept(AcceptancePolicy):
    """Pastes are seen by the RPN and train no head."""

    @configurable
    def __init__(self) -> None:
        pass

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        accept = torch.zeros_like(contribution.score, dtype=torch.bool)
        return Decision.uniform(accept, self.name)


@_register(ACCEPTANCE_REGISTRY, "random")
class RandomAccept(AcceptancePolicy):
    """Accept with a fixed probability: what any policy has to beat at the same rate.

    Args:
        rate: probability of acceptance.
    """

    @configurable
    def __init__(self, *, rate: float = 0.5) -> None:
        self.rate = _check_range("RATE", rate, 0, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"rate": cfg.GAL.ACCEPT.RATE}

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        accept = _draw(len(contribution.score), self.rate, context.generator)
        return Decision.uniform(accept.to(contribution.score.device), self.name)


class ScorePolicy(AcceptancePolicy):
    """A policy that compares scores with thresholds; leaves the undecided to the warm-up rule."""

    def __init__(self, warm_up: WarmUp | None = None) -> None:
        self.warm_up = warm_up or WarmUp()

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        device = contribution.score.device
        score = contribution.score.detach().float().cpu()
        if self.by_value and context.value is not None:
            score = context.value
        classes = contribution.gt_class.detach().long().cpu()
        old_enough = context.class_age.cpu()[classes] >= self.warm_up.min_age
        settled = score.isfinite() & old_enough
        accept, threshold = self._judge(contribution, score, settled, context)
        undecided = ~settled | threshold.isnan()
        fallback = self.warm_up.accept(len(score), context.generator)
        accept = torch.where(undecided, fallback, accept)
        threshold = threshold.masked_fill(undecided, torch.nan)
        return Decision(
            accept.to(device),
            score.masked_fill(undecided, torch.nan).to(device),
            threshold.to(device),
            self.name,
            undecided.to(device),
            torch.zeros_like(undecided).to(device),
        )

    @abstractmethod
    def _judge(
        self,
        contribution: Contribution,
        score: Tensor,
        settled: Tensor,
        context: AcceptanceContext,
    ) -> tuple[Tensor, Tensor]:
        """Accept (N,) bool and threshold (N,) float32, on the CPU; NaN: nothing to compare with.

        Args:
            contribution: of N instances.
            score: (N,) float32 on the CPU, what to decide on.
            settled: (N,) bool on the CPU; the answer matters only where it is True.
            context: as for :meth:`decide`.
        """


@_register(ACCEPTANCE_REGISTRY, "threshold")
class ThresholdAccept(ScorePolicy):
    """Accept a score of at least ``value``."""

    @configurable
    def __init__(self, *, value: float = 0.0, warm_up: WarmUp | None = None) -> None:
        super().__init__(warm_up)
        self.value = value

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"value": cfg.GAL.ACCEPT.THRESHOLD, "warm_up": WarmUp.from_config(cfg)}

    def _judge(self, contribution, score, settled, context):
        threshold = torch.full_like(score, self.value)
        return score >= threshold, threshold


@_register(ACCEPTANCE_REGISTRY, "quantile")
class QuantileAccept(ScorePolicy):
    """Accept the best share of the recent pasted instances of the same frequency group.

    The scores of the step itself, of all processes, are in the window when it is asked.

    Args:
        start_rate: share accepted at step 0.
        end_rate: share at the last step, reached linearly; None: ``start_rate`` throughout.
        window: scores kept per frequency group.
        min_count: a group with fewer scores borrows from the others; fewer in all: undecided.
        num_groups: number of frequency groups.
        warm_up: rule for the undecided.
    """

    by_value = True

    @configurable
    def __init__(
        self,
        *,
        start_rate: float = 0.5,
        end_rate: float | None = None,
        window: int = 1000,
        min_count: int = 30,
        num_groups: int = 3,
        warm_up: WarmUp | None = None,
    ) -> None:
        super().__init__(warm_up)
        self.start_rate = _check_range("QUANTILE.START_RATE", start_rate, 0, 1)
        end_rate = start_rate if end_rate is None else end_rate
        self.end_rate = _check_range("QUANTILE.END_RATE", end_rate, 0, 1)
        _check_at_least("QUANTILE.WINDOW", window, 1)
        _check_range("QUANTILE.MIN_COUNT", min_count, 1, window)
        same = torch.zeros(num_groups, dtype=torch.int64)
        self._recent = ReferenceWindow(same, size=window, n_min=min_count)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.GAL.ACCEPT.QUANTILE
        return {
            "start_rate": node.START_RATE,
            "end_rate": node.END_RATE,
            "window": node.WINDOW,
            "min_count": node.MIN_COUNT,
            "warm_up": WarmUp.from_config(cfg),
        }

    def rate(self, progress: float) -> float:
        """Target rate after a share of the training in [0, 1]."""
        return self.start_rate + (self.end_rate - self.start_rate) * progress

    def _judge(self, contribution, score, settled, context):
        groups = context.class_group.cpu()[contribution.gt_class.detach().long().cpu()]
        self._recent.add(groups[settled], score[settled])
        rate = self.rate(context.progress)
        # The quantile at either end is a score that occurred, which ">=" would accept.
        if rate in (0.0, 1.0):
            threshold = torch.full_like(score, math.inf if rate == 0.0 else -math.inf)
        else:
            threshold = self._recent.quantile(groups, 1.0 - rate)
        return score >= threshold, threshold

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self._recent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.load_state_dict(state.get("recent", {}))


@_register(ACCEPTANCE_REGISTRY, "top_k")
class TopKAccept(ScorePolicy):
    """Accept the ``k`` best of each image. The undecided are judged apart and take no place.

    The threshold is the score of the k-th, or -inf where the image has no more than k. Of equal
    scores the earlier row wins.
    """

    by_value = True

    @configurable
    def __init__(self, *, k: int = 5, warm_up: WarmUp | None = None) -> None:
        super().__init__(warm_up)
        self.k = _check_at_least("TOP_K", k, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"k": cfg.GAL.ACCEPT.TOP_K, "warm_up": WarmUp.from_config(cfg)}

    def _judge(self, contribution, score, settled, context):
        images = contribution.image_index.detach().long().cpu()
        accept = torch.zeros_like(settled)
        threshold = torch.full_like(score, -math.inf)
        for image in images[settled].unique():
            rows = (settled & (images == image)).nonzero()[:, 0]
            best = score[rows].argsort(descending=True, stable=True)[: self.k]
            accept[rows[best]] = True
            if len(rows) > self.k:
                threshold[rows] = score[rows[best[-1]]]
        return accept, threshold


@_register(ACCEPTANCE_REGISTRY, "calibrated")
class CalibratedAccept(ScorePolicy):
    """Accept a score above a percentile of the recent *real* instances of the same class.

    Neither the level of a class's scores nor its share of bad candidates needs to be known. Thin
    classes borrow from their frequency group, then from all (:class:`ReferenceWindow`).

    Args:
        percentile: in [0, 100]; 25 rejects what scores below three quarters of the real ones.
        warm_up: rule for the undecided.
    """

    @configurable
    def __init__(self, *, percentile: float = 25.0, warm_up: WarmUp | None = None) -> None:
        super().__init__(warm_up)
        self.percentile = _check_range("PERCENTILE", percentile, 0, 100)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"percentile": cfg.GAL.ACCEPT.PERCENTILE, "warm_up": WarmUp.from_config(cfg)}

    def _judge(self, contribution, score, settled, context):
        window = context.reference_for(SCORE_KEY)
        threshold = window.quantile(contribution.gt_class, self.percentile / 100)
        return score > threshold, threshold


class MaskLossVeto(AcceptancePolicy):
    """Rejects what another policy accepted when its mask loss is implausible for its class.

    Implausible: above ``factor`` times the ``quantile`` of recent real instances of the class. An
    instance without that loss, or with nothing to compare it with, is not vetoed.

    Args:
        policy: the policy that decides first.
        head: the head whose loss counts.
        quantile: in [0, 1].
        factor: above 0.
    """

    @configurable
    def __init__(
        self,
        *,
        policy: AcceptancePolicy,
        head: str = "mask",
        quantile: float = 0.95,
        factor: float = 1.5,
    ) -> None:
        self.policy = policy
        self.name = f"{policy.name}+{head}_loss_veto"
        self.head = head
        self.quantile = _check_range("VETO.QUANTILE", quantile, 0, 1)
        if not factor > 0:
            raise UserError(
                f"The configuration key GAL.ACCEPT.VETO.FACTOR is {factor}: set it above 0."
            )
        self.factor = factor

    @classmethod
    def from_config(cls, cfg: CfgNode, *, policy: AcceptancePolicy) -> dict[str, Any]:
        node = cfg.GAL.ACCEPT.VETO
        return {
            "policy": policy,
            "head": node.HEAD,
            "quantile": node.QUANTILE,
            "factor": node.FACTOR,
        }

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        decision = self.policy.decide(contribution, context)
        if self.head not in contribution.head_loss:
            known = ", ".join(sorted(contribution.head_loss)) or "none"
            raise UserError(
                f"The configuration key GAL.ACCEPT.VETO.HEAD is '{self.head}', but the scorer "
                f"scores the heads {known}: choose one of them or add it to GAL.SCORER.HEADS."
            )
        loss = contribution.head_loss[self.head].detach().float()
        window = context.reference_for(loss_key(self.head))
        limit = self.factor * window.quantile(contribution.gt_class, self.quantile)
        vetoed = decision.accept & (loss > limit.to(loss.device))  # False where either is NaN
        return replace(decision, accept=decision.accept & ~vetoed, vetoed=vetoed, policy=self.name)

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state.get("policy", {}))


@dataclass(frozen=True)
class BatchDecision:
    """The published recipe's answer: the whole batch, or its images without pastes.

    Attributes:
        accept: the same on every process.
        cosine: mean over the processes; NaN where none had one.
        threshold: what the cosine had to reach; NaN where nothing was compared.
        policy: name of the rule.
    """

    accept: bool
    cosine: float
    threshold: float
    policy: str

    def for_instances(self, count: int, device: torch.device | str = "cpu") -> Decision:
        """The same answer for each of ``count`` instances."""
        accept = torch.full((count,), self.accept, dtype=torch.bool, device=device)
        return Decision.uniform(accept, self.policy, value=self.cosine, threshold=self.threshold)


class BatchRule(_Stateful, ABC):
    """Decides for the batches of all processes together, from one cosine.

    A step without a cosine on any process (no pastes, or no real image of their classes), or with
    nothing to compare it with, is accepted: there is no evidence against it.
    """

    name: ClassVar[str]

    def decide(self, cosine: float | Tensor) -> BatchDecision:
        """Accept or not; a collective call.

        Args:
            cosine: of this process, between the cached gradient on real images and the gradient on
                the pasted batch; NaN where it has none.
        """
        cosine = mean_over_processes(cosine)
        threshold = math.nan if math.isnan(cosine) else self._threshold(cosine)
        # In the windows' precision: of equal cosines, the percentile must not exceed any.
        accept = math.isnan(threshold) or bool(np.float32(cosine) >= np.float32(threshold))
        return BatchDecision(accept, cosine, threshold, self.name)

    @abstractmethod
    def _threshold(self, cosine: float) -> float:
        """What a (finite) cosine has to reach; NaN: nothing to compare it with."""


@_register(BATCH_RULE_REGISTRY, "threshold")
class BatchThreshold(BatchRule):
    """Accept a batch whose cosine is at least ``value`` (arXiv 2406.02435 uses -0.05)."""

    @configurable
    def __init__(self, value: float = -0.05) -> None:
        self.value = value

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"value": cfg.GAL.ACCEPT.THRESHOLD}

    def _threshold(self, cosine: float) -> float:
        return self.value


@_register(BATCH_RULE_REGISTRY, "percentile")
class BatchPercentile(BatchRule):
    """Accept a batch whose cosine is at least a percentile of those of the steps before.

    Args:
        percentile: in [0, 100].
        window: number of steps looked back.
        min_count: steps with fewer before them are accepted.
    """

    @configurable
    def __init__(self, percentile: float = 50.0, window: int = 1000, min_count: int = 10) -> None:
        self.percentile = _check_range("PERCENTILE", percentile, 0, 100)
        _check_at_least("BATCH_WINDOW", window, 1)
        one_class = torch.zeros(1, dtype=torch.int64)
        self._recent = ReferenceWindow(one_class, size=window, n_min=min(min_count, window))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.GAL.ACCEPT
        return {"percentile": node.PERCENTILE, "window": node.BATCH_WINDOW}

    def _threshold(self, cosine: float) -> float:
        only = torch.zeros(1, dtype=torch.int64)
        threshold = float(self._recent.quantile(only, self.percentile / 100))
        self._recent.add_gathered(only, torch.tensor([cosine]))
        return threshold

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self._recent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.load_state_dict(state.get("recent", {}))


def _look_up(registry: Registry, cfg: CfgNode) -> type:
    name = cfg.GAL.ACCEPT.POLICY
    if name not in registry:
        known = ", ".join(sorted(entry for entry, _ in registry))
        raise UserError(
            f"The configuration key GAL.ACCEPT.POLICY is '{name}': with GAL.ACCEPT.UNIT "
            f"'{cfg.GAL.ACCEPT.UNIT}' set it to one of {known}."
        )
    return registry.get(name)


def build_acceptance_policy(cfg: CfgNode) -> AcceptancePolicy:
    """The policy that ``cfg.GAL.ACCEPT`` describes, with the veto where it is on.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    policy = _look_up(ACCEPTANCE_REGISTRY, cfg)(cfg)
    if cfg.GAL.ACCEPT.VETO.ENABLED:
        policy = MaskLossVeto(cfg, policy=policy)
    return policy


def build_batch_rule(cfg: CfgNode) -> BatchRule:
    """The batch rule that ``cfg.GAL.ACCEPT`` describes (``UNIT: batch``)."""
    return _look_up(BATCH_RULE_REGISTRY, cfg)(cfg)
