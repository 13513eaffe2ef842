"""What a training tells others of itself: its report, key figures, Weights & Biases."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from scored import scored
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gal_d2.config import add_gal_config
from gal_d2.engine.key_figures import KeyFiguresHook
from gal_d2.engine.key_pictures import KeyPicturesHook
from gal_d2.engine.report_hook import ReportHook
from gal_d2.engine.trainer import GALTrainer
from gal_d2.engine.wandb_writer import WandbWriter
from gal_d2.errors import UserError
from gal_d2.selection.posterior import AUDITION, Posterior
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
    judge = SimpleNamespace(judged=None, posterior=posterior, class_groups=torch.tensor([1]))
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
                posterior.update(scored([1, 2, 3], [0.1, 0.5, 0.9]), step, source=AUDITION)
            hook.after_step()
            if step == 98:
                assert "gal/distinct" not in storage.latest()
            if step == 99:
                assert storage.latest()["gal/distinct"] == (5 / 200, 99)
                assert storage.latest()["gal/audition_share"] == (200 / 400, 99)
                assert storage.latest()["gal/pastes_c"] == (200.0, 99)
                assert storage.latest()["gal/paste_share_r"] == (0.0, 99)
                assert "gal/helpful" not in storage.latest()
                assert "gal/separation" not in storage.latest()  # nothing is known yet
        assert storage.latest()["gal/distinct"] == (5 / 100, 149)  # the last fifty steps
        assert storage.latest()["gal/audition_share"] == (100 / 200, 149)
        known = [step % 4 for step in range(100, 150) if step % 4]  # nothing is known of 0 and 7
        expected = posterior.value(np.array(known)) > 0
        assert storage.latest()["gal/helpful"] == (pytest.approx(expected.mean()), 149)
        assert 0 < expected.mean() < 1
        value, step = storage.latest()["gal/separation"]
        helping = storage.latest()["gal/pool_helping"]
    assert helping == (pytest.approx(np.nanmean(posterior.helping())), 149) and helping[0] > 0.5
    belief = posterior.get(torch.tensor([1, 2, 3]))
    expected, unknown = np.var(belief.mean), np.mean(belief.std**2)
    assert step == 149 and value == pytest.approx(expected / (expected + unknown))


def test_pastes_of_a_step_that_is_not_scored_are_no_scores():
    """With GAL.SCORER.PERIOD: they count as pastes."""
    groups = torch.tensor([0])
    judge = SimpleNamespace(judged=None, posterior=None, class_groups=groups)
    hook = KeyFiguresHook(judge)
    hook.trainer = SimpleNamespace(iter=98, max_iter=1000)
    with EventStorage(98) as storage:
        judge.judged = SimpleNamespace(contribution=scored([1, 2, 3], [0.1, 0.2, 0.3]))
        hook.after_step()
        hook.trainer.iter = storage.iter = 99
        storage.put_scalar("gal/auditions", 1.0)
        unscored = scored([1, 2], [np.nan] * 2, num_rois=[0, 0])
        judge.judged = SimpleNamespace(contribution=unscored)
        hook.after_step()
        figures = {name: value for name, (value, _) in storage.latest().items()}
    assert figures["gal/audition_share"] == 1 / 4
    assert figures["gal/pastes_r"] == 5 and figures["gal/distinct"] == 3 / 5


def test_a_training_sends_figures_and_pictures_to_tensorboard(lvis_root, train, tmp_path):
    options = (
        *("OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "6", "GAL.SNAPSHOTS.PERIOD", "2"),
        *("GAL.AUDITION.PERIOD", "2", "GAL.AUDITION.IMAGES", "1.0", "DATALOADER.NUM_WORKERS", "0"),
        *("DATASETS.TEST", "('lvis_v1_val',)"),
    )
    trainer = train(lvis_root, "lvis_gal", *options)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    scalars, pictures = events.Tags()["scalars"], events.Tags()["images"]
    by_group = {f"gal/{name}_{g}" for name in ("pastes", "paste_share") for g in "rcf"}
    figures = {"gal/distinct", "gal/audition_share", "gal/separation", "gal/helpful"}
    assert by_group | figures | {"gal/accepted", "bbox/APr", "segm/APr"} <= set(scalars)
    kinds = ("training_images", "auditions", "best_cut_outs", "worst_cut_outs")
    assert set(pictures) == {f"gal/{name}" for name in kinds}
    assert [event.step for event in events.Images("gal/training_images")] == list(range(6))
    for name in pictures:
        last = events.Images(name)[-1]
        picture = np.asarray(Image.open(io.BytesIO(last.encoded_image_string)))
        assert last.step == 5 and picture.std() > 10, name
    share = sum(events.Scalars(f"gal/paste_share_{g}")[0].value for g in "rcf")
    assert share == pytest.approx(1.0)
    assert trainer.storage._vis_data == []


def test_pictures_are_few_in_a_long_training():
    sample = {"image": torch.zeros(3, 700, 64, dtype=torch.uint8), "instances": no_objects(700, 64)}
    hook = KeyPicturesHook(["bun"], "RGB")
    hook.trainer = SimpleNamespace(iter=0, max_iter=1001, last_batch=[sample] * 8)
    with EventStorage() as storage:
        for step in (0, 1, 48, 49, 50, 999, 1000):
            hook.trainer.iter = storage.iter = step
            hook.after_step()
        drawn = storage._vis_data
    assert [step for _, _, step in drawn] == [0, 49, 999, 1000]
    name, picture, _ = drawn[0]
    assert name == "gal/training_images" and picture.shape[0] == 3
    assert picture.shape[1] < 400  # small however large the images are
    hook.trainer.last_batch = [{"image": sample["image"], "instances": Instances((700, 64))}]
    with EventStorage(1000) as storage:
        hook.after_step()
        assert storage._vis_data == []  # nothing to outline


def no_objects(height: int, width: int) -> Instances:
    return Instances(
        (height, width),
        gt_classes=torch.empty(0, dtype=torch.int64),
        gt_masks=BitMasks(torch.empty(0, height, width, dtype=torch.bool)),
        instance_source=torch.empty(0, dtype=torch.int64),
    )


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


class FakePicture:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    started: list[FakeRun] = []

    def init(**arguments: object) -> FakeRun:
        started.append(FakeRun(**arguments))
        return started[-1]

    module = ModuleType("wandb")
    module.init, module.Image = init, FakePicture
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


def test_weights_and_biases_gets_the_pictures_before_tensorboard_takes_them(
    runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gal_d2.engine.trainer.DefaultTrainer.build_writers", lambda self: ["tb"])
    trainer = GALTrainer.__new__(GALTrainer)
    trainer.cfg = config(tmp_path)
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(3, 3, 2)
    writer, other = trainer.build_writers()
    assert other == "tb"
    with EventStorage() as storage:
        storage.iter = 3
        storage.put_image("gal/auditions", picture)
        storage.put_scalar("loss", 2.0, smoothing_hint=False)
        writer.write()
        writer.write()
    ((step, logged),) = runs[0].logged
    assert step == 3 and logged.keys() == {"loss", "gal/auditions"}
    assert np.array_equal(logged["gal/auditions"].pixels, picture.transpose(1, 2, 0))


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
