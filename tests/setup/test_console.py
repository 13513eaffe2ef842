"""What reaches the console: sentences and progress, no listings."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from gal_d2.engine.progress import EvaluationLoader, ProgressHook, duration
from gal_d2.errors import UserError
from gal_d2.setup.console import ConsoleFilter, quiet_console
from gal_d2.setup.summary import end_summary


def record(name: str, message: str, level: int = logging.INFO, error: Exception | None = None):
    info = (type(error), error, None) if error else None
    return logging.LogRecord(name, level, __file__, 1, message, (), info)


@pytest.mark.parametrize(
    ("name", "message", "level", "shown"),
    [
        ("detectron2", "Running with full config:\n" + "A: 1\n" * 600, logging.INFO, False),
        ("detectron2.engine.defaults", "Model:\n" + "conv\n" * 90, logging.INFO, False),
        ("detectron2.utils.events", " eta: 1:00  iter: 19", logging.INFO, False),
        ("detectron2.engine.train_loop", "Starting training from iteration 2", logging.INFO, True),
        ("fvcore.common.checkpoint", "Loading ema from x", logging.INFO, True),
        ("detectron2", "Some\nparameters\nare\nnot\nthere", logging.WARNING, True),
        ("gal_d2.engine.trainer", "Training:\n" + "line\n" * 10, logging.INFO, True),
    ],
)
def test_listings_stay_in_the_log_file(name: str, message: str, level: int, shown: bool) -> None:
    assert ConsoleFilter().filter(record(name, message, level)) == shown


def test_a_user_s_mistake_has_no_traceback() -> None:
    """detectron2 logs what its training loop raises; the tool prints the sentence."""
    name, message = "detectron2.engine.train_loop", "Exception during training:"
    mistake = record(name, message, logging.ERROR, UserError("set it to 1"))
    assert not ConsoleFilter().filter(mistake)
    assert ConsoleFilter().filter(record(name, message, logging.ERROR, RuntimeError("a bug")))


def test_console_handlers_alone_are_quiet(tmp_path: Path) -> None:
    log = logging.getLogger("fvcore")
    console = logging.StreamHandler(sys.stdout)
    with (tmp_path / "log.txt").open("w") as file:
        handlers = [console, logging.StreamHandler(file)]
        before, log.handlers = log.handlers, handlers
        try:
            quiet_console()
            quiet_console()
        finally:
            log.handlers = before
    assert [len(handler.filters) for handler in handlers] == [1, 0]


def test_progress_has_loss_rate_and_eta_from_the_first_step(caplog, monkeypatch) -> None:
    monkeypatch.setattr("gal_d2.engine.progress.sys.stderr", SimpleNamespace(isatty=lambda: False))
    monkeypatch.setattr("gal_d2.engine.progress.time.perf_counter", iter(range(0, 999, 3)).__next__)
    hook = ProgressHook()
    hook.trainer = SimpleNamespace(max_iter=50, start_iter=4, iter=4)
    with EventStorage(4) as storage, caplog.at_level(logging.INFO, "gal_d2.engine.progress"):
        hook.before_train()
        for step in range(4, 50):
            hook.trainer.iter = step
            storage.put_scalar("total_loss", 2.0 / (1 + step))
            storage.put_scalar("lr", 0.002, smoothing_hint=False)
            hook.after_step()
        hook.after_train()
    lines = [entry.getMessage() for entry in caplog.records]
    assert lines[0] == "Step 5 of 50: loss: 0.400, lr: 0.002, 3.00 s a step, ETA 2 min 15 s"
    assert [int(line.split()[1]) for line in lines] == [5, 6, 9, 14, 24, 44]


def test_an_evaluation_shows_its_progress_in_the_same_form(caplog, monkeypatch) -> None:
    monkeypatch.setattr("gal_d2.engine.progress.sys.stderr", SimpleNamespace(isatty=lambda: False))
    monkeypatch.setattr("gal_d2.engine.progress.time.perf_counter", iter(range(0, 999, 3)).__next__)
    batches = [[{"image_id": number}] for number in range(45)]
    loader = EvaluationLoader(batches, "val")
    with caplog.at_level(logging.INFO, "gal_d2.engine.progress"):
        assert list(loader) == batches and len(loader) == 45
    lines = [entry.getMessage() for entry in caplog.records]
    assert lines[0] == "Evaluation on val, batch 1 of 45: 3.00 s a batch, ETA 2 min 12 s"
    assert [int(line.split()[4]) for line in lines] == [1, 2, 5, 10, 20, 40]


def test_on_a_terminal_there_is_a_bar_that_ends_with_the_evaluation(monkeypatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("gal_d2.engine.progress.sys.stderr", terminal)
    batches = iter(EvaluationLoader([[{}], [{}], [{}]], "val"))
    next(batches)
    batches.close()  # the model failed
    assert "Evaluation on val:" in terminal.getvalue() and "/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")  # cleared: the log goes on below


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (3601, "1 h"), (90_061, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_at_the_end_everything_that_is_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "model_final.pth").touch()
    lines = end_summary(str(tmp_path)).splitlines()
    assert lines[0] == "Done. Results:" and len(lines) == 3
    assert "model_final.pth" in lines[1] and "ledger" in lines[2]
    assert "no results" in end_summary(str(tmp_path / "nowhere"))
