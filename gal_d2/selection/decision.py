"""What an acceptance policy is told, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """A generator for one step of one process: a resumed run draws what the first one drew."""
    (state,) = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> 1))


@dataclass(frozen=True)
class AcceptanceContext:
    """What a decision may depend on besides the contribution.

    Attributes:
        class_group: (C,) int64, frequency group by class: 0 rare, 1 common, 2 frequent.
        num_updates: (C,) int64, number of updates that each class's direction has seen.
        generator: randomness of this step and process (CPU); see :func:`step_generator`.
        value: (N,) float32 on the CPU, what all scores of each cut-out so far, this one included,
            say of it relative to its class (:mod:`gal_d2.selection.posterior`); NaN where nothing
            is known. None: not kept.
    """

    class_group: Tensor
    num_updates: Tensor
    generator: torch.Generator | None = None
    value: Tensor | None = None


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
    """

    accept: Tensor
    value: Tensor
    threshold: Tensor
    policy: str
    undecided: Tensor

    @classmethod
    def uniform(
        cls,
        accept: Tensor,
        policy: str,
        *,
        value: float | Tensor = math.nan,
        threshold: float | Tensor = math.nan,
    ) -> Decision:
        """A decision without warm-up; ``value`` and ``threshold`` are the same for all, or (N,)."""

        def column(number: float | Tensor) -> Tensor:
            number = torch.as_tensor(number, dtype=torch.float32, device=accept.device)
            return number.expand(accept.shape).clone()

        return cls(accept, column(value), column(threshold), policy, torch.zeros_like(accept))
