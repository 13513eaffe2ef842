"""The pipeline on a Ray cluster: actors that draw, actors that cut out, one process that stores.

The driver hands units of work to the generators, the images (which stay in Ray's object store) to
the cutters, and writes what comes back. It keeps only a few units on their way, so that no one runs
ahead of the slowest stage. When an actor dies, Ray starts it anew and the driver does its units
again; a unit that was stored is never handed out again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gal_d2.errors import UserError
from gal_d2.generation.generator import GeneratedImage, GenerationRequest, InstanceGenerator
from gal_d2.generation.hub import require_package
from gal_d2.generation.instance_cutter import CheckedImage, InstanceCutter
from gal_d2.generation.journal import Outcome
from gal_d2.generation.store import PoolStore
from gal_d2.generation.work import WorkUnit

logger = logging.getLogger(__name__)

# A unit whose actors die so often is given up, and the run with it.
_MAX_TRIES = 4
# An actor that no machine has room for after so many seconds would be waited for without end.
_PLACED_WITHIN = 300.0
# Units at each actor: one in work, one waiting, so that it need not idle.
_AT_ACTOR = 2


class GeneratorActor:
    """Draws, in a process of its own; the model is loaded with the first call.

    Args:
        make: builds the generator. It is pickled.
    """

    def __init__(self, make: Callable[[], InstanceGenerator]) -> None:
        self._make = make
        self._generator: InstanceGenerator | None = None

    def is_there(self) -> bool:
        """Says that the actor runs."""
        return True

    def draw(self, requests: Sequence[GenerationRequest]) -> tuple[list[GeneratedImage], int]:
        """Images of requests, and this process's id.

        Two results: the images stay in the object store, and the small one tells the driver that
        they are there.
        """
        if self._generator is None:
            self._generator = self._make()
        return self._generator.generate(requests), os.getpid()


class CutterActor:
    """Segments and filters, in a process of its own; models are loaded with the first call.

    Args:
        make: builds the cutter; it is pickled, and called with ``draws_alpha=True`` while every
            image brings an alpha channel, so that no segmenter is loaded in vain.
    """

    def __init__(self, make: Callable[..., InstanceCutter]) -> None:
        self._make = make
        self._cutter: InstanceCutter | None = None
        self._draws_alpha = True

    def is_there(self) -> bool:
        """Says that the actor runs."""
        return True

    def check(self, images: Sequence[GeneratedImage]) -> list[CheckedImage]:
        """See :meth:`gal_d2.generation.instance_cutter.InstanceCutter.check`."""
        opaque = any(image.alpha is None and not image.reason for image in images)
        if self._cutter is None or (opaque and self._draws_alpha):
            self._draws_alpha = not opaque
            self._cutter = self._make(draws_alpha=not opaque)
        return self._cutter.check(images)


@dataclass(eq=False)
class _Task:
    """A unit at an actor: ``signal`` is what is waited for, ``images`` what a generator makes."""

    unit: WorkUnit
    actor: int
    signal: Any
    images: Any = None


class RayRunner:
    """Runs units of work on a Ray cluster; a context manager that starts and ends the actors.

    Args:
        make_generator, make_cutter: build what the actors run; see :class:`GeneratorActor` and
            :class:`CutterActor`.
        address: of a cluster ("auto", "ray://HOST:10001"), or "local" for one on this machine.
        generators: number of generating actors; 0: one for each GPU of the cluster, or two without.
        cutters: number of cutting actors; 0: as many.
        gpus_per_cutter: share of a GPU that a cutter gets, and a generator leaves to it; without
            GPUs each actor gets a CPU.

    Raises:
        UserError: Ray is missing, there is no cluster at the address, or it has no room for so many
            actors.
    """

    def __init__(
        self,
        make_generator: Callable[[], InstanceGenerator],
        make_cutter: Callable[..., InstanceCutter],
        *,
        address: str = "local",
        generators: int = 0,
        cutters: int = 0,
        gpus_per_cutter: float = 0.25,
    ) -> None:
        self._ray = require_package("ray", "--ray")
        self._make_generator = make_generator
        self._make_cutter = make_cutter
        self._address = address
        self._num_generators = generators
        self._num_cutters = cutters
        self._gpus_per_cutter = gpus_per_cutter
        self._generators: list[Any] = []
        self._cutters: list[Any] = []
        self._started_ray = False

    def __enter__(self) -> RayRunner:
        ray = self._ray
        if not ray.is_initialized():
            options = {"include_dashboard": False} if self._address == "local" else {}
            try:
                ray.init(
                    address=self._address,
                    logging_level=logging.WARNING,
                    log_to_driver=True,
                    **options,
                )
            except Exception as error:  # its versions raise many kinds
                reason = " ".join(str(error).split())[:300]
                raise UserError(
                    f"--ray {self._address}: no Ray cluster can be reached there ({reason}); start "
                    "one with `ray start --head`, or leave the address out"
                ) from error
            self._started_ray = True
        try:
            self._start_actors()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_actors(self) -> None:
        ray = self._ray
        gpus = int(ray.cluster_resources().get("GPU", 0))
        generators = self._num_generators or gpus or 2
        cutters = self._num_cutters or generators
        share = self._gpus_per_cutter if gpus else 0
        if gpus and not 0 < share < 1:
            raise UserError(
                f"--ray-gpus-per-cutter is {share}: set it above 0 and below 1, the "
                "share of a GPU that segmenting gets beside generating."
            )
        drawing = (
            {"num_gpus": 1 - share} if gpus else {"num_cpus": _cpu_share(ray, generators + cutters)}
        )
        cutting = {"num_gpus": share, "num_cpus": 1} if gpus else drawing
        require_room(
            [node["Resources"] for node in ray.nodes() if node["Alive"]],
            {"generators": (generators, drawing), "cutters": (cutters, cutting)},
        )
        generator_class = ray.remote(max_restarts=-1, **drawing)(GeneratorActor)
        cutter_class = ray.remote(max_restarts=-1, **cutting)(CutterActor)
        self._generators = [generator_class.remote(self._make_generator) for _ in range(generators)]
        self._cutters = [cutter_class.remote(self._make_cutter) for _ in range(cutters)]
        self._wait_for_actors()

    def _wait_for_actors(self) -> None:
        """Other jobs may have what the cluster has in all."""
        actors = [*self._generators, *self._cutters]
        signals = [actor.is_there.remote() for actor in actors]
        there, waiting = self._ray.wait(signals, num_returns=len(signals), timeout=_PLACED_WITHIN)
        if waiting:
            raise UserError(
                f"Ray has placed {len(there)} of {len(actors)} actors in {_PLACED_WITHIN:.0f} s: "
                "the cluster is busy or too small, so wait for it, or lower "
                "--ray-generators and --ray-cutters."
            )

    def __exit__(self, *error: object) -> None:
        for actor in (*self._generators, *self._cutters):
            self._ray.kill(actor)
        self._generators, self._cutters = [], []
        if self._started_ray:
            self._ray.shutdown()

    def run(self, units: Sequence[WorkUnit], store: PoolStore) -> Iterator[list[Outcome]]:
        """Do all units, in any order; yields what became of each as it is stored.

        Args:
            units: each once.
            store: the pool; only this process writes to it.

        Raises:
            UserError: an option is wrong (an actor says so), the pool cannot be written to, or
                the actors that a unit is given to die again and again.
        """
        waiting = deque(units)
        drawn: deque[_Task] = deque()
        drawing: list[_Task] = []
        cutting: list[_Task] = []
        tries: Counter = Counter()
        while waiting or drawn or drawing or cutting:
            self._hand_out(waiting, drawn, drawing, cutting)
            ready, _ = self._ray.wait([task.signal for task in (*drawing, *cutting)])
            for task in [task for task in drawing if task.signal in ready]:
                drawing.remove(task)
                if self._result(task, self._generators, tries) is None:
                    waiting.appendleft(task.unit)
                else:
                    drawn.append(task)
            for task in [task for task in cutting if task.signal in ready]:
                cutting.remove(task)
                checked = self._result(task, self._cutters, tries)
                if checked is None:
                    waiting.appendleft(task.unit)
                else:
                    yield store.add(checked)

    def _hand_out(
        self,
        waiting: deque[WorkUnit],
        drawn: deque[_Task],
        drawing: list[_Task],
        cutting: list[_Task],
    ) -> None:
        """Give work to the actors that have room for it."""
        while drawn and len(cutting) < _AT_ACTOR * len(self._cutters):
            task = drawn.popleft()
            actor = _least_busy(len(self._cutters), cutting)
            signal = self._cutters[actor].check.remote(task.images)
            cutting.append(_Task(task.unit, actor, signal))
        # Back-pressure: images that no cutter has room for keep the generators waiting.
        room = _AT_ACTOR * len(self._generators) - len(drawn)
        while waiting and len(drawing) < room:
            unit = waiting.popleft()
            actor = _least_busy(len(self._generators), drawing)
            method = self._generators[actor].draw.options(num_returns=2)
            images, signal = method.remote(list(unit.requests))
            drawing.append(_Task(unit, actor, signal, images))

    def _result(self, task: _Task, actors: Sequence[Any], tries: Counter) -> Any | None:
        """What one of the actors has returned; None if it died: the unit has to be done again."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(task.signal)
        except errors.RayTaskError as error:
            # The exception that was raised in the actor: a user's mistake keeps its sentence.
            if isinstance(error.cause, UserError):
                raise error.cause from error
            if not isinstance(error.cause, errors.RayError):
                raise
            reason: Exception = error  # the images were lost with the machine that held them
        except (errors.RayActorError, errors.ObjectLostError) as error:
            reason = error
        tries[task.unit.number] += 1
        logger.warning(
            "An actor died with images of category %d; they are drawn again (%s)",
            task.unit.category_id,
            " ".join(str(reason).split())[:200],
        )
        if tries[task.unit.number] >= _MAX_TRIES:
            raise UserError(
                f"Ray actors died {_MAX_TRIES} times over the same images of category "
                f"{task.unit.category_id} ({' '.join(str(reason).split())[:300]}); see Ray's logs: "
                "most often memory is short, so lower GAL.GENERATOR.BATCH_SIZE"
            ) from reason
        self._wait_until_back(actors[task.actor])
        return None

    def _wait_until_back(self, actor: Any) -> None:
        """What an actor is given while Ray restarts it fails at once, as if it had died again."""
        # With retries Ray keeps the call until the actor is there.
        signal = actor.is_there.options(max_task_retries=-1).remote()
        back, _ = self._ray.wait([signal], timeout=_PLACED_WITHIN)
        if not back:
            raise UserError(
                f"Ray has not restarted an actor that died within {_PLACED_WITHIN:.0f} s: see its "
                "logs; what is stored is kept, and the same command goes on with the rest."
            )


def require_room(
    nodes: Sequence[Mapping[str, float]], actors: Mapping[str, tuple[int, Mapping[str, float]]]
) -> None:
    """Place actors on machines, each on the first that has room, as far as there are any.

    Args:
        nodes: what each machine has, by Ray's names ("CPU", "GPU").
        actors: how many there are of a kind, and what each takes ("num_cpus", "num_gpus").

    Raises:
        UserError: some find no room. Ray itself would wait for a machine that never comes.
    """
    cpus = [node.get("CPU", 0.0) for node in nodes]
    # Shares of a GPU are of one and the same.
    gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]
    placed = 0
    for count, needs in sorted(actors.values(), key=lambda kind: -kind[1].get("num_gpus", 0.0)):
        placed += sum(_place(needs, cpus, gpus) for _ in range(count))
    asked = sum(count for count, _ in actors.values())
    if placed < asked:
        have = ", ".join(
            f"{sum(n.get(name, 0) for n in nodes):g} {name}s" for name in ("CPU", "GPU")
        )
        raise UserError(
            f"the Ray cluster ({len(nodes)} machines, {have}) has room for {placed} of the "
            f"{asked} actors that are asked for ("
            + ", ".join(f"{count} {name}" for name, (count, _) in actors.items())
            + "): lower --ray-generators and --ray-cutters, or add machines."
        )


def _place(needs: Mapping[str, float], cpus: list[float], gpus: list[list[float]]) -> bool:
    """Take what an actor needs off the first machine that has it."""
    cpu, gpu = needs.get("num_cpus", 0.0), needs.get("num_gpus", 0.0)
    for number, (free, cards) in enumerate(zip(cpus, gpus, strict=True)):
        card = next((k for k, left in enumerate(cards) if left >= gpu - 1e-6), None)
        if free < cpu - 1e-6 or (gpu > 0 and card is None):
            continue
        cpus[number] -= cpu
        if gpu > 0:
            cards[card] -= gpu
        return True
    return False


def _least_busy(count: int, tasks: Sequence[_Task]) -> int:
    load = Counter(task.actor for task in tasks)
    return min(range(count), key=lambda actor: load[actor])


def _cpu_share(ray: Any, actors: int) -> float:
    """CPUs for each actor: one, or less where there are fewer CPUs than actors."""
    return min(1.0, ray.cluster_resources().get("CPU", 1) / actors)
