"""The same pool from a Ray cluster, also when an actor dies."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import made_by_hand
import pytest

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.filters import AreaFilter
from gal_d2.generation.instance_cutter import InstanceCutter
from gal_d2.generation.pipeline import InstancePipeline
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.ray_pipeline import RayRunner, require_room
from gal_d2.generation.store import PoolStore
from gal_d2.generation.work import WorkUnit, plan_work
from gal_d2.pool.instance_pool import InstancePool

PROMPTS = PromptBook([Category(3, "bun", "r", 1), Category(5, "boot", "r", 1)])


def plan(store: PoolStore) -> list[WorkUnit]:
    return plan_work(PROMPTS, [3, 5], 10, 4, journal=store.journal)


def make_cutter(*, draws_alpha: bool) -> InstanceCutter:
    segmenters = [] if draws_alpha else [made_by_hand.DarkSegmenter()]
    return InstanceCutter(segmenters, [AreaFilter(0.05, 0.95)])


def content(folder: Path) -> dict[int, tuple]:
    pool = InstancePool(folder)
    cut_outs = [pool.get(i) for i in pool.all_ids()]
    return {c.pool_id: (c.rgba.tobytes(), c.source, c.scores) for c in cut_outs}


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Iterator[None]:
    import ray

    # Its processes find this checkout and made_by_hand.py.
    paths = [str(repository), str(Path(__file__).parent)]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    # One CPU, which the actors share: Ray starts an idle process for each.
    options = {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False}
    for attempt in range(3):
        try:
            ray.init(address="local", **options)
            break
        except Exception:  # on a busy machine, Ray's 30 s for its own start may be too short
            ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def wrong_option() -> None:
    raise UserError("GAL.GENERATOR.MODEL is wrong: correct it")


@pytest.mark.slow
def test_a_killed_actor_s_work_is_done_again(cluster: None, tmp_path: Path) -> None:
    """Two generators; the one that draws image 5 of category 5 is killed while it does."""
    make = functools.partial(made_by_hand.DyingGenerator, tmp_path / "died", 5, 5)
    store = PoolStore(str(tmp_path / "ray"), "r")
    with RayRunner(make, make_cutter, generators=2, cutters=1) as runner:
        outcomes = [o for done in runner.run(plan(store), store) for o in done]
    assert (tmp_path / "died").exists()
    requests = [(o.request.category_id, o.request.index) for o in outcomes]
    assert sorted(requests) == [(c, i) for c in (3, 5) for i in range(10)]
    store.close()

    alone = PoolStore(str(tmp_path / "alone"), "r")
    pipeline = InstancePipeline(made_by_hand.DiscGenerator(), make_cutter(draws_alpha=False), alone)
    for unit in plan(alone):
        pipeline.run(unit.requests)
    alone.close()
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    assert InstancePool(tmp_path / "ray").counts() == {3: 8, 5: 8}
    assert sum(len(s) for s in [InstancePool(tmp_path / "ray").all_ids()]) == store.added
    assert plan(PoolStore(str(tmp_path / "ray"), "r")) == []

    # In the same cluster, since it takes long to start: a user's mistake keeps its sentence.
    with (
        RayRunner(wrong_option, make_cutter, generators=1, cutters=1) as runner,
        pytest.raises(UserError, match="MODEL is wrong: correct it"),
    ):
        list(runner.run(plan(PoolStore(str(tmp_path / "other"), "r")), store))


class FakeRay:
    """Actors of this process whose calls are done when they are waited for, the latest first."""

    class exceptions:
        class RayError(Exception): ...

        class RayTaskError(RayError):
            cause: Exception | None = None

        class RayActorError(RayError): ...

        class ObjectLostError(RayError): ...

    def __init__(self) -> None:
        self.results: dict[int, object] = {}

    def call(self, function, *arguments, num_returns: int = 1):
        key = len(self.results)
        self.results[key] = lambda: function(*(self.value(a) for a in arguments))
        return key if num_returns == 1 else ((key, 0), key)

    def value(self, reference: object) -> object:
        if isinstance(reference, tuple):
            return self.results[reference[0]]()[0]
        return reference

    def wait(self, references: list, timeout: float | None = None) -> tuple[list, list]:
        if references[0] == "never":
            return [], references
        return [references[0]], references[1:]  # those of generators come first

    def get(self, reference: int) -> object:
        result = self.results[reference]()
        return result[1] if isinstance(result, tuple) else result


def fake_runner(generator, cutter, restarts=lambda: "there") -> tuple[RayRunner, FakeRay]:
    """Of one generator and one cutter; ``restarts`` is called when one is waited for."""
    ray = FakeRay()
    runner = RayRunner(lambda: None, lambda **k: None)
    runner._ray = ray

    def draw(num_returns: int):
        def remote(requests):
            return ray.call(lambda r: (generator(r), 0), requests, num_returns=num_returns)

        return SimpleNamespace(remote=remote)

    def ask(max_task_retries: int):
        assert max_task_retries == -1  # or Ray says at once that it is not there
        return SimpleNamespace(remote=restarts)

    is_there = SimpleNamespace(options=ask)
    draws = SimpleNamespace(options=draw)
    check = SimpleNamespace(remote=lambda images: ray.call(cutter, images))
    runner._generators = [SimpleNamespace(draw=draws, is_there=is_there)]
    runner._cutters = [SimpleNamespace(check=check, is_there=is_there)]
    return runner, ray


def test_generators_do_not_run_ahead_of_the_cutters(tmp_path: Path) -> None:
    """Generators are served first here, and still what waits for the cutter is bounded."""
    on_their_way, most = set(), []
    discs, cutter = made_by_hand.DiscGenerator(), make_cutter(draws_alpha=False)

    def draw(requests):
        on_their_way.add((requests[0].category_id, requests[0].index))
        most.append(len(on_their_way))
        return discs.generate(requests)

    def check(images):
        request = images[0].request
        on_their_way.discard((request.category_id, request.index))
        return cutter.check(images)

    runner, _ = fake_runner(draw, check)
    store = PoolStore(str(tmp_path), "r")
    units = plan_work(PROMPTS, [3, 5], 40, 4)
    outcomes = [o for done in runner.run(units, store) for o in done]
    assert len(outcomes) == 80
    # Two at the cutter and two more drawn; the generator draws nothing beyond.
    assert max(most) == 4


def test_actors_that_always_die_end_the_run(tmp_path: Path) -> None:
    def die(requests):
        raise FakeRay.exceptions.RayActorError("out of memory")

    runner, _ = fake_runner(die, lambda images: [])
    with pytest.raises(UserError, match=r"died 4 times.*category 3 \(out of memory\).*BATCH_SIZE"):
        list(runner.run(plan_work(PROMPTS, [3], 4, 4), PoolStore(str(tmp_path), "r")))


def test_an_actor_that_has_died_is_waited_for(tmp_path: Path) -> None:
    """What it is given while Ray restarts it would fail, and count as one more death."""
    discs, cutter, events = made_by_hand.DiscGenerator(), make_cutter(draws_alpha=False), []

    def draw(requests):
        if "back" not in events:
            events.append("dead")
            raise FakeRay.exceptions.RayActorError("killed")
        return discs.generate(requests)

    runner, _ = fake_runner(draw, cutter.check, restarts=lambda: events.append("back"))
    store = PoolStore(str(tmp_path), "r")
    done = list(runner.run(plan_work(PROMPTS, [3], 4, 4), store))
    assert len(done) == 1 and events == ["dead", "back"]


def test_an_actor_that_does_not_come_back_ends_the_run(tmp_path: Path) -> None:
    def die(requests):
        raise FakeRay.exceptions.RayActorError("killed")

    runner, _ = fake_runner(die, lambda images: [], restarts=lambda: "never")
    with pytest.raises(UserError, match=r"has not restarted an actor.*the same command goes on"):
        list(runner.run(plan_work(PROMPTS, [3], 4, 4), PoolStore(str(tmp_path), "r")))


CUTTER = {"num_gpus": 0.25, "num_cpus": 1}


@pytest.mark.parametrize(
    ("nodes", "generators", "cutters", "placed"),
    [
        # Two GPUs: each has a generator and a cutter beside it.
        ([{"CPU": 8, "GPU": 2}], (2, {"num_gpus": 0.75}), (2, CUTTER), 4),
        ([{"CPU": 8, "GPU": 2}], (3, {"num_gpus": 0.75}), (2, CUTTER), 4),
        # Three times 0.6 is less than 2, but a share is of one GPU.
        ([{"CPU": 8, "GPU": 2}], (3, {"num_gpus": 0.6}), (1, CUTTER), 3),
        # Cutters need CPUs as well.
        ([{"CPU": 1, "GPU": 2}], (2, {"num_gpus": 0.75}), (2, CUTTER), 3),
        # Enough in all, but no machine has enough.
        ([{"CPU": 1}, {"CPU": 1}], (2, {"num_cpus": 0.66}), (1, {"num_cpus": 0.66}), 2),
        ([{"CPU": 2}], (2, {"num_cpus": 2 / 3}), (1, {"num_cpus": 2 / 3}), 3),
        ([], (1, {"num_cpus": 1}), (1, {"num_cpus": 1}), 0),
    ],
)  # fmt: skip
def test_actors_that_find_no_room_are_said(nodes, generators, cutters, placed: int) -> None:
    """Ray would wait for a machine without end."""
    actors = {"generators": generators, "cutters": cutters}
    asked = generators[0] + cutters[0]
    if placed == asked:
        require_room(nodes, actors)
        return
    with pytest.raises(UserError, match=f"room for {placed} of the {asked} actors"):
        require_room(nodes, actors)
