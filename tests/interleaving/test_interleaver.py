from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from lvis_layout import USED_CATEGORIES
from scored import scored

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.cutout_generator import CutoutGenerator, PoolCandidates
from gal_d2.generation.generator import GenerationRequest
from gal_d2.generation.instance_cutter import InstanceCutter
from gal_d2.generation.journal import Outcome
from gal_d2.generation.pipeline import InstancePipeline
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.schedule_rules import AdaptiveScheduler, FixedScheduler
from gal_d2.generation.scheduler import Arm, CategoryScheduler
from gal_d2.generation.store import PoolStore
from gal_d2.interleaving.build import check_interleaving, learn_from_ledger
from gal_d2.interleaving.interleaver import Interleaver
from gal_d2.interleaving.pipeline_worker import GeneratorCrash, InlineWorker
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import shard_names
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.setup.configuration import load_config

CATEGORIES = [Category(c, f"thing {c}", "r", 1) for c in USED_CATEGORIES]
TEMPLATE = "a photo of a single {name}"
ARMS = [Arm(c, TEMPLATE) for c in USED_CATEGORIES]


class FakeWorker:
    """Answers when it is told to; dies when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.starts: list[bool] = []
        self.asked: list[list[GenerationRequest]] = []
        self.answers: list[Outcome] = []
        self.flushes = 0
        self.crashes = 0  # so many of the next calls crash

    def start(self, *, again: bool = False) -> None:
        self.starts.append(again)
        self._maybe_crash()

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        self._maybe_crash()
        self.asked.append(list(requests))

    def collect(self) -> list[Outcome]:
        self._maybe_crash()
        answers, self.answers = self.answers, []
        return answers

    def flush(self) -> None:
        self.flushes += 1

    def close(self) -> None:
        pass

    def answer(self, batch: int, *, pool_id: int | None = None) -> None:
        self.answers += [Outcome(r, pool_id, "" if pool_id else "area") for r in self.asked[batch]]

    def _maybe_crash(self) -> None:
        if self.crashes:
            self.crashes -= 1
            raise GeneratorCrash("out of memory")


def inline_worker(candidates: Path, root: Path) -> InlineWorker:
    return InlineWorker(
        lambda: InstancePipeline(
            CutoutGenerator(PoolCandidates(InstancePool(candidates))),
            InstanceCutter([], []),
            PoolStore(str(root), "recipe"),
        )
    )


def make(root: Path, worker, scheduler: CategoryScheduler | None = None, **options) -> Interleaver:
    return Interleaver(
        scheduler or FixedScheduler(ARMS, [1] * len(ARMS), power=0.0),
        PromptBook(CATEGORIES, [TEMPLATE]),
        worker,
        InstancePool(root, allow_empty=True),
        **{"batch": 4, **options},
    )


def tick(interleaver: Interleaver) -> None:
    interleaver.keep_asking()
    interleaver.grow()


# -- In the trainer's process


def test_the_pool_grows_by_what_was_asked_for(candidates, tmp_path):
    interleaver = make(tmp_path, inline_worker(candidates, tmp_path))
    interleaver.start()
    tick(interleaver)
    assert interleaver.pool.counts() == dict.fromkeys(USED_CATEGORIES, 1)
    tick(interleaver)
    assert interleaver.pool.counts() == dict.fromkeys(USED_CATEGORIES, 2)
    assert interleaver.scheduler.num_waiting == 8
    metrics = interleaver.metrics()
    assert metrics["generator/images_per_second"] > 0
    assert (
        metrics.items()
        >= {
            "generator/drawn": 8.0,
            "generator/kept": 1.0,
            "generator/pool_size": 8.0,
            "generator/queue": 0.0,
        }.items()
    )
    assert "generator/accepted" not in metrics


def make_with_few_candidates(root: Path, worker) -> Interleaver:
    """Nine in ten categories have no candidates."""
    categories = CATEGORIES + [Category(2000 + k, f"no {k}", "r", 1) for k in range(36)]
    arms = [Arm(c.id, TEMPLATE) for c in categories]
    return Interleaver(
        FixedScheduler(arms, [1] * len(arms), power=0.0),
        PromptBook(categories, [TEMPLATE]),
        worker,
        InstancePool(root, allow_empty=True),
        batch=8,
    )


def test_others_are_drawn_in_place_of_those_that_there_are_none_of(candidates, tmp_path):
    """The first batch is full all the same, and one shard though it was asked for bit by bit."""
    interleaver = make_with_few_candidates(tmp_path, inline_worker(candidates, tmp_path))
    interleaver.start()
    tick(interleaver)
    assert len(interleaver.pool) == 8
    assert len(interleaver.pool.shards) == 1


def test_when_all_is_drawn_nothing_more_is_asked_for(candidates, tmp_path):
    interleaver = make(tmp_path, inline_worker(candidates, tmp_path), batch=30)
    interleaver.start()
    for _ in range(3):
        tick(interleaver)
    assert len(interleaver.pool) == 40
    assert len(shard_names(tmp_path)) == 2


def test_a_resumed_run_sees_only_what_it_has_asked_for(candidates, tmp_path):
    """The killed run drew on after its checkpoint; that is found again, not drawn again."""

    def make_adaptive(root: Path) -> Interleaver:
        scheduler = AdaptiveScheduler(ARMS, [1] * len(ARMS), seed=5)
        return make(root, inline_worker(candidates, root), scheduler)

    def train(interleaver: Interleaver, ticks: int) -> list[dict[int, int]]:
        seen = []
        for number in range(ticks):
            pool_ids = interleaver.pool.all_ids()
            accepted = pool_ids % 3 < 1 + number % 2
            interleaver.scheduler.record_judgements(pool_ids, accepted)
            tick(interleaver)
            seen.append(interleaver.pool.all_ids().tolist())
        return seen

    killed = make_adaptive(tmp_path / "killed")
    killed.start()
    train(killed, 2)
    state = killed.state_dict()
    expected = train(killed, 3)

    resumed = make_adaptive(tmp_path / "killed")
    resumed.load_state_dict(state)
    resumed.start()
    assert len(resumed.pool) == 8
    assert train(resumed, 3) == expected
    # Nothing new was drawn or stored.
    assert len(shard_names(tmp_path / "killed")) == 5
    assert "generator/images_per_second" not in resumed.metrics()


def test_a_run_that_starts_on_a_full_pool_goes_on_after_it(candidates, tmp_path):
    first = make(tmp_path, inline_worker(candidates, tmp_path))
    first.start()
    tick(first)
    second = make(
        tmp_path, inline_worker(candidates, tmp_path), next_index=dict.fromkeys(USED_CATEGORIES, 1)
    )
    second.start()
    assert len(second.pool) == 4  # to begin with
    tick(second)
    assert len(second.pool) == 8


def test_begins_with_what_an_earlier_training_decided(tmp_path):
    templates = TEMPLATE, "one {name}"
    arms = [Arm(c, t) for c in (1, 7) for t in templates] + [Arm(500, TEMPLATE)]
    scheduler = AdaptiveScheduler(arms, [1] * 5)
    rgba = np.full((4, 4, 4), 255, np.uint8)
    with PoolWriter(tmp_path / "pool") as writer:
        ids = [
            writer.add(category, rgba, source=CutOutSource("test", seed=k, origin=origin))
            for k, (category, origin) in enumerate(
                [(1, f"{TEMPLATE}#0"), (7, "one {name}#3"), (7, "a file"), (500, "a file")]
            )
        ]
    with LedgerWriter(
        tmp_path / "ledger", category_ids=[1, 7, 500], category_frequency=["r", "r", "c"]
    ) as writer:
        for step in range(6):
            append_decisions(
                writer, step, [*ids, 5], [True, False, True, True, True], undecided=step < 2
            )
            writer.flush()
    ledger = Ledger(tmp_path / "ledger")
    assert learn_from_ledger(scheduler, ledger, InstancePool(tmp_path / "pool")) == 4
    assert scheduler.drawn.tolist() == [1, 0, 0, 1, 1]
    assert scheduler.judged.tolist() == [1, 0, 0, 1, 1]
    assert scheduler.accepted.tolist() == [1, 0, 0, 0, 1]


def append_decisions(writer, step, pool_ids, accepted, *, undecided) -> None:
    count = len(pool_ids)
    ones = torch.ones(count)
    contribution = scored(pool_ids, ones)
    decision = Decision(
        accept=torch.tensor(accepted),
        value=ones,
        threshold=ones,
        undecided=torch.full((count,), undecided),
        policy="test",
    )
    writer.append(step, contribution, decision, [1])


# -- In another process


def test_batches_are_kept_on_order(tmp_path):
    worker = FakeWorker()
    interleaver = make(tmp_path, worker, queue=2)
    interleaver.start()
    interleaver.keep_asking()
    assert [len(requests) for requests in worker.asked] == [4, 4]
    interleaver.keep_asking()
    assert len(worker.asked) == 2 and interleaver.metrics()["generator/queue"] == 8
    worker.answer(0)
    interleaver.keep_asking()
    assert len(worker.asked) == 3
    assert interleaver.metrics()["generator/kept"] == 0
    indices = [(r.category_id, r.index) for requests in worker.asked for r in requests]
    assert sorted(indices) == sorted((c, i) for c in USED_CATEGORIES for i in range(3))
    interleaver.grow()
    assert worker.flushes == 1


def test_it_rests_while_new_cut_outs_wait_to_be_pasted(tmp_path):
    worker = FakeWorker()
    interleaver = make(tmp_path, worker, queue=1, max_waiting=1)
    interleaver.start()
    interleaver.keep_asking()
    worker.answers = [Outcome(r, 100 + k) for k, r in enumerate(worker.asked[0])]
    interleaver.keep_asking()
    assert len(worker.asked) == 1
    pasted = np.arange(100, 104)
    # Decided by the warm-up rule: pasted, but not judged.
    interleaver.scheduler.record_judgements(pasted, np.ones(4, bool), np.zeros(4, bool))
    assert interleaver.scheduler.judged.sum() == 0
    interleaver.keep_asking()
    assert len(worker.asked) == 2


def test_what_was_on_order_at_a_checkpoint_is_not_counted_as_drawn(tmp_path):
    interleaver = make(tmp_path, FakeWorker(), queue=2)
    interleaver.start()
    interleaver.keep_asking()
    resumed = make(tmp_path, FakeWorker(), queue=2)
    resumed.load_state_dict(interleaver.state_dict())
    assert resumed.scheduler.drawn.sum() == 0
    resumed.start()
    resumed.keep_asking()
    assert {r.index for requests in resumed.worker.asked for r in requests} == {2, 3}


# -- Crashes


def test_a_crash_is_logged_and_training_goes_on(tmp_path, caplog):
    worker = FakeWorker()
    interleaver = make(tmp_path, worker, queue=2, max_restarts=2)
    interleaver.start()
    interleaver.keep_asking()
    with caplog.at_level(logging.ERROR):
        worker.crashes = 1
        interleaver.keep_asking()
    assert [record.message for record in caplog.records] == [
        "The generator crashed: out of memory. It is started anew; training goes on."
    ]
    assert worker.starts == [False, True] and interleaver.is_running
    assert interleaver.scheduler.drawn.sum() == 0
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        worker.crashes = 5
        for _ in range(5):
            interleaver.keep_asking()
            interleaver.grow()
    assert len(caplog.records) == 2  # one more start, and the end
    assert "started anew 2 times already" in caplog.records[-1].message
    assert not interleaver.is_running and interleaver.metrics()["generator/queue"] == 0


def test_cut_outs_that_died_with_the_generator_are_forgotten(tmp_path):
    worker = FakeWorker()
    interleaver = make(tmp_path, worker, queue=1)
    interleaver.start()
    interleaver.keep_asking()
    worker.answers = [Outcome(r, 100 + k) for k, r in enumerate(worker.asked[0])]
    interleaver.keep_asking()
    assert interleaver.scheduler.num_waiting == 4
    worker.crashes = 1
    interleaver.keep_asking()
    assert interleaver.scheduler.num_waiting == 0 and interleaver.scheduler.drawn.sum() == 0


def test_cut_outs_that_outlive_the_generator_are_remembered(candidates, tmp_path):
    """It fails while a batch is filled up: what it had drawn of that is complete in the pool."""
    worker = inline_worker(candidates, tmp_path)
    interleaver = make_with_few_candidates(tmp_path, worker)
    interleaver.start()
    submit, drawn = worker.submit, []

    def submit_or_die(requests: Sequence[GenerationRequest]) -> None:
        if drawn:
            worker.submit = submit
            raise GeneratorCrash("out of memory")
        submit(requests)
        drawn.extend(outcome for outcome in worker._outcomes if outcome.pool_id is not None)

    worker.submit = submit_or_die
    tick(interleaver)
    assert 0 < len(drawn) < 8
    assert set(interleaver.pool.all_ids()) == {outcome.pool_id for outcome in drawn}
    assert interleaver.scheduler.num_waiting == len(drawn)


def test_a_generator_that_fails_at_once_within_the_trainer(tmp_path, caplog):
    class Broken:
        def generate(self, requests):
            raise MemoryError("no room")

    def make_pipeline() -> InstancePipeline:
        return InstancePipeline(Broken(), InstanceCutter([], []), PoolStore(str(tmp_path), "x"))

    interleaver = make(tmp_path, InlineWorker(make_pipeline), max_restarts=1)
    interleaver.start()
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            tick(interleaver)
    assert len(caplog.records) == 2 and len(interleaver.pool) == 0
    assert "MemoryError: no room (test_interleaver.py" in caplog.text
    assert caplog.records[0].exc_info  # with a traceback
    interleaver.close()


def test_what_the_config_lacks_stops_the_start(tmp_path):
    def make_pipeline() -> InstancePipeline:
        raise UserError("GAL.GENERATOR.MODEL is not there")

    with pytest.raises(UserError, match="MODEL is not there"):
        make(tmp_path, InlineWorker(make_pipeline)).start()


# -- Options


@pytest.mark.parametrize(
    "options, message",
    [
        (["GAL.GENERATOR.MODE", "later"], "GAL.GENERATOR.MODE is 'later'"),
        (["GAL.GENERATOR.PERIOD", "0"], "GAL.GENERATOR.PERIOD is 0"),
        (["GAL.GENERATOR.NAME", ""], "GAL.GENERATOR.NAME is empty"),
        (["GAL.COPY_PASTE.ENABLED", "False"], "nothing is pasted from the pool"),
        (["GAL.COPY_PASTE.REAL_FRACTION", "1.0"], "nothing is pasted from the pool"),
        (["GAL.POOL.ROOT", "datasets/miniature/pool"], "are both 'datasets/miniature/pool'"),
        (["GAL.POOL.ALLOW_LIST", "best.parquet"], "GAL.POOL.ALLOW_LIST is 'best.parquet'"),
        (["GAL.SCORER.ENABLED", "False"], "GAL.SCORER.ENABLED is off"),
    ],
)
def test_an_option_that_cannot_work_is_named(repository, options, message):
    config = str(repository / "configs/miniature_interleaved.yaml")
    check_interleaving(load_config(config))
    with pytest.raises(UserError, match=message):
        check_interleaving(load_config(config, options))


def test_without_a_scorer_the_fixed_rules_work(repository):
    config = str(repository / "configs/miniature_interleaved.yaml")
    options = ["GAL.SCORER.ENABLED", "False", "GAL.GENERATOR.SCHEDULE.NAME", "uniform"]
    check_interleaving(load_config(config, options))
