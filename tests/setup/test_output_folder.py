"""What an earlier training left in its OUTPUT_DIR is not destroyed."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from gal_d2.datasets.registration import register_instances
from gal_d2.errors import UserError
from gal_d2.setup.output_folder import (
    claim,
    earlier_results,
    keeping_config,
    refuse_earlier_results,
    set_aside,
)

FILES = {
    "last_checkpoint": "model_final.pth",
    "model_0000009.pth": "m",
    "model_final.pth": "m",
    "ledger/000000000-000000009-r0000-000000.parquet": "l",
    "auditions/000000003-000000009-r0000-000000.parquet": "a",
    "snapshots/000000000.npz": "s",
    "decisions/0000010.png": "d",
    "metrics.json": "{}",
    "config.yaml": "c",
    "log.txt": "log",
    "events.out.tfevents.1.host": "e",
}
STAYS = {"pool/0.arrow": "p", "pool_scores/directions.pth": "d", "mine.pth": "m"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


@pytest.fixture
def used(tmp_path: Path) -> Path:
    write(tmp_path, FILES | STAYS)
    return tmp_path


@pytest.fixture
def cfg(used: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(used)
    cfg.MODEL.WEIGHTS = ""
    return cfg


def test_a_new_start_in_a_used_folder_is_refused(cfg: CfgNode, used: Path):
    with pytest.raises(UserError, match=rf"'{used}' has the results .*--resume.*--overwrite"):
        claim(cfg, resume=False, overwrite=False)
    assert read(used) == FILES | STAYS


def test_data_that_cannot_train_are_named_first(cfg: CfgNode, used: Path):
    write(used, {"train.json": "{", "images/nothing": ""})
    register_instances("broken", used / "train.json", used / "images", replace=True)
    cfg.DATASETS.TRAIN = ("broken",)
    with pytest.raises(UserError, match=r"train\.json"):
        claim(cfg, resume=False, overwrite=False)


@pytest.mark.parametrize(
    "name",
    ["last_checkpoint", "model_0000009.pth", *(name for name in FILES if "parquet" in name)],
)
def test_each_result_counts(tmp_path: Path, name: str):
    write(tmp_path, {name: "x"})
    assert earlier_results(tmp_path) == [tmp_path / name]
    with pytest.raises(UserError, match=Path(name).name):
        refuse_earlier_results(tmp_path)


def test_a_folder_without_results_is_free(tmp_path: Path):
    refuse_earlier_results(tmp_path / "new")
    # As a training leaves it that stopped before its first checkpoint.
    write(tmp_path, {k: FILES[k] for k in ("log.txt", "config.yaml", "metrics.json")} | STAYS)
    (tmp_path / "ledger").mkdir()
    refuse_earlier_results(tmp_path)
    assert set_aside(tmp_path) is None


def test_going_on_is_not_refused(cfg: CfgNode, used: Path):
    claim(cfg, resume=True, overwrite=False)
    assert read(used) == FILES | STAYS


def test_overwrite_moves_what_is_there(cfg: CfgNode, used: Path, capsys):
    claim(cfg, resume=False, overwrite=True)
    assert read(used) == STAYS | {f"earlier-001/{name}": text for name, text in FILES.items()}
    assert f"is in {used / 'earlier-001'} now" in capsys.readouterr().out
    write(used, {"model_final.pth": "second"})
    claim(cfg, resume=False, overwrite=True)
    assert read(used / "earlier-001") == FILES
    assert read(used / "earlier-002") == {"model_final.pth": "second"}
    claim(cfg, resume=False, overwrite=True)  # nothing to move
    assert not (used / "earlier-003").exists()


def test_the_weights_to_start_from_are_not_moved_away(cfg: CfgNode, used: Path):
    cfg.MODEL.WEIGHTS = str(used / "model_final.pth")
    with pytest.raises(UserError, match="MODEL.WEIGHTS is .*move that file first"):
        claim(cfg, resume=False, overwrite=True)
    assert read(used) == FILES | STAYS


def test_both_at_once_make_no_sense(cfg: CfgNode):
    with pytest.raises(UserError, match="--resume goes on with what --overwrite moves aside"):
        claim(cfg, resume=True, overwrite=True)


def test_a_tool_leaves_the_trainings_config(tmp_path: Path):
    path = tmp_path / "config.yaml"
    with keeping_config(tmp_path):
        path.write_text("of a tool in a folder of its own")
    assert path.read_text() == "of a tool in a folder of its own"
    path.write_text("of the training")
    with keeping_config(tmp_path):
        path.write_text("of a tool")
    assert path.read_text() == "of the training"
