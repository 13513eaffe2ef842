"""An offline pass: one row for each cut-out and placement, killed or not, by any number of
processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import small_offline
import torch
from small_offline import build_model, configure

from gal_d2.commands.offline_options import OfflineOptions, resolve_categories
from gal_d2.commands.offline_record import scored_placements
from gal_d2.commands.score_pool import open_pool, score_pool
from gal_d2.errors import UserError
from gal_d2.pool.allow_list import write_allow_list
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.ledger import Ledger
from gal_d2.setup.launch import launch

QUICK = {"per_category": 2, "candidates": 2, "batch_size": 4, "flush_seconds": 0.0}


def run(lvis_root: Path, repository: Path, output: Path, kill_at: int = -1) -> int:
    return subprocess.run(
        [
            *(sys.executable, "-W", "ignore", small_offline.__file__),
            *(str(repository), str(output), str(kill_at)),
        ],
        cwd=lvis_root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)},
        stderr=subprocess.DEVNULL,
    ).returncode


def rows(folder: Path) -> pa.Table:
    columns = ["pool_id", "placement", "image_id", "category_id", "score", "head_loss_mask"]
    table = pa.concat_tables(Ledger(folder).tables(columns))
    return table.sort_by([("pool_id", "ascending"), ("placement", "ascending")])


def assert_same_scores(first: pa.Table, second: pa.Table) -> None:
    """The same rows, each once; equal up to the order of summation in other batches."""
    for name in ("pool_id", "placement", "image_id"):
        assert first[name].equals(second[name])
    for name in ("score", "head_loss_mask"):
        a, b = (table[name].to_numpy(zero_copy_only=False) for table in (first, second))
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.fixture(scope="module")
def uninterrupted(lvis_root, repository, tmp_path_factory) -> pa.Table:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert run(lvis_root, repository, output) == 0
    return rows(output / "scores")


def test_one_row_for_each_placement(uninterrupted, lvis_root):
    pool = InstancePool(lvis_root / "datasets/lvis_pool")
    pairs = list(
        zip(
            uninterrupted["pool_id"].to_pylist(),
            uninterrupted["placement"].to_pylist(),
            strict=True,
        )
    )
    assert pairs == [(pool_id, k) for pool_id in pool.all_ids().tolist() for k in (0, 1)]
    expected = np.repeat(pool.category_of(pool.all_ids()), 2)
    assert uninterrupted["category_id"].to_pylist() == expected.tolist()
    assert uninterrupted["score"].null_count == 0
    assert len(set(uninterrupted["score"].to_pylist())) == len(pairs)


@pytest.fixture(scope="module")
def killed(lvis_root, repository, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("killed")
    assert run(lvis_root, repository, output, kill_at=2) == -signal.SIGKILL
    assert len(scored_placements(output / "scores")) == 2 * small_offline.GROUP
    return output


def test_killed_and_resumed(uninterrupted, killed, lvis_root, repository, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    directions = (tmp_path / "scores/directions.pth").read_bytes()
    assert run(lvis_root, repository, tmp_path) == 0
    assert (tmp_path / "scores/directions.pth").read_bytes() == directions
    assert_same_scores(rows(tmp_path / "scores"), uninterrupted)


def test_two_processes_take_over(
    uninterrupted, killed, lvis_root, repository, tmp_path, monkeypatch
):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(lvis_root)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch(small_offline.score, num_gpus=0, num_cpu_processes=2, args=(repository, tmp_path))
    assert_same_scores(rows(tmp_path / "scores"), uninterrupted)
    ranks = {path.name.split("-")[2] for path in (tmp_path / "scores").glob("*.parquet")}
    assert ranks == {"r0000", "r0001"}


def test_two_processes_learn_the_same_directions(
    uninterrupted, lvis_root, repository, tmp_path, monkeypatch
):
    monkeypatch.chdir(lvis_root)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch(small_offline.score, num_gpus=0, num_cpu_processes=2, args=(repository, tmp_path))
    table = rows(tmp_path / "scores")
    assert table.num_rows == uninterrupted.num_rows
    # Batches are put together otherwise, so averages with momentum differ a little.
    correlation = np.corrcoef(table["score"].to_numpy(), uninterrupted["score"].to_numpy())
    assert correlation[0, 1] > 0.9


@pytest.fixture
def cfg(lvis_root, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(lvis_root)
    return configure(repository, tmp_path)


def test_a_second_call_scores_what_is_missing(cfg, tmp_path):
    model = build_model(cfg)
    assert score_pool(cfg, model, tmp_path / "a", OfflineOptions(placements=1, **QUICK)) == 8
    assert score_pool(cfg, model, tmp_path / "a", OfflineOptions(placements=1, **QUICK)) == 0
    assert score_pool(cfg, model, tmp_path / "a", OfflineOptions(placements=3, **QUICK)) == 16
    assert len(scored_placements(tmp_path / "a")) == 24


def test_chosen_categories(cfg, tmp_path):
    options = OfflineOptions(categories=(500,), placements=1, split="val", **QUICK)
    assert score_pool(cfg, build_model(cfg), tmp_path / "a", options) == 2
    assert rows(tmp_path / "a")["category_id"].to_pylist() == [500, 500]


def test_directions_of_another_model_or_other_options(cfg, tmp_path):
    score_pool(cfg, build_model(cfg), tmp_path / "a", OfflineOptions(placements=1, **QUICK))
    with pytest.raises(UserError, match="was made with another MODEL.WEIGHTS: score into another"):
        score_pool(cfg, build_model(cfg, seed=1), tmp_path / "a", OfflineOptions(**QUICK))
    with pytest.raises(UserError, match="another --split, --seed"):
        options = OfflineOptions(split="val", seed=3, **QUICK)
        score_pool(cfg, build_model(cfg), tmp_path / "a", options)


def test_directions_of_other_classes(cfg, tmp_path, caplog):
    """Kept by class; a file of an earlier release does not say of which."""
    options = OfflineOptions(categories=(500,), placements=1, **QUICK)
    score_pool(cfg, build_model(cfg), tmp_path / "a", options)
    path = tmp_path / "a/directions.pth"
    stored = torch.load(path, weights_only=True)
    classes = stored.pop("classes")
    torch.save(stored, path)
    score_pool(cfg, build_model(cfg), tmp_path / "a", options)
    assert "has no class names" in caplog.text
    torch.save(stored | {"classes": [*classes[:-1], "bunny"]}, path)
    with pytest.raises(UserError, match="class 1202 is 'bunny' there and 'zucchini'.*--ledger"):
        score_pool(cfg, build_model(cfg), tmp_path / "a", options)


def test_a_cut_out_without_foreground_has_a_row_without_a_score(cfg, tmp_path):
    faint = np.full((4, 4, 4), 10, np.uint8)
    with PoolWriter(tmp_path / "pool") as writer:
        writer.add(7, faint, source=CutOutSource("test"))
        writer.add(7, faint + 200, source=CutOutSource("test"))
    cfg.GAL.POOL.ROOT = str(tmp_path / "pool")
    score_pool(cfg, build_model(cfg), tmp_path / "a", OfflineOptions(placements=1, **QUICK))
    table = rows(tmp_path / "a")
    assert table.num_rows == 2 and table["score"].null_count == 1


def test_a_training_ledger_is_not_written_to(cfg, tmp_path):
    from gal_d2.scoring.contribution import Contribution
    from gal_d2.selection.decision import Decision
    from gal_d2.selection.ledger_writer import LedgerWriter

    one = Contribution.cat([Contribution.empty(["box"])])
    with LedgerWriter(tmp_path / "a", category_ids=[1], category_frequency=["r"]) as writer:
        row = one._map(lambda t: t.new_zeros(1))
        writer.append(0, row, Decision.uniform(torch.ones(1, dtype=torch.bool), "x"), [4])
    with pytest.raises(UserError, match="holds the ledger of a training"):
        score_pool(cfg, build_model(cfg), tmp_path / "a", OfflineOptions(**QUICK))


def test_another_run_in_the_same_folder(cfg, tmp_path):
    (tmp_path / "a").mkdir()
    holder = (
        "import sys; from gal_d2.files.folder_lock import locked\n"
        "with locked(sys.argv[1], 'in use'): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-W", "ignore", "-c", holder, str(tmp_path / "a")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        message = rf"another run is scoring into .*\(process {other.pid} on "
        with pytest.raises(UserError, match=message):
            score_pool(cfg, build_model(cfg), tmp_path / "a", OfflineOptions(**QUICK))
        other.stdin.close()


def make_pool(root: Path, category_id: int) -> str:
    with PoolWriter(root) as writer:
        writer.add(category_id, np.full((4, 4, 4), 255, np.uint8), source=CutOutSource("test"))
    return str(root)


def test_a_pool_of_another_data_set(cfg, tmp_path):
    cfg.GAL.POOL.ROOT = make_pool(tmp_path / "pool", 99_999)
    with pytest.raises(UserError, match="category ids 99999, data set 'lvis_v1_train' has 1, 2"):
        open_pool(cfg)


def test_foreign_categories_are_left_out(cfg, tmp_path, caplog):
    make_pool(tmp_path / "pool", 99_999)
    cfg.GAL.POOL.ROOT = make_pool(tmp_path / "pool", 7)
    pool, categories = open_pool(cfg)
    assert categories == [7] and len(pool) == 2
    assert "1 categories of the instance pool" in caplog.text and "99999" in caplog.text


def test_an_empty_pool(cfg, tmp_path):
    cfg.GAL.POOL.ROOT = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing does not exist; fill it"):
        open_pool(cfg)
    cfg.GAL.POOL.ROOT = ""
    with pytest.raises(UserError, match="GAL.POOL.ROOT is empty"):
        open_pool(cfg)


def test_a_category_that_the_pool_lacks(cfg):
    with pytest.raises(
        UserError, match="has no cut-outs of air_conditioner; it has some of aerosol"
    ):
        open_pool(cfg, [2])


def test_an_allow_list_is_heeded(cfg, tmp_path):
    pool, _ = open_pool(cfg)
    write_allow_list(tmp_path / "list", pool.ids(7)[:1])
    cfg.GAL.POOL.ALLOW_LIST = str(tmp_path / "list")
    pool, categories = open_pool(cfg)
    assert len(pool) == 1 and categories == [7]


def test_category_names(cfg):
    assert resolve_categories(cfg, None) is None
    # a name, its synonym, and an id
    assert resolve_categories(cfg, ["Bun", "roll", "1203"]) == (169, 1203)
    with pytest.raises(UserError, match=r"--category: .*'bunn' \(did you mean .*bun"):
        resolve_categories(cfg, ["bunn"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "--split is 'test': choose from train, val"),
        ({"placements": 0}, "--placements is 0"),
        ({"per_category": -1}, "--per-category is -1"),
        ({"batch_size": 0}, "--batch-size is 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        OfflineOptions(**options)
