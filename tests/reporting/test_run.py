from __future__ import annotations

import json
from pathlib import Path

import pytest

from gal_d2.reporting.run import read_categories, read_config, read_metrics, read_runs, read_summary


def write(path: Path, *lines: dict | str) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_metrics_of_a_killed_and_resumed_run(tmp_path: Path):
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "loss": 3.0},
        {"iteration": 39, "loss": 2.0},
        '{"iteration": 59, "lo',
        {"iteration": 39, "loss": 1.5, "segm/AP": float("nan"), "name": "text"},
        "[1, 2]",
        {"iteration": 100, "segm/AP": 12.5},
    )
    found = read_metrics(path, max_steps=100)
    assert found["loss"].steps.tolist() == [20, 40] and found["loss"].values.tolist() == [3.0, 1.5]
    # The last evaluation is written after the loop, under the number of steps.
    assert found["segm/AP"].steps.tolist() == [100] and len(found["segm/AP"]) == 1
    assert set(found) == {"loss", "segm/AP"}
    assert read_metrics(tmp_path / "none.json") == {}


def test_categories_with_odd_rows(tmp_path: Path):
    path = tmp_path / "per_category_ap.csv"
    path.write_text(
        "category_id,name,frequency,train_images,instances,bbox_AP,segm_AP\n"
        '3,"a, b",r,,4,12.5,nan\n'
        "x,bad,r,1,1,1,1\n"
        "4,cut o\n"
    )
    found = read_categories(path)
    assert list(found) == [3]
    assert (
        found[3].name == "a, b" and found[3].train_images is None and found[3].ap == {"bbox": 12.5}
    )


def test_a_config_that_nobody_can_read(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("SOLVER: [1, {")
    assert read_config(tmp_path / "config.yaml") == {}
    (tmp_path / "config.yaml").write_text("SEED: 3\nSOLVER:\n  STEPS: [1]\n")
    assert read_config(tmp_path / "config.yaml") == {"SEED": 3, "SOLVER.STEPS": [1]}


def test_the_summary_is_that_of_the_last_start(tmp_path: Path):
    start = "[01/02 10:00:00] gal_d2.engine.trainer INFO: Training:"
    lines = [
        start,
        "  data: old",
        "[x] other",
        start,
        "    data: 5 images",
        "device: cpu",
        "[y] more",
    ]
    path = write(tmp_path / "log.txt", *lines)
    assert read_summary(path) == [("data", "5 images"), ("device", "cpu")]
    assert read_summary(tmp_path / "none.txt") == []


@pytest.mark.parametrize(
    ("folders", "names"),
    [(("x/a", "x/b"), ["a", "b"]), (("x/a", "y/a"), ["x/a", "y/a"])],
)
def test_runs_have_names_of_their_own(tmp_path: Path, folders: tuple[str, str], names: list[str]):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "metrics.json").touch()
    assert [run.name for run in read_runs([tmp_path / f for f in folders])] == names


def test_the_pool_is_where_the_config_the_log_or_the_output_folder_has_it(tmp_path: Path):
    run = tmp_path / "run"
    pools = [tmp_path / "config_pool", tmp_path / "log pool", run / "pool"]
    for pool in pools:
        pool.mkdir(parents=True)
    (run / "config.yaml").write_text(f"GAL:\n  POOL:\n    ROOT: {pools[0]}\n")
    log = f"[t] x INFO: Training:\n pool: 3 cut-outs of 2 of the 2 categories; {pools[1]}\n"
    (run / "log.txt").write_text(log)
    for pool in pools:
        assert read_runs([run])[0].pool_folder() == pool
        pool.rmdir()
    assert read_runs([run])[0].pool_folder() is None
