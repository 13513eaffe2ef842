"""Keeps a second process out of a folder that one is writing to."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

_FILE = ".lock"
_HELD = frozenset({errno.EACCES, errno.EAGAIN})


@contextmanager
def locked(folder: str | os.PathLike, in_use: str) -> Iterator[None]:
    """Within the block no other process gets into a block for the same folder.

    The lock goes with the process, however that ends; its children do not inherit it, so that none
    that outlives it keeps the folder. Where the file system has no locks, that is logged.

    Args:
        folder: exists.
        in_use: what to say and do where another process is in it; its id and machine are added.

    Raises:
        UserError: another process is in it.
    """
    path = Path(folder) / _FILE
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                raise UserError(f"{in_use} ({file.read().strip() or path})") from error
            logger.warning("%s: no lock is to be had (%s)", path, error.strerror)
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
