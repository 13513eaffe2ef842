"""benchmarks/comparison.py: its reading, order of trainings and tables, on runs made by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import comparison
import comparison_report
import comparison_schedule
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from comparison_results import WINDOWS, PoolShares, Results, read_cost, read_pastes, read_precision
from comparison_runs import Run, Trainer, execute, locked, run_options, write_truth_list
from detectron2.utils.env import seed_all_rng
from documents import END, begin

from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.pool.allow_list import read_allow_list, write_allow_list
from gal_d2.setup.configuration import load_config
from gal_d2.setup.setup import resolve_datasets
from gal_d2.testbeds.truth import PoolTruth

KNOWN = comparison.conditions(rate=0.27)
FEW = ("SOLVER.IMS_PER_BATCH", "2", "GAL.ACCEPT.WARM_UP.MIN_AGE", "1")
TRUTH = PoolTruth(
    np.arange(6),
    np.array(["good", "good", "noise", "good", "noise", "noise"]),
    np.zeros(6, bool),
)


def make_run(root: Path, name: str, seed: int = 0, steps: int = 100) -> Run:
    return Run(KNOWN[name], seed, steps, (), "digest", root / f"{name}-{seed}")


def write_metrics(folder: Path, steps: int, final: float) -> None:
    """AP grows evenly to ``final``; APr is half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.json").open("w") as file:
        for point in range(1, 6):
            ap = final * point / 5
            values = {"bbox/AP": ap, "bbox/APr": ap / 2, "segm/AP": ap, "segm/APr": ap / 2}
            print(json.dumps({"iteration": steps * point // 5 - 1, **values}), file=file)
            print(json.dumps({"iteration": steps * point // 5, "loss": 1.0}), file=file)


def record(final: float, good: float | None = None, cpu: float | None = 100.0, **more) -> dict:
    curve = [final * point / 5 for point in range(1, 6)]
    metrics = {"AP": curve, "APr": [v / 2 for v in curve], "APc": curve, "APf": curve}
    shares = None if good is None else [good] * WINDOWS
    return {
        **{"ap": {"bbox": metrics, "segm": metrics}, "device": "CPU", "cpu_seconds": cpu},
        **{"filter_cpu_seconds": 0.0, "good": shares, "good_trained": shares},
        **{"accepted": shares, "distinct": [10, 20, 30, 40], **more},
    }


# -- Reading a run


def test_precision_is_read_at_five_points(tmp_path):
    write_metrics(tmp_path, 100, 50.0)
    with (tmp_path / "metrics.json").open("a") as file:  # a resumed run evaluates once more
        print(json.dumps({"iteration": 80, "segm/AP": 41.0}), file=file)
    found = read_precision(tmp_path / "metrics.json", 100)
    assert found["bbox"]["AP"] == [10, 20, 30, 40, 50]
    assert found["segm"]["AP"] == [10, 20, 30, 41, 50]
    assert found["segm"]["APr"] == [5, 10, 15, 20, 25]
    assert np.isnan(found["segm"]["APc"]).all()  # no such category


def test_pastes_are_read_from_the_ledger(tmp_path):
    table = {
        "step": [0, 0, 4, 50, 99, 99],
        "pool_id": [0, 2, 1, 5, 3, 3],
        "accept": [True, False, True, False, True, True],
    }
    (tmp_path / "ledger").mkdir()
    shard = tmp_path / "ledger/000000000-000000099-r0000-000000.parquet"
    pq.write_table(pa.table(table), shard, write_page_checksum=True)
    found = read_pastes(tmp_path / "ledger", 100, TRUTH)
    assert found["good"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert found["good_trained"][0] == 1.0
    assert (found["good"][10], found["good_trained"][10]) == (0.0, None)
    assert found["good"][-1] == found["accepted"][-1] == 1.0
    assert found["good"][5] is None
    assert found["distinct"] == [3, 0, 1, 1]
    assert read_pastes(tmp_path / "ledger", 100, None)["good"] is None


def test_pastes_without_a_ledger_are_expected_ones():
    # Category 1 has a good one of two, category 2 two of four: classes count alike.
    pool = PoolShares(np.array([0, 2, 1, 3, 4, 5]), np.array([1, 1, 2, 2, 2, 2]), pastes=8e6)
    found = pool.expected(None, TRUTH)
    assert found["good"] == found["good_trained"] == [0.5] * WINDOWS
    assert found["distinct"] == [6, 6, 6, 6]
    allowed = pool.expected(np.array([0, 1, 3, 4]), TRUTH)
    assert allowed["good"] == pytest.approx([(1 + 2 / 3) / 2] * WINDOWS)
    assert PoolShares(pool.pool_id, pool.category_id, pastes=8).expected(None, None) == {
        **{"good": None, "good_trained": None, "accepted": [1.0] * WINDOWS},
        "distinct": [2, 2, 2, 2],
    }


def test_the_cost_is_known_if_every_process_was_seen_to_end(tmp_path):
    path = tmp_path / "costs.jsonl"
    assert read_cost(path)["cpu_seconds"] == 0
    started, ended = '{"started": true}\n', '{"cpu_seconds": 2.5, "wall_seconds": 3.0}\n'
    path.write_text(2 * (started + ended))
    assert read_cost(path) == {"cpu_seconds": 5.0, "wall_seconds": 6.0}
    path.write_text(started + started + ended)
    assert read_cost(path) == {"cpu_seconds": None, "wall_seconds": None}


def test_a_process_leaves_its_log_and_cost(tmp_path):
    message = "train_net.py failed with status 2: see .*some.log"
    with locked(tmp_path) as lock, pytest.raises(UserError, match=message):
        execute("some", "tools/train_net.py", ["--wrong"], tmp_path, lock)
    assert "unrecognized arguments" in (tmp_path / "some.log").read_text()
    assert read_cost(tmp_path / "some.costs.jsonl")["cpu_seconds"] > 0


def test_results_are_kept_and_the_last_line_counts(tmp_path):
    results = Results(tmp_path / "runs.jsonl")
    run = make_run(tmp_path, "all")
    results.add(run, {"cpu_seconds": 1.0})
    results.add(run, {"cpu_seconds": 2.0})
    again = Results(tmp_path / "runs.jsonl").records[run.key]
    assert (again["cpu_seconds"], again["steps"]) == (2.0, 100)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"condition": "all"}\n')
    with pytest.raises(UserError, match="runs.jsonl, line 3, is no record"):
        Results(tmp_path / "runs.jsonl")


# -- What is trained


class FakeTrainer:
    """Writes what a training leaves; the model of ``all`` has to be there where it is needed."""

    def __init__(self, fail: tuple[str, int] | None = None) -> None:
        self.fail = fail
        self.truth = TRUTH
        self.trained: list[tuple[str, int]] = []

    def train(self, run: Run, model_of_all: Path | None) -> None:
        if (run.condition.name, run.seed) == self.fail:
            raise UserError("it failed.")
        if run.condition.needs_model:
            assert model_of_all.is_file()
            run.folder.mkdir(parents=True)
            write_allow_list(run.allow_list, np.array([0, 1]))
        write_metrics(run.folder, run.steps, 10.0)
        run.model.touch()
        self.trained.append((run.condition.name, run.seed))


def train(runs: list[Run], root: Path, trainer: FakeTrainer) -> Results:
    results = Results(root / "runs.jsonl")
    pool = PoolShares(np.arange(6), np.array([1, 1, 1, 2, 2, 2]), 100)
    comparison_schedule.train_missing(
        runs, results, trainer, jobs=2, extra={"device": "CPU"}, pool=pool
    )
    return results


def test_filters_wait_for_the_model_of_all_and_finished_runs_are_not_repeated(tmp_path):
    runs = [make_run(tmp_path, n, s) for n in ("feature", "none", "all") for s in (0, 1)]
    trainer = FakeTrainer()
    results = train(runs, tmp_path, trainer)
    assert len(results.records) == len(trainer.trained) == 6
    assert results.records[runs[0].key]["good"] == [1.0] * WINDOWS
    assert results.records[runs[2].key]["good"] is None
    again = FakeTrainer()
    train(runs, tmp_path, again)
    assert not again.trained
    # Lines came from another machine, the model did not.
    runs[4].model.unlink()
    more = Run(KNOWN["offline"], 0, 100, (), "digest", tmp_path / "offline-0")
    train([*runs, more], tmp_path, again)
    assert again.trained == [("all", 0), ("offline", 0)]


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    runs = [make_run(tmp_path, n, s) for n in ("all", "feature") for s in (0, 1)]
    trainer = FakeTrainer(fail=("all", 0))
    with pytest.raises(UserError, match="(?s)all 0: it failed.*feature 0: no model of all"):
        train(runs, tmp_path, trainer)
    assert sorted(trainer.trained) == [("all", 1), ("feature", 1)]


def test_two_cannot_train_in_one_folder(tmp_path):
    run = make_run(tmp_path, "oracle")
    trainer = Trainer({}, 0, {}, TRUTH)
    run.folder.mkdir(parents=True)
    with locked(run.folder), pytest.raises(UserError, match="another process is training in"):
        trainer.train(run, None)


def test_the_list_of_the_oracle(tmp_path):
    write_truth_list(tmp_path / "allowed.parquet", TRUTH)
    assert read_allow_list(tmp_path / "allowed.parquet").tolist() == [0, 1, 3]


def test_steps_are_divided_into_five():
    options = run_options(2800)
    assert options[options.index("TEST.EVAL_PERIOD") + 1] == "560"
    with pytest.raises(UserError, match="--steps is 12: make it a multiple of 5"):
        run_options(12)


def plan(root: Path, *arguments: str) -> list[Run]:
    args = comparison.parse_arguments(["--output", str(root), *arguments])
    chosen = comparison.choose_conditions(args, None)
    return comparison.plan_runs(args, chosen, comparison.config_files(args.config), 100)


def test_the_plan_has_what_others_need_and_tells_runs_apart(tmp_path):
    runs = plan(tmp_path, "--seeds", "3", "4", "--conditions", "offline")
    assert [(r.condition.name, r.seed) for r in runs] == [
        ("offline", 3),
        ("offline", 4),
        ("all", 3),
        ("all", 4),
    ]
    assert runs[0].digest == runs[1].digest
    assert len({run.folder for run in runs}) == 4
    (fewer,) = plan(tmp_path, "--seeds", "3", "--keep", "0.3", "--conditions", "offline")[:1]
    (other,) = plan(tmp_path, "--seeds", "3", "--conditions", "all", "--", "SEED", "1")
    assert fewer.digest != runs[0].digest
    assert other.digest != runs[2].digest
    (imagenet,) = plan(tmp_path, "--seeds", "3", "--imagenet", "--conditions", "feature")[:1]
    (plain,) = plan(tmp_path, "--seeds", "3", "--conditions", "feature")[:1]
    assert imagenet.condition.title == "filtered by ImageNet features"
    assert plain.condition.title == "filtered by likeness"
    assert plain.digest != imagenet.digest
    variant, ours = plan(
        *(tmp_path, "--seeds", "0", "--conditions", "gal"),
        *("--ablation", "mask only", "GAL.SCORER.SCORE_WEIGHTS [0.0,1.0]"),
    )[::-1]
    assert (variant.condition.name, ours.condition.name) == ("gal: mask only", "gal")
    assert variant.options[-2:] == ("GAL.SCORER.SCORE_WEIGHTS", "[0.0,1.0]")
    assert variant.digest != ours.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conditions", "oracle"], "--conditions has oracle, but there is no truth file"),
        (["--config", "mine"], "--config is 'mine', but there is no mine_copypaste.yaml"),
        (["--conditions", "all", "--", "NO.KEY", "1"], "NO.KEY"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        plan(tmp_path, *arguments)


# -- Tables


@pytest.fixture
def finished():
    return {
        KNOWN["none"]: {0: record(30.0), 1: record(32.0)},
        KNOWN["all"]: {0: record(40.0, 0.4), 1: record(42.0, 0.4)},
        KNOWN["offline"]: {0: record(43.0, 0.7, filter_cpu_seconds=20.0)},
        KNOWN["gal"]: {0: record(44.0, 0.6, cpu=110.0), 1: record(47.0, 0.8, cpu=120.0)},
        KNOWN["oracle"]: {0: record(45.0, 1.0, cpu=None), 1: record(47.0, 1.0, device="GPU")},
    }


def cells(table: str, first: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_main_table(finished):
    table = comparison_report.main_table(finished)
    assert cells(table, "**ours**") == [
        *("2", "45.5 ± 2.1", "22.8 ± 1.1", "45.5 ± 2.1", "22.8 ± 1.1"),
        *("+4.5 ± 0.7", "+2.2 ± 0.4", "90%", "90%", "1.15 ± 0.07"),
    ]
    assert cells(table, "all (X-Paste)")[5:] == ["-", "-", "-", "-", "1"]
    # One seed; it trains twice, and filters.
    assert cells(table, "filtered offline by score")[5:] == ["+3.0", "+1.5", "60%", "60%", "2.20"]
    assert cells(table, "no pastes")[5:7] == ["-10.0 ± 0.0", "-5.0 ± 0.0"]
    assert cells(table, "only good ones (oracle)")[-1] == "-"


def test_the_tables_over_the_training(finished):
    assert cells(comparison_report.progress_table(finished), "all (X-Paste)") == [
        *("8.2 (4.1)", "16.4 (8.2)", "24.6 (12.3)", "32.8 (16.4)", "41.0 (20.5)"),
    ]
    gal = finished[KNOWN["gal"]]
    for of_seed in gal.values():
        of_seed["good_trained"] = [None] * 5 + [0.9] * 15
    table = comparison_report.pastes_table(finished)
    assert cells(table, "**ours**") == ["70% (-)", "70% (90%)", "70% (90%)", "70% (90%)", "40"]
    assert "no pastes" not in table


def test_variants_are_compared_with_ours(finished):
    variant = comparison.Condition("gal: K 2", "K 2", "gal")
    text = comparison_report.report("title", finished, {variant: {1: record(46.0, 0.5)}})
    assert cells(text, "K 2") == [
        *("1", "46.0", "23.0", "-1.0", "-0.5", "50%", "40", "0.83"),
    ]


def test_the_figure_is_drawn(finished, tmp_path):
    comparison_report.draw(finished, 100, tmp_path / "sub/figure.png")
    assert (tmp_path / "sub/figure.png").read_bytes().startswith(b"\x89PNG")


# -- On a tiny miniature


def test_one_seed_gives_all_conditions_the_same_weights_and_real_images(
    miniature, miniature_options, tmp_path
):
    args = comparison.parse_arguments(
        [
            "--output",
            str(tmp_path),
            "--pool",
            str(miniature / "pool"),
            "--",
            *miniature_options,
            *FEW,
        ]
    )
    found = {}
    for name in ("none", "all", "random", "batch", "no_loop", "gal"):
        condition = KNOWN[name]
        files = comparison.config_files("miniature")
        (run, *_) = comparison.plan_runs(args, [condition], files, 100)
        # Nothing is pasted, so that only the real images are compared.
        nothing = ["GAL.COPY_PASTE.MAX_PASTES", "0", "MODEL.DEVICE", "cpu"]
        cfg = load_config(str(files[condition.config]), [*run.options, *nothing])
        resolve_datasets(cfg)
        cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
        seed_all_rng(7)
        weights = GALTrainer.build_model(cfg).state_dict()
        batches = list(itertools.islice(GALTrainer.build_train_loader(cfg, seed=7), 8))
        found[name] = weights, [sample for batch in batches for sample in batch]
    expected_weights, expected = found.pop("none")
    for weights, samples in found.values():
        assert [s["image_id"] for s in samples] == [s["image_id"] for s in expected]
        assert all(
            torch.equal(a["image"], b["image"]) for a, b in zip(samples, expected, strict=True)
        )
        assert weights.keys() == expected_weights.keys()
        assert all(torch.equal(value, expected_weights[key]) for key, value in weights.items())


@pytest.mark.slow
def test_a_small_comparison_resumes_and_writes_its_tables(
    miniature, miniature_options, tmp_path, monkeypatch, capsys
):
    document = tmp_path / "results.md"
    arguments = [
        *("--steps", "5", "--seeds", "0", "--jobs", "1", "--num-gpus", "0"),
        *("--pool", str(miniature / "pool"), "--output", str(tmp_path / "out")),
        *("--figure", str(tmp_path / "figure.png"), "--document", str(document)),
        *("--conditions", "feature", "gal", "--", *miniature_options, *FEW),
    ]
    args = comparison.parse_arguments(arguments)
    document.write_text(f"{begin(comparison.document_command(args))}{END}")
    comparison.main(args)
    lines = (tmp_path / "out/runs.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["condition"] for line in lines) == ["all", "feature", "gal"]
    assert all(json.loads(line)["cpu_seconds"] > 0 for line in lines)
    assert "| **ours** | 1 |" in document.read_text()
    (allowed,) = (tmp_path / "out").glob("feature-*/allowed.parquet")
    assert 10 <= len(read_allow_list(allowed)) < 30  # at least one of each category

    monkeypatch.setattr(Trainer, "train", None)  # nothing is trained any more
    capsys.readouterr()
    comparison.main(args)
    assert "| filtered by likeness | 1 |" in capsys.readouterr().out
    assert (tmp_path / "out/runs.jsonl").read_text().splitlines() == lines
