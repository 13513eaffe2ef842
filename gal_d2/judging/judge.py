"""What the trainer knows of a judge, which scores a step's pastes and says which of them train."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.utils import comm
from torch import Tensor

from gal_d2.datasets.registration import load_metadata
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.posterior import Posterior

logger = logging.getLogger(__name__)

GROUPS = "rcf"  # frequency groups by number, as the scoring package has them


def class_groups(metadata: Metadata) -> Tensor:
    """(C,) int64, the frequency group of each class of a data set, an index into ``GROUPS``."""
    return torch.tensor([GROUPS.index(f) for f in metadata.category_frequency])


@dataclass
class JudgedStep:
    """The last step's scores and decisions, a row per pasted instance.

    Attributes:
        contribution, decision: of the same N instances.
        seconds: spent on them; on average, where not every step is scored.
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
        judged: of the last step; None before the first.
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
        self.judged: JudgedStep | None = None
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
        self.judged = JudgedStep(contribution, decision, seconds)

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
