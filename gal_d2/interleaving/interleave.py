"""Draws new instances while training: ``GAL.GENERATOR`` with ``ENABLED``.

Every PERIOD steps a scheduler chooses what to draw, from what training accepted so far; a worker
draws it, in this process ("sync") or in one beside it ("async"); and the pool that samples are
pasted from is let grow. When samples see that is the snapshots' business
(:mod:`gal_d2.selection.snapshots`).

With "sync" a run stays a function of its seed and step: the requests depend on the state that is in
the checkpoint, and what a killed run had drawn after its last checkpoint is found in the pool's
journal when the resumed run asks for it again. With "async" it depends on how quick the
generator was.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from torch import Tensor

from gal_d2.datasets.annotation_file import Category
from gal_d2.distributed import gather_columns
from gal_d2.errors import UserError
from gal_d2.generation.build import (
    build_pipeline,
    build_prompts,
    generation_recipe,
    load_generation_categories,
)
from gal_d2.generation.generator import NO_CANDIDATE, GenerationRequest
from gal_d2.generation.journal import Journal
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.scheduler import Arm, CategoryScheduler, build_scheduler, group_shares
from gal_d2.interleaving.generator_worker import (
    GeneratorCrash,
    GeneratorWorker,
    InlineWorker,
    ProcessWorker,
)
from gal_d2.judging.judge import Judge
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger

logger = logging.getLogger(__name__)

MODES = ("sync", "async")
_QUEUE = 2  # batches that a process of its own has on order


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
        worker: GeneratorWorker,
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


def build_interleaver(cfg: CfgNode) -> Interleaver:
    """What ``GAL.GENERATOR`` asks for, not started yet.

    Raises:
        UserError: an option makes no sense, or the pool or the annotations cannot be read.
    """
    check_interleaving(cfg)
    options = cfg.GAL.GENERATOR
    categories = load_generation_categories(cfg)
    prompts = build_prompts(cfg, categories)
    root = cfg.GAL.POOL.ROOT
    names = {category.id: category.name for category in categories}
    journal = Journal(root, generation_recipe(cfg), names)
    pool = InstancePool(root, allow_empty=True)
    pool.require_names(names)  # before hours of training, not when the generator's process starts
    scheduler = build_scheduler(cfg, categories, prompts)
    if options.SCHEDULE.LEDGER:
        count = learn_from_ledger(scheduler, Ledger(options.SCHEDULE.LEDGER, names), pool)
        logger.info(
            "%s speaks of %d of the %d cut-outs in %s.",
            options.SCHEDULE.LEDGER,
            count,
            len(pool),
            pool.root,
        )
    return Interleaver(
        scheduler,
        prompts,
        _build_worker(cfg, categories),
        pool,
        batch=options.BATCH,
        queue=_QUEUE if options.MODE == "async" else 0,
        max_waiting=options.MAX_WAITING if cfg.GAL.SCORER.ENABLED else 0,
        next_index={c.id: journal.next_index(c.id) for c in categories},
        frequency={c.id: c.frequency for c in categories},
    )


def learn_from_ledger(scheduler: CategoryScheduler, ledger: Ledger, pool: InstancePool) -> int:
    """Tell a scheduler what an earlier training decided on the cut-outs of a pool.

    Returns:
        How many cut-outs of the pool the ledger speaks of.
    """
    known: np.ndarray = np.empty(0, np.int64)
    metadata = pool.metadata(["pool_id", "category_id", "origin"])
    in_pool = metadata["pool_id"].to_numpy()
    for table in ledger.tables(["pool_id", "accept", "undecided"]):
        pool_ids, accepted, undecided = (
            table[name].to_numpy() for name in ("pool_id", "accept", "undecided")
        )
        new = np.flatnonzero(np.isin(in_pool, np.setdiff1d(pool_ids, known)))
        rows = metadata.take(new)
        scheduler.adopt(*(rows[name].to_pylist() for name in rows.column_names))
        known = np.union1d(known, in_pool[new])
        scheduler.record_judgements(pool_ids, accepted, ~undecided)
    return len(known)


def _build_worker(cfg: CfgNode, categories: Sequence[Category]) -> GeneratorWorker:
    if cfg.GAL.GENERATOR.MODE == "async":
        return ProcessWorker(cfg, categories)
    return InlineWorker(lambda: build_pipeline(cfg, categories))


def check_interleaving(cfg: CfgNode) -> None:
    """Refuse a config whose interleaving cannot work.

    Raises:
        UserError: says which key, and what to set it to.
    """
    options = cfg.GAL.GENERATOR
    if options.MODE not in MODES:
        raise UserError(f"GAL.GENERATOR.MODE is '{options.MODE}': choose sync or async.")
    least = {"PERIOD": 1, "BATCH": 1, "MAX_WAITING": 0}
    for key, minimum in least.items():
        if options[key] < minimum:
            raise UserError(f"GAL.GENERATOR.{key} is {options[key]}: set it to at least {minimum}.")
    if not options.NAME:
        raise UserError(
            "GAL.GENERATOR.ENABLED is on, but GAL.GENERATOR.NAME is empty: name a generator, such "
            "as stable_diffusion or cutouts."
        )
    if not cfg.GAL.COPY_PASTE.ENABLED or cfg.GAL.COPY_PASTE.REAL_FRACTION >= 1:
        raise UserError(
            "GAL.GENERATOR.ENABLED is on, but nothing is pasted from the pool: set "
            "GAL.COPY_PASTE.ENABLED True and GAL.COPY_PASTE.REAL_FRACTION below 1."
        )
    root, candidates = cfg.GAL.POOL.ROOT, options.CANDIDATES
    if candidates and Path(candidates).resolve() == Path(root).resolve():
        raise UserError(
            f"GAL.GENERATOR.CANDIDATES and GAL.POOL.ROOT are both '{root}': give the pool "
            "that is filled a folder of its own."
        )
    if cfg.GAL.POOL.ALLOW_LIST:
        raise UserError(
            f"GAL.POOL.ALLOW_LIST is '{cfg.GAL.POOL.ALLOW_LIST}', a list of the only cut-outs that "
            "may be pasted, so new ones never would be: leave it empty, or set "
            "GAL.GENERATOR.ENABLED False."
        )
    if options.SCHEDULE.NAME == "adaptive" and not cfg.GAL.SCORER.ENABLED:
        raise UserError(
            "GAL.GENERATOR.SCHEDULE.NAME is 'adaptive', which draws what training accepts, but "
            "GAL.SCORER.ENABLED is off: turn it on, or set the schedule to inverse_frequency."
        )
