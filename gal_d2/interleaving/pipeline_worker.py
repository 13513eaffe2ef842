"""Runs a generation pipeline for the trainer: in its own process, or in one beside it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.build import build_pipeline
from gal_d2.generation.generator import GenerationRequest
from gal_d2.generation.journal import Outcome
from gal_d2.generation.pipeline import InstancePipeline

logger = logging.getLogger(__name__)

# How long a process is waited for that was told to stop: it finishes its batch first.
STOP_SECONDS = 60.0
# Messages to the process, besides lists of requests.
_FLUSH, _STOP = "flush", "stop"
# Kinds of messages from the process.
_READY, _OUTCOMES, _USER_ERROR, _CRASH = "ready", "outcomes", "user_error", "crash"


class GeneratorCrash(RuntimeError):
    """The generator failed in a way that nobody foresaw; it can be started anew."""


class PipelineWorker(Protocol):
    """Meets requests, now or later, and puts what it draws into a pool.

    Attributes:
        seconds: that requests took the caller so far.
    """

    seconds: float

    def start(self, *, again: bool = False) -> None:
        """Make ready.

        Args:
            again: after a crash; then do not wait until it is ready.

        Raises:
            UserError: the config asks for what is not there; not with ``again``.
            GeneratorCrash: it failed otherwise.
        """
        ...

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Ask for images.

        Raises:
            GeneratorCrash: it failed; what was asked for is lost.
        """
        ...

    def collect(self) -> list[Outcome]:
        """What became of requests since the last time, in their order; does not wait.

        Raises:
            GeneratorCrash: it failed; what it did not answer before is lost.
        """
        ...

    def flush(self) -> None:
        """Have what was drawn so far complete in the pool, now or soon.

        Raises:
            GeneratorCrash: it failed; what was not complete is lost.
        """
        ...

    def close(self) -> None:
        """Stop. What was drawn is in the pool."""
        ...


class InlineWorker:
    """Meets requests at once, in the calling process.

    Args:
        make_pipeline: builds it; called at each start.
    """

    def __init__(self, make_pipeline: Callable[[], InstancePipeline]) -> None:
        self.seconds = 0.0
        self._make_pipeline = make_pipeline
        self._pipeline: InstancePipeline | None = None
        self._outcomes: list[Outcome] = []

    def start(self, *, again: bool = False) -> None:
        """See :class:`PipelineWorker`."""
        try:
            self._pipeline = self._make_pipeline()
        except Exception as error:
            if again or not isinstance(error, UserError):
                raise GeneratorCrash(_describe(error)) from error
            raise

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """See :class:`PipelineWorker`."""
        with self._at_work():
            self._outcomes += self._pipeline.run(requests)

    def collect(self) -> list[Outcome]:
        """See :class:`PipelineWorker`."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def flush(self) -> None:
        """See :class:`PipelineWorker`."""
        with self._at_work():
            self._pipeline.flush()

    def close(self) -> None:
        """See :class:`PipelineWorker`."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            try:
                pipeline.store.close()
            except UserError as error:  # a full disk: what matters was flushed, or is lost
                logger.error("The generator could not be closed in order: %s", error)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._outcomes = []
            raise GeneratorCrash(_describe(error)) from error
        finally:
            self.seconds += time.perf_counter() - start


class ProcessWorker:
    """Meets requests in a process of its own, which dies with this one.

    Args:
        cfg: the whole config; the pipeline is built from it over there.
        categories: of the data set.
        target: what the process runs; see :func:`serve`.

    Attributes:
        process: that is running; None before the start and after the end.
    """

    def __init__(
        self,
        cfg: CfgNode,
        categories: Sequence[Category],
        *,
        target: Callable[[Connection, CfgNode, Sequence[Category]], None] | None = None,
    ) -> None:
        self.seconds = 0.0
        self.process: multiprocessing.process.BaseProcess | None = None
        self._arguments = cfg, tuple(categories)
        self._target = target or serve
        self._connection: Connection | None = None
        self._crash: GeneratorCrash | None = None

    def start(self, *, again: bool = False) -> None:
        """See :class:`PipelineWorker`."""
        # Not forked: the trainer has threads, and maybe a GPU.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(
            target=self._target, args=(theirs, *self._arguments), name="generator", daemon=True
        )
        self.process.start()
        theirs.close()  # so that its death ends the connection
        self._crash = None
        if not again:
            self._receive(starting=True)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """See :class:`PipelineWorker`."""
        self._send(list(requests))

    def collect(self) -> list[Outcome]:
        """See :class:`PipelineWorker`."""
        outcomes: list[Outcome] = []
        while self._crash is None and self._connection.poll():
            try:
                outcomes += self._receive()
            except GeneratorCrash as crash:
                self._crash = crash
        if self._crash is not None and not outcomes:
            raise self._crash
        return outcomes

    def flush(self) -> None:
        """See :class:`PipelineWorker`."""
        self._send(_FLUSH)

    def close(self) -> None:
        """See :class:`PipelineWorker`."""
        process, self.process = self.process, None
        if process is None:
            return
        self._send(_STOP)
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.terminate()
            process.join()
        self._connection.close()

    def _send(self, message: list[GenerationRequest] | str) -> None:
        with contextlib.suppress(OSError):  # it is dead, and `collect` says of what
            self._connection.send(message)

    def _receive(self, *, starting: bool = False) -> list[Outcome]:
        """The outcomes in the next message; waits for it."""
        try:
            kind, content = self._connection.recv()
        except (EOFError, OSError) as error:
            self.process.join(STOP_SECONDS)
            raise GeneratorCrash(
                f"its process ended with exit code {self.process.exitcode}"
            ) from error
        if kind == _USER_ERROR and starting:
            self.close()
            raise UserError(content)
        if kind in (_USER_ERROR, _CRASH):
            raise GeneratorCrash(content)
        return content if kind == _OUTCOMES else []


def serve(connection: Connection, cfg: CfgNode, categories: Sequence[Category]) -> None:
    """The generator process: meets requests until it is told to stop, or the trainer dies.

    Messages to it are lists of requests, "flush" and "stop". Messages from it are pairs: ("ready",
    None) once; ("outcomes", list) for each list of requests; ("user_error", text) or ("crash",
    text) before it ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which then says stop
    setup_logger(str(Path(cfg.OUTPUT_DIR) / "generator.log"), name="gal_d2")
    inbox: queue.SimpleQueue[list[GenerationRequest] | str] = queue.SimpleQueue()
    threading.Thread(target=_read_into, args=(inbox, connection), daemon=True).start()
    try:
        with build_pipeline(cfg, categories) as pipeline:
            connection.send((_READY, None))
            for message in iter(inbox.get, _STOP):
                if message == _FLUSH:
                    pipeline.flush()
                else:
                    connection.send((_OUTCOMES, pipeline.run(message)))
    except UserError as error:
        connection.send((_USER_ERROR, str(error)))
    except Exception as error:
        logger.exception("The generator crashed")
        connection.send((_CRASH, _describe(error)))
    logging.shutdown()
    os._exit(0)  # all is on disk, and the trainer waits: to tear torch down in order takes seconds


def _read_into(inbox: queue.SimpleQueue, connection: Connection) -> None:
    """Receive as it comes, so that the trainer never waits to send; end with the trainer."""
    try:
        while True:
            message = connection.recv()
            inbox.put(message)
            if message == _STOP:
                return
    except (EOFError, OSError):
        os._exit(1)  # whatever is being drawn: shards in the pool are complete or not there


def _describe(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
