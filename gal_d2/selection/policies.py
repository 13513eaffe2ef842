"""Which pasted instances train the heads: one small class per policy.

A policy looks at the contribution of each pasted instance and answers per instance, in the same
step. The published recipe answers for the whole batch (:mod:`gal_d2.selection.batch_rules`).

An instance without a usable score (it has no ROI, its score is not finite, its class's direction
is young, or there is nothing yet to compare it with) is *undecided*; the policy's :class:`WarmUp`
says what becomes of it. Decisions that involve recent scores exchange them between processes: every
process must call ``decide`` at every step, also with no instances.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor

from gal_d2.errors import UserError
from gal_d2.scoring.reference_window import ReferenceWindow
from gal_d2.selection.decision import AcceptanceContext, Decision

if TYPE_CHECKING:
    from gal_d2.scoring.contribution import Contribution

__all__ = [
    "ACCEPTANCE_REGISTRY",
    "AcceptanceContext",
    "AcceptancePolicy",
    "AlwaysAccept",
    "Decision",
    "NeverAccept",
    "QuantileAccept",
    "RandomAccept",
    "WarmUp",
    "build_acceptance_policy",
]

ACCEPTANCE_REGISTRY = Registry("ACCEPTANCE")
ACCEPTANCE_REGISTRY.__doc__ = """
Policies by the name that ``GAL.ACCEPT.POLICY`` gives. An entry is called with the config.
"""


def check_range(key: str, value: float, low: float, high: float) -> float:
    """``value``, if the option ``GAL.ACCEPT.<key>`` may have it."""
    if not low <= value <= high:
        raise UserError(
            f"The configuration key GAL.ACCEPT.{key} is {value}: set it to a value in "
            f"[{low:g}, {high:g}]."
        )
    return value


def register_as(registry: Registry, name: str) -> Callable[[type], type]:
    """Register a class under the name that a config spells, not under the class's own."""

    def decorate(cls: type) -> type:
        cls.name = name
        registry._do_register(name, cls)
        return cls

    return decorate


def look_up(registry: Registry, cfg: CfgNode) -> type:
    """The entry that ``GAL.ACCEPT.POLICY`` names.

    Raises:
        UserError: there is none of that name.
    """
    name = cfg.GAL.ACCEPT.POLICY
    if name not in registry:
        known = ", ".join(sorted(entry for entry, _ in registry))
        raise UserError(
            f"The configuration key GAL.ACCEPT.POLICY is '{name}': with GAL.ACCEPT.UNIT "
            f"'{cfg.GAL.ACCEPT.UNIT}' set it to one of {known}."
        )
    return registry.get(name)


@dataclass(frozen=True)
class WarmUp:
    """What happens to an instance that its score cannot judge.

    Attributes:
        min_age: updates that a class's direction needs before its scores count.
        rule: "accept" or "reject".
    """

    min_age: int = 20
    rule: str = "accept"

    RULES: ClassVar[tuple[str, ...]] = ("accept", "reject")

    def __post_init__(self) -> None:
        if self.rule not in self.RULES:
            raise UserError(
                f"The configuration key GAL.ACCEPT.WARM_UP.RULE is '{self.rule}': set it to one of "
                f"{', '.join(self.RULES)}."
            )
        if self.min_age < 0:
            raise UserError(
                f"The configuration key GAL.ACCEPT.WARM_UP.MIN_AGE is {self.min_age}: set it to 0 "
                "or more."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WarmUp:
        node = cfg.GAL.ACCEPT.WARM_UP
        return cls(min_age=node.MIN_AGE, rule=node.RULE)


class Stateful:
    """No state, unless a subclass has some."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors only, in nested dicts: ``torch.load(weights_only=True)`` reads it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""


class AcceptancePolicy(Stateful, ABC):
    """Decides per pasted instance.

    Attributes:
        needs_scores: whether anything can be rejected; if not, training does not wait for scores.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool] = True

    @abstractmethod
    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        """Accept or reject each of the N instances of ``contribution``."""


class _OneAnswer(AcceptancePolicy):
    """The same answer for every instance."""

    answer: ClassVar[bool]

    @configurable
    def __init__(self) -> None:
        pass

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        accept = torch.full_like(contribution.score, self.answer, dtype=torch.bool)
        return Decision.uniform(accept, self.name)


@register_as(ACCEPTANCE_REGISTRY, "always")
class AlwaysAccept(_OneAnswer):
    """Plain copy-paste: every instance trains the heads."""

    needs_scores = False
    answer = True


@register_as(ACCEPTANCE_REGISTRY, "never")
class NeverAccept(_OneAnswer):
    """Pastes are seen by the RPN and train no head."""

    answer = False


@register_as(ACCEPTANCE_REGISTRY, "random")
class RandomAccept(AcceptancePolicy):
    """Accept with a fixed probability: what any policy has to beat at the same rate.

    Args:
        rate: probability of acceptance.
    """

    @configurable
    def __init__(self, *, rate: float = 0.5) -> None:
        self.rate = check_range("RATE", rate, 0, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"rate": cfg.GAL.ACCEPT.RATE}

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        accept = torch.rand(len(contribution.score), generator=context.generator) < self.rate
        return Decision.uniform(accept.to(contribution.score.device), self.name)


@register_as(ACCEPTANCE_REGISTRY, "quantile")
class QuantileAccept(AcceptancePolicy):
    """Accept the best share of the recent pasted instances of the same frequency group.

    It goes by what a cut-out's scores add up to; where that is not kept, by this exposure's score.
    The values of the step itself, of all processes, are in the window when it is asked.

    Args:
        rate: share accepted.
        window: scores kept per frequency group; ``WINDOW`` from a config.
        min_count: a group with fewer scores borrows from the others; fewer in all: undecided.
            ``MIN_COUNT`` from a config.
        num_groups: number of frequency groups.
        warm_up: rule for the undecided.
    """

    WINDOW: ClassVar[int] = 1000
    MIN_COUNT: ClassVar[int] = 30

    @configurable
    def __init__(
        self,
        *,
        rate: float = 0.5,
        window: int = WINDOW,
        min_count: int = MIN_COUNT,
        num_groups: int = 3,
        warm_up: WarmUp | None = None,
    ) -> None:
        self.warm_up = warm_up or WarmUp()
        self.rate = check_range("RATE", rate, 0, 1)
        same = torch.zeros(num_groups, dtype=torch.int64)
        self._recent = ReferenceWindow(same, size=window, n_min=min_count)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "rate": cfg.GAL.ACCEPT.RATE,
            "window": cls.WINDOW,
            "min_count": cls.MIN_COUNT,
            "warm_up": WarmUp.from_config(cfg),
        }

    def decide(self, contribution: Contribution, context: AcceptanceContext) -> Decision:
        device = contribution.score.device
        value = context.value
        if value is None:
            value = contribution.score.detach().float().cpu()
        classes = contribution.gt_class.detach().long().cpu()
        settled = value.isfinite() & (context.num_updates.cpu()[classes] >= self.warm_up.min_age)
        threshold = self._threshold(context.class_group.cpu()[classes], value, settled)
        undecided = ~settled | threshold.isnan()
        accept = torch.where(undecided, self.warm_up.rule == "accept", value >= threshold)
        return Decision(
            accept.to(device),
            value.masked_fill(undecided, torch.nan).to(device),
            threshold.masked_fill(undecided, torch.nan).to(device),
            self.name,
            undecided.to(device),
        )

    def _threshold(self, groups: Tensor, value: Tensor, settled: Tensor) -> Tensor:
        """(N,) float32 on the CPU; NaN: nothing to compare with. Only ``settled`` rows count."""
        self._recent.add(groups[settled], value[settled])
        # The quantile at either end is a value that occurred, which ">=" would accept.
        if self.rate in (0.0, 1.0):
            return torch.full_like(value, math.inf if self.rate == 0.0 else -math.inf)
        return self._recent.quantile(groups, 1.0 - self.rate)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self._recent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.load_state_dict(state.get("recent", {}))


def build_acceptance_policy(cfg: CfgNode) -> AcceptancePolicy:
    """The policy that ``cfg.GAL.ACCEPT`` describes.

    Raises:
        UserError: an unknown name or a value out of range.
    """
    return look_up(ACCEPTANCE_REGISTRY, cfg)(cfg)
