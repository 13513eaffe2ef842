"""What a training tells others of itself: its report, key figures, Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage
from scored import scored

from gal_d2.config import add_gal_config
from gal_d2.engine.key_figures import KeyFiguresHook
from gal_d2.engine.report_hook import ReportHook
from gal_d2.engine.wandb_writer import WandbWriter
from gal_d2.errors import UserError
from gal_d2.selection.posterior import Posterior
from gal_d2.setup.config_check import require_wandb


def finished(hook, steps_done: int, max_iter: int = 10):
    hook.trainer = SimpleNamespace(iter=steps_done, max_iter=max_iter)
    return hook


def test_the_report_is_written_when_all_steps_are_done(tmp_path: Path):
    (tmp_path / "metrics.json").touch()
    finished(ReportHook(str(tmp_path)), 9).after_train()  # interrupted in the last step
    assert not (tmp_path / "report.html").exists()
    finished(ReportHook(str(tmp_path)), 10).after_train()
    assert "Report of" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("error", [UserError("no folder"), ZeroDivisionError("a bug")])
def test_a_report_that_fails_is_a_warning(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog
):
    def fail(folder: Path) -> Path:
        raise error

    monkeypatch.setattr("gal_d2.reporting.report.write_report", fail)
    finished(ReportHook(str(tmp_path)), 10).after_train()
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert str(error) in record.getMessage() and "tools/report.py" in record.getMessage()


def test_key_figures_of_a_hundred_steps(tmp_path: Path):
    posterior = Posterior(1, prior_count=1.0)
    judge = SimpleNamespace(judged=None, posterior=posterior)
    hook = KeyFiguresHook(judge)
    hook.trainer = SimpleNamespace(iter=0, max_iter=150)
    with EventStorage() as storage:
        for step in range(150):
            hook.trainer.iter = storage.iter = step
            judge.judged = SimpleNamespace(contribution=scored([-1, step % 4, 7], [0.0] * 3))
            if step % 50 == 49:
                storage.put_scalar("gal/auditions", 100.0)
            if step == 120:
                rows = scored([1, 2, 3, 1, 2, 3], [0.1, 0.5, 0.9, 0.1, 0.5, 0.9])
                posterior.update(rows, step)
            hook.after_step()
            if step == 98:
                assert "gal/distinct" not in storage.latest()
            if step == 99:
                assert storage.latest()["gal/distinct"] == (5 / 200, 99)
                assert storage.latest()["gal/audition_share"] == (200 / 400, 99)
                assert "gal/separation" not in storage.latest()  # nothing is known yet
        assert storage.latest()["gal/distinct"] == (5 / 100, 149)  # the last fifty steps
        assert storage.latest()["gal/audition_share"] == (100 / 200, 149)
        value, step = storage.latest()["gal/separation"]
    belief = posterior.get(torch.tensor([1, 2, 3]))
    expected, unknown = np.var(belief.mean), np.mean(belief.std**2)
    assert step == 149 and value == pytest.approx(expected / (expected + unknown))


def test_a_run_without_pastes_or_posterior_has_no_figures():
    hook = KeyFiguresHook(SimpleNamespace(judged=None, posterior=None))
    hook.trainer = SimpleNamespace(iter=99, max_iter=200)
    with EventStorage() as storage:
        hook.after_step()
        assert not storage.latest()


class FakeRun:
    """A run of a fake wandb module, which keeps what it was told."""

    id = "abc123"

    def __init__(self, **arguments: object) -> None:
        self.arguments = arguments
        self.logged: list[tuple[int, dict]] = []
        self.is_finished = False

    def log(self, values: dict, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    started: list[FakeRun] = []

    def init(**arguments: object) -> FakeRun:
        started.append(FakeRun(**arguments))
        return started[-1]

    module = ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return started


def config(folder: Path) -> CfgNode:
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.GAL.WANDB = "long-tail"
    cfg.OUTPUT_DIR = str(folder)
    return cfg


def test_weights_and_biases_gets_each_scalar_once(runs: list[FakeRun], tmp_path: Path):
    require_wandb("long-tail")
    writer = WandbWriter(config(tmp_path / "run"))
    with EventStorage() as storage:
        storage.iter = 4
        storage.put_scalar("loss", 2.0, smoothing_hint=False)
        storage.iter = 5
        storage.put_scalar("gal/distinct", 0.5, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.iter = 6
        storage.put_scalar("loss", 1.0, smoothing_hint=False)
        writer.write()
    writer.close()
    (run,) = runs
    assert run.logged == [(4, {"loss": 2.0}), (5, {"gal/distinct": 0.5}), (6, {"loss": 1.0})]
    assert run.is_finished
    assert run.arguments["project"] == "long-tail" and run.arguments["name"] == "run"
    assert run.arguments["config"]["GAL.WANDB"] == "long-tail" and run.arguments["id"] is None


def test_a_resumed_run_goes_on_where_it_was(runs: list[FakeRun], tmp_path: Path):
    WandbWriter(config(tmp_path))
    WandbWriter(config(tmp_path))
    assert [run.arguments["id"] for run in runs] == [None, "abc123"]
    assert all(run.arguments["resume"] == "allow" for run in runs)


def test_without_the_package_the_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    require_wandb("")
    with pytest.raises(UserError, match=r"GAL\.WANDB is 'p', but .*pip install wandb"):
        require_wandb("p")
