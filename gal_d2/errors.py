"""Errors that a user can mend: tools print them as one sentence, without a traceback."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message names the file, the field and the remedy in one sentence."""


def some_of(values: Iterable[object], most: int = 4) -> str:
    """The first of some values, for a message, and how many more there are.

    Example:
        >>> some_of("abcdef"), some_of([1, 2])
        ('a, b, c, d and 2 more', '1, 2')
    """
    values = [str(value) for value in values]
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more


# What the system says where a folder, a disk or a right is not as it has to be.
_OF_THE_SYSTEM = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG),
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EMFILE, errno.EFBIG),
    }
)

# What only the data sets for trying things out need.
_TESTBED_PACKAGES = frozenset({"skimage", "sklearn", "scipy"})

LOADER_ENDED = (
    "a process that loads images was ended from outside; often the memory is too small: lower "
    "DATALOADER.NUM_WORKERS, and go on with --resume"
)
# What torch says where another process of the run has died, and what is to be done.
_OF_OTHER_PROCESSES = (
    (re.compile(r"DataLoader worker .*(killed|exited)"), LOADER_ENDED),
    (
        re.compile(r"(?i)connection (closed|reset) by peer|remote process exited|broken pipe"),
        "another process of this run has ended: see what it said, and go on with --resume",
    ),
)


def sentence_of(error: BaseException) -> str | None:
    """What a user reads in place of a traceback; None where the traceback is what helps.

    Example:
        >>> sentence_of(UserError("--top is 0: set it to 1 or more."))
        '--top is 0: set it to 1 or more.'
        >>> sentence_of(ValueError("a bug")) is None
        True
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; see to its permissions and to room, or name another path."
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        if package in _TESTBED_PACKAGES:
            return f"{package} is not installed: pip install -e '.[testbeds]' installs it."
    if isinstance(error, FloatingPointError):  # detectron2's, of the loss
        reason = " ".join(str(error).split())
        return f"{reason} Lower SOLVER.BASE_LR, or set SOLVER.CLIP_GRADIENTS.ENABLED True."
    if isinstance(error, RuntimeError):  # of torch, which says more than this only in words
        said = " ".join(str(error).split())
        for pattern, sentence in _OF_OTHER_PROCESSES:
            if pattern.search(said):
                return f"{sentence} ({said:.120})."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return (
            "the GPU's memory is too small: lower SOLVER.IMS_PER_BATCH, GAL.DATA.LSJ.IMAGE_SIZE or "
            "GAL.GENERATOR.BATCH_SIZE."
        )
    return None
