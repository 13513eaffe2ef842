"""The hook that has the trainer draw new instances between its steps."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from torch import Tensor

from gal_d2.distributed import gather_columns
from gal_d2.interleaving.interleaver import Interleaver
from gal_d2.judging.judge import Judge
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision


class InterleaveHook(HookBase):
    """Has an :class:`Interleaver` draw between steps, and tells it what training accepts.

    It stands before the hooks that take snapshots and checkpoints. Every process has one: only the
    main process draws, but all of them judge.

    Args:
        interleaver: on the main process; None on the others.
        judge: what accepts and rejects; None if nothing does.
        period: steps between two times.
        checkpoint_period: steps between two checkpoints, which must know all decisions so far.
    """

    def __init__(
        self,
        interleaver: Interleaver | None,
        judge: Judge | None,
        *,
        period: int,
        checkpoint_period: int,
    ) -> None:
        self.interleaver = interleaver
        self.judge = judge
        self.period = period
        self.checkpoint_period = checkpoint_period
        # By step: pool ids, accepted, and whether that was decided on the instance's merits.
        self._decisions: list[tuple[Tensor, Tensor, Tensor]] = []

    def before_train(self) -> None:
        # A resumed run has asked for these images already.
        if self.interleaver is not None and not self.interleaver.was_restored:
            self.interleaver.keep_asking()
            self.interleaver.grow()

    def after_step(self) -> None:
        if self.judge is not None:
            self.note(self.judge.judged.contribution, self.judge.judged.decision)
        done = self.trainer.iter + 1
        is_last = done == self.trainer.max_iter
        is_due = done % self.period == 0
        if is_due or is_last or done % self.checkpoint_period == 0:
            self._report_decisions()
        if self.interleaver is None:
            return
        if (is_due or self.interleaver.queue) and not is_last:
            self.interleaver.keep_asking()
        if is_due or is_last:
            self.interleaver.grow()
            get_event_storage().put_scalars(smoothing_hint=False, **self.interleaver.metrics())

    def after_train(self) -> None:
        if self.interleaver is not None:
            self.interleaver.close()

    def state_dict(self) -> dict:
        return {} if self.interleaver is None else self.interleaver.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if self.interleaver is not None:
            self.interleaver.load_state_dict(state)

    def note(self, contribution: Contribution, decision: Decision) -> None:
        """Keep what is thought of instances of this process, pasted or auditioned, until the next
        time that the scheduler is told."""
        rows = contribution.pool_id, *self.judge.helpful(contribution, decision)
        from_pool = (contribution.pool_id >= 0).cpu()
        self._decisions.append(tuple(column.cpu()[from_pool] for column in rows))

    def note_auditions(self, contribution: Contribution, decision: Decision) -> None:
        """As :meth:`note`, and tell the scheduler at once: auditions come after this hook, and a
        checkpoint of the same step has to know them. A collective call."""
        self.note(contribution, decision)
        self._report_decisions()

    def _report_decisions(self) -> None:
        """Bring the decisions of all processes together; a collective call."""
        no_ids, no_flags = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
        columns = zip((no_ids, no_flags, no_flags), *self._decisions, strict=True)
        gathered = gather_columns(*(torch.cat(parts) for parts in columns))
        self._decisions = []
        if self.interleaver is not None:
            self.interleaver.scheduler.record_judgements(*(column.numpy() for column in gathered))
