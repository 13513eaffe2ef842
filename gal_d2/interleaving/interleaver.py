"""Draws new instances while training: ``GAL.GENERATOR`` with ``ENABLED``.

Every PERIOD steps a scheduler chooses what to draw, from what training accepted so far; a worker
draws it, in this process ("sync") or in one beside it ("async"); and the pool that samples are
pasted from is let grow. Snapshots decide when samples see it (:mod:`gal_d2.selection.snapshots`).

With "sync" a run stays a function of its seed and step: the requests depend on the state that is in
the checkpoint, and what a killed run had drawn after its last checkpoint is found in the pool's
journal when the resumed run asks for it again. With "async" it depends on how quick the
generator was.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping

from gal_d2.generation.generator import NO_CANDIDATE, GenerationRequest
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.scheduler import Arm, CategoryScheduler, group_shares
from gal_d2.interleaving.pipeline_worker import GeneratorCrash, PipelineWorker
from gal_d2.pool.instance_pool import InstancePool

logger = logging.getLogger(__name__)


class Interleaver:
    """Asks the generator for what the scheduler chooses, and lets the pool grow by what came of it.

    On the main process only.

    Args:
        scheduler: chooses.
        prompts: turn a choice into a request.
        worker: draws.
        pool: of what samples may draw from; changed in place. To begin with, all there is.
        batch: images asked for at a time.
        queue: batches that the worker has on order; 0: it meets each at once.
        max_waiting: while so many new cut-outs were never pasted, no more are asked for; 0: without
            limit, as it must be where no judge tells of what is pasted.
        max_restarts: of the worker after crashes.
        next_index: index of the next image to ask for, by category id; 0 where there is none.
        frequency: group ("r", "c", "f") by category id, for the metrics.

    Attributes:
        is_running: there is a worker that can be asked.
    """

    def __init__(
        self,
        scheduler: CategoryScheduler,
        prompts: PromptBook,
        worker: PipelineWorker,
        pool: InstancePool,
        *,
        batch: int,
        queue: int = 0,
        max_waiting: int = 0,
        max_restarts: int = 3,
        next_index: Mapping[int, int] | None = None,
        frequency: Mapping[int, str] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.prompts = prompts
        self.worker = worker
        self.pool = pool
        self.batch = batch
        self.queue = queue
        self.max_waiting = max_waiting
        self.max_restarts = max_restarts
        self.frequency = dict(frequency or {})
        self.is_running = False
        self.was_restored = False
        self._on_disk = InstancePool(pool.root, allow_empty=True)
        self._next_index = Counter(next_index or {})
        self._on_order: dict[tuple[int, int], Arm] = {}
        self._new_ids: list[int] = []
        self._restarts = 0
        self._answered = 0
        self._answered_before = 0
        self._seconds_before = 0.0
        self._time_before = time.perf_counter()

    def start(self) -> None:
        """Start the generator.

        Raises:
            UserError: the config asks for what is not there.
        """
        self._forget_lost()
        try:
            self.worker.start()
            self.is_running = True
        except GeneratorCrash as crash:
            self._restart(crash)
        self._time_before = time.perf_counter()

    def keep_asking(self) -> None:
        """Take in what is answered, and ask for more while the worker has room. Never waits, but
        for a worker that meets requests at once."""
        if not self.is_running:
            return
        try:
            self._collect()
            room = max(self.queue, 1) * self.batch - len(self._on_order)
            while room >= (self.batch if self.queue else 1):
                # What nobody has pasted yet is no guide to what to draw next.
                if self.max_waiting and self.scheduler.num_waiting >= self.max_waiting:
                    break
                requests = self._next_requests(min(room, self.batch))
                if not requests:
                    break
                self.worker.submit(requests)
                room -= len(requests)
                if not self.queue:
                    room += self._collect()  # others in place of those that there are none of
            if not self.queue:
                # Each time is a shard: a resumed run needs to tell what was drawn when.
                self.worker.flush()
        except GeneratorCrash as crash:
            self._restart(crash)

    def grow(self) -> None:
        """Let samples draw from what is new, from the next snapshot on."""
        self._on_disk.refresh()
        if self.queue:
            self.pool.show(self._on_disk.shards)
            if self.is_running:
                self.worker.flush()  # for the next time
        else:
            # Only what this run has asked for so far: the folder may have more already, of a run
            # that was killed.
            new = self._on_disk.shards_of(self._new_ids)
            self.pool.show({*self.pool.shards, *new})
        self._new_ids = []

    def close(self) -> None:
        """Stop the generator."""
        self.is_running = False
        self.worker.close()

    def metrics(self) -> dict[str, float]:
        """Scalars since the last call (rates) or since the start; what is not known is left out.

        ``generator/images_per_second`` (of the time that the trainer waited, or of all the time
        where it did not wait), ``generator/queue`` (images on order), ``generator/pool_size``,
        ``generator/drawn``, ``generator/kept`` (share of the drawn that went into the pool),
        ``generator/accepted`` (share of the drawn that training accepted, as far as it has judged),
        and ``generator/share_r`` and so on (of the draws, by frequency group).
        """
        now = time.perf_counter()
        if self.queue:
            seconds = now - self._time_before
        else:
            seconds = self.worker.seconds - self._seconds_before
        answered = self._answered - self._answered_before
        self._time_before, self._seconds_before = now, self.worker.seconds
        self._answered_before = self._answered
        metrics = {
            "generator/queue": float(len(self._on_order)),
            "generator/pool_size": float(len(self.pool)),
        }
        if answered and seconds > 0:
            metrics["generator/images_per_second"] = answered / seconds
        scheduler = self.scheduler
        drawn = int(scheduler.drawn.sum()) - len(self._on_order)
        metrics["generator/drawn"] = float(drawn)
        if drawn > 0:
            metrics["generator/kept"] = 1 - scheduler.dropped.sum() / drawn
        known = scheduler.dropped.sum() + scheduler.judged.sum()
        if scheduler.judged.sum() > 0:
            metrics["generator/accepted"] = scheduler.accepted.sum() / known
        if self.frequency:
            for group, share in group_shares(scheduler, self.frequency).items():
                metrics[f"generator/share_{group}"] = share
        return {name: float(value) for name, value in metrics.items()}

    def state_dict(self) -> dict:
        """Tensors, numbers and strings only, in nested dicts and lists."""
        on_order = list(self._on_order.values())
        return {
            "scheduler": self.scheduler.state_dict(),
            "next_index": dict(self._next_index),
            "shards": list(self.pool.shards),
            "new_ids": list(self._new_ids),
            "on_order": [[arm.category_id, arm.template] for arm in on_order],
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore. What was on order then is lost, and drawn anew when its turn comes."""
        self.was_restored = True
        self.scheduler.load_state_dict(state["scheduler"])
        self.scheduler.give_back(Arm(*arm) for arm in state["on_order"])
        self._next_index = Counter(state["next_index"])
        self._new_ids = list(state["new_ids"])
        self.pool.show(state["shards"])

    def _next_requests(self, num: int) -> list[GenerationRequest]:
        requests = []
        for arm in self.scheduler.draw(num):
            index = self._next_index[arm.category_id]
            self._next_index[arm.category_id] += 1
            self._on_order[arm.category_id, index] = arm
            requests.append(self.prompts.request(arm.category_id, index, template=arm.template))
        return requests

    def _collect(self) -> int:
        """Take in what is answered; how much of it was that there is nothing left to draw."""
        outcomes = self.worker.collect()
        for outcome in outcomes:
            self._on_order.pop((outcome.request.category_id, outcome.request.index), None)
            if outcome.pool_id is not None:
                self._new_ids.append(outcome.pool_id)
            self._answered += not outcome.recalled
        self.scheduler.record_outcomes(outcomes)
        return sum(outcome.reason == NO_CANDIDATE for outcome in outcomes)

    def _forget_lost(self) -> None:
        """Cut-outs that a generator reported, but died before they were complete in the pool."""
        self._on_disk.refresh()
        waiting = self.scheduler.waiting_ids()
        self.scheduler.lose(waiting[~self._on_disk.contains(waiting)])

    def _restart(self, crash: GeneratorCrash) -> None:
        """Log a crash, forget what was on order, and start the worker again if it may."""
        self.scheduler.give_back(self._on_order.values())
        self._on_order.clear()
        self.worker.close()  # which may complete what it has drawn
        self._forget_lost()
        self.is_running = False
        while not self.is_running:
            self.worker.close()
            if self._restarts >= self.max_restarts:
                logger.error(
                    "The generator crashed: %s. It was started anew %d times already, "
                    "so training goes on without it.",
                    crash,
                    self._restarts,
                    exc_info=crash.__cause__,
                )
                return
            self._restarts += 1
            logger.error(
                "The generator crashed: %s. It is started anew; training goes on.",
                crash,
                exc_info=crash.__cause__,
            )
            try:
                self.worker.start(again=True)
                self.is_running = True
            except GeneratorCrash as another:
                crash = another
