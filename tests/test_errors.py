"""Which exceptions are a user's business, and what is read in their place."""

from __future__ import annotations

import errno
import os

import pytest

from gal_d2.errors import UserError, sentence_of
from gal_d2.setup.launch import run_tool


class OutOfMemoryError(RuntimeError):
    """Called as torch's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("--top is 0: set it to 1."), "--top is 0"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/log.txt"), "out/log.txt: No space"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory"),
        (FloatingPointError("Loss became infinite or NaN!\nloss_dict = {}"), "SOLVER.BASE_LR"),
        (ModuleNotFoundError("No module", name="sklearn.metrics"), "-e '.[testbeds]'"),
        (OutOfMemoryError("CUDA out of memory"), "SOLVER.IMS_PER_BATCH"),
    ],
)
def test_one_sentence_and_status_1(error: Exception, words: str, capsys) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_tool(fails)
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and words in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("x"), OSError("no errno"), AssertionError(), ImportError("x")],
)
def test_bugs_keep_their_traceback(error: Exception) -> None:
    assert sentence_of(error) is None

    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        run_tool(fails)


def test_an_interruption_is_no_traceback(capsys) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_tool(interrupted)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"
