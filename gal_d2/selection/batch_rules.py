"""The published recipe's rules: one cosine decides on all pastes of a step together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor

from gal_d2.distributed import mean_over_processes
from gal_d2.scoring.reference_window import ReferenceWindow
from gal_d2.selection.decision import Decision
from gal_d2.selection.policies import Stateful, check_range, look_up, register_as

BATCH_RULE_REGISTRY = Registry("BATCH_RULE")
BATCH_RULE_REGISTRY.__doc__ = """
Rules of the published recipe by the name that ``GAL.ACCEPT.POLICY`` gives with ``UNIT: batch``.
"""


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


class BatchRule(Stateful, ABC):
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


@register_as(BATCH_RULE_REGISTRY, "threshold")
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


@register_as(BATCH_RULE_REGISTRY, "percentile")
class BatchPercentile(BatchRule):
    """Accept a batch whose cosine is at least a percentile of those of the steps before.

    Args:
        percentile: in [0, 100].
        window: number of steps looked back, at least 1.
        min_count: steps with fewer before them are accepted.
    """

    @configurable
    def __init__(self, percentile: float = 50.0, window: int = 1000, min_count: int = 10) -> None:
        self.percentile = check_range("PERCENTILE", percentile, 0, 100)
        one_class = torch.zeros(1, dtype=torch.int64)
        self._recent = ReferenceWindow(one_class, size=window, n_min=min(min_count, window))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"percentile": cfg.GAL.ACCEPT.PERCENTILE}

    def _threshold(self, cosine: float) -> float:
        only = torch.zeros(1, dtype=torch.int64)
        threshold = float(self._recent.quantile(only, self.percentile / 100))
        self._recent.add_gathered(only, torch.tensor([cosine]))
        return threshold

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self._recent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.load_state_dict(state.get("recent", {}))


def build_batch_rule(cfg: CfgNode) -> BatchRule:
    """The batch rule that ``cfg.GAL.ACCEPT`` describes (``UNIT: batch``).

    Raises:
        UserError: an unknown name or a value out of range.
    """
    return look_up(BATCH_RULE_REGISTRY, cfg)(cfg)
