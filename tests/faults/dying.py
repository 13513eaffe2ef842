"""Work in a process that kills itself at a chosen call of a function: a kill at a random point that
can be repeated."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

KILLED = -signal.SIGKILL


class Countdown:
    """Kills this process with the ``limit``-th call of a function in this thread; 0: never."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.calls = 0
        self._process = 0

    def start(self) -> None:
        """Count from here on; not in processes that are forked from here, which would die alone."""
        self._process = os.getpid()
        sys.setprofile(self._count)

    def stop(self) -> None:
        """Count no more."""
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self.calls += 1
            if self.calls == self.limit and os.getpid() == self._process:
                os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None], log: Path | None = None, file_size: int = 0) -> int:
    """Exit status of a forked process that did some work; negative: the signal that ended it.

    Args:
        work: 1 is the status where it raises.
        log: gets what it prints, also to stderr.
        file_size: so many bytes fit in a file, as on a disk that is full then; 0: any number.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        if log is not None:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            # Not those of pytest, which keeps what is written to them.
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
        if file_size:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def calls_of(work: Callable[[], None], folder: Path) -> int:
    """How many calls of functions some work takes."""
    result = folder / "calls"

    def count() -> None:
        countdown = Countdown()
        countdown.start()
        work()
        countdown.stop()
        result.write_text(str(countdown.calls))

    assert in_child(count) == 0
    return int(result.read_text())


def killed(work: Callable[[], None], call: int) -> bool:
    """Whether some work was killed at its ``call``-th call of a function, or ended before."""

    def die() -> None:
        countdown = Countdown(call)
        countdown.start()
        work()
        countdown.stop()

    status = in_child(die)
    assert status in (0, KILLED), status
    return status == KILLED
