"""tools/score_pool.py, rank_instances.py and filter_pool.py as a user calls them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scripts import load_script
from small_model import FROM_SCRATCH, SMALL_MODEL
from small_offline import build_model, configure

from gal_d2.errors import UserError
from gal_d2.pool.allow_list import read_allow_list
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import Verdict, VerdictFile
from gal_d2.pool.writer import PoolWriter
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.setup.launch import run_tool

QUICK = ["--per-category", "2", "--candidates", "2", "--placements", "1", "--batch-size", "4"]


class Workplace:
    """A folder with the tiny LVIS, a checkpoint of a tiny model, and the tools."""

    def __init__(self, root: Path, repository: Path, output: Path) -> None:
        self.root, self.repository, self.output = root, repository, output
        self.weights = output / "model.pth"

    def call(self, tool: str, *arguments: str) -> None:
        """Run a tool's ``main`` in this process."""
        module = load_script(self.repository / f"tools/{tool}.py")
        module.main(module.parse_arguments(list(arguments)))

    def with_config(self, tool: str, *arguments: str, weights: bool = False) -> None:
        self.call(tool, *self.arguments(*arguments, weights=weights))

    def arguments(self, *flags: str, weights: bool) -> list[str]:
        return [
            *("--config-file", str(self.repository / "configs/lvis_gal.yaml"), "--num-gpus", "0"),
            *flags,
            *SMALL_MODEL,
            *(FROM_SCRATCH[2:]),
            *("OUTPUT_DIR", str(self.output)),
            *(("MODEL.WEIGHTS", str(self.weights)) if weights else ()),
        ]


@pytest.fixture(scope="module")
def place(lvis_root, repository, tmp_path_factory) -> Workplace:
    here = Workplace(lvis_root, repository, tmp_path_factory.mktemp("output"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lvis_root)
        model = build_model(configure(repository, here.output))
    torch.save({"model": model.state_dict()}, here.weights)
    return here


@pytest.fixture
def workplace(place, monkeypatch) -> Workplace:
    monkeypatch.chdir(place.root)
    return place


@pytest.fixture(scope="module")
def scores(place) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        place.with_config("score_pool", *QUICK, weights=True)
    return place.output / "pool_scores"


def test_all_of_the_pool_is_scored(scores, workplace):
    pool = InstancePool(workplace.root / "datasets/lvis_pool")
    assert Ledger(scores).by_instance()["pool_id"].to_pylist() == pool.all_ids().tolist()


def test_ranking_of_a_ledger(scores, workplace, tmp_path):
    workplace.with_config(
        "rank_instances",
        *("--ledger", str(scores), "--category", "aerosol can", "--output", str(tmp_path)),
        *("--top", "1", "--by", "loss"),
    )
    assert Image.open(tmp_path / "aerosol_can.png").width > 500
    table = pq.read_table(tmp_path / "aerosol_can.parquet")
    assert table["rank"].to_pylist() == [1, 2] and table["prompt"].to_pylist() == ["a square"] * 2
    assert table["value"][0].as_py() < table["value"][1].as_py()
    written = pyarrow.csv.read_csv(tmp_path / "aerosol_can.csv")
    assert written["pool_id"].to_pylist() == table["pool_id"].to_pylist()
    assert (tmp_path / "aerosol_can.html").read_text().count("<tr><td") == 2


def test_ranking_with_a_model_scores_first(workplace, tmp_path):
    workplace.with_config(
        "rank_instances",
        *(*QUICK, "--category", "almond", "--output", str(tmp_path)),
        weights=True,
    )
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        *(".csv", ".html", ".parquet", ".png")
    ]
    (folder,) = (workplace.output / "ranking/scores").glob("almond-*")
    assert Ledger(folder).num_rows == 2


def test_ranking_with_a_model_that_was_trained_anew(workplace, tmp_path):
    state = torch.load(workplace.weights)["model"]
    scores = workplace.output / "ranking/scores"
    before = set(scores.glob("*"))
    for number in (1, 2, 2):  # the second time with the same one nothing is scored
        name = "roi_heads.box_predictor.cls_score.bias"
        torch.save({"model": state | {name: state[name] + number}}, tmp_path / "model.pth")
        workplace.with_config(
            "rank_instances",
            *(*QUICK, "--category", "almond", "--output", str(tmp_path / "ranking")),
            *("MODEL.WEIGHTS", str(tmp_path / "model.pth")),
        )
    assert [Ledger(folder).num_rows for folder in set(scores.glob("*")) - before] == [2, 2]


@pytest.fixture
def training_ledger(workplace, tmp_path) -> tuple[Path, list[int]]:
    """Of a training that saw the category's two cut-outs twice, and could not score one of them."""
    pool_ids = InstancePool("datasets/lvis_pool").ids(1).tolist()
    with LedgerWriter(tmp_path / "ledger", category_ids=[1], category_frequency=["c"]) as writer:
        for step, accept in ((0, True), (5, False)):
            contribution = Contribution(
                pool_id=torch.tensor(pool_ids),
                image_index=torch.tensor([0, 0]),
                gt_class=torch.tensor([0, 0]),
                phi=torch.tensor([0.1, torch.nan]),
                score=torch.tensor([0.5 - 0.1 * step, torch.nan]),
                head_score={"box": torch.tensor([0.5, torch.nan])},
                head_loss={"box": torch.tensor([1.0, torch.nan])},
                num_rois=torch.tensor([1, 0]),
                area=torch.tensor([900.0, 900.0]),
            )
            decision = Decision.uniform(torch.tensor([accept, accept]), "quantile")
            writer.append(step, contribution, decision, [3])
    return tmp_path / "ledger", pool_ids


def test_the_ledger_of_a_training(workplace, training_ledger, tmp_path, capsys):
    ledger, pool_ids = training_ledger
    workplace.with_config(
        "rank_instances",
        *("--ledger", str(ledger), "--category", "aerosol_can", "--output", str(tmp_path)),
    )
    table = pq.read_table(tmp_path / "aerosol_can.parquet")
    assert table["pool_id"].to_pylist() == pool_ids and table["rank"].to_pylist() == [1, None]
    assert table["value"][0].as_py() == pytest.approx(0.25)
    page = (tmp_path / "aerosol_can.html").read_text()
    assert "step 0: +0.500, accepted" in page and "step 5: +0.000, rejected" in page
    workplace.call(
        "filter_pool",
        *("--pool", "datasets/lvis_pool", "--ledger", str(ledger), "--quantile", "0.5"),
        *("--allow-list", str(tmp_path / "list")),
    )
    assert "kept 1 of 8 cut-outs, 1 of which had a score" in capsys.readouterr().out
    assert read_allow_list(tmp_path / "list").tolist() == pool_ids[:1]


def test_an_empty_pool(scores, workplace, tmp_path):
    (tmp_path / "pool").mkdir()
    root = ("GAL.POOL.ROOT", str(tmp_path / "pool"))
    with pytest.raises(UserError, match="has no cut-outs; fill it with"):
        workplace.with_config("score_pool", *QUICK, *root, weights=True)
    with pytest.raises(UserError, match="has no cut-outs; fill it with"):
        workplace.with_config(
            "rank_instances", "--ledger", str(scores), "--category", "almond", *root
        )
    with pytest.raises(UserError, match="has no cut-outs; fill it with"):
        workplace.call(
            "filter_pool",
            *("--pool", root[1], "--top", "1", "--allow-list", str(tmp_path / "list")),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--category", "aerosol cann"], r"'aerosol cann' \(did you mean aerosol_can"),
        (["--category", "air conditioner"], "no cut-outs of air_conditioner; it has some of"),
        (["--category", "almond", "--by", "clip"], "--by is 'clip', but the ledger"),
        (["--category", "almond", "--top", "0"], "--top is 0"),
        (["--category", "almond", "--dpi", "0"], "--dpi is 0"),
        ([], "give one --category to rank"),
    ],
)
def test_mistakes_of_ranking(scores, workplace, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        workplace.with_config("rank_instances", "--ledger", str(scores), *arguments)


def test_ranking_needs_a_ledger_or_a_model(workplace):
    with pytest.raises(UserError, match="give --ledger, or MODEL.WEIGHTS"):
        workplace.with_config("rank_instances", "--category", "almond")


def test_a_mistake_is_one_sentence(workplace, capsys):
    with pytest.raises(SystemExit, match="1"):
        run_tool(workplace.with_config, "score_pool", *QUICK, "--category", "xyzzy", weights=True)
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence.startswith("error: --category: not in the annotation file: 'xyzzy'")


def test_an_allow_list_and_a_pool_of_the_best(scores, workplace, tmp_path, capsys):
    pool = InstancePool(workplace.root / "datasets/lvis_pool")
    workplace.call(
        "filter_pool",
        *("--pool", str(pool.root), "--ledger", str(scores), "--top", "1"),
        *("--allow-list", str(tmp_path / "list"), "--output", str(tmp_path / "best")),
        *("--annotations", "datasets/lvis/lvis_v1_train.json"),
    )
    printed = capsys.readouterr().out
    assert "kept 4 of 8 cut-outs, 8 of which had a score" in printed and "aerosol_can" in printed
    table = Ledger(scores).by_instance().to_pylist()
    best = [
        max((r for r in table if r["category_id"] == c), key=lambda r: r["score_mean"])["pool_id"]
        for c in pool.category_ids.tolist()
    ]
    assert read_allow_list(tmp_path / "list").tolist() == sorted(best)
    copied = InstancePool(tmp_path / "best")
    assert copied.all_ids().tolist() == sorted(best)
    for pool_id in best:
        assert (copied.get(pool_id).rgba == pool.get(pool_id).rgba).all()
        assert copied.get(pool_id).source == pool.get(pool_id).source


@pytest.fixture
def judged(workplace) -> Iterator[dict[int, str]]:
    """Verdicts in the pool: of each category one cut-out is good and the other one bad."""
    pool = InstancePool(workplace.root / "datasets/lvis_pool")
    file = VerdictFile(pool.root)
    said = {}
    for category in pool.category_ids.tolist():
        for pool_id, word in zip(pool.ids(category).tolist(), ("good", "bad"), strict=True):
            said[pool_id] = word
            file.add([Verdict.now(pool_id, category, "", word, "ann")])
    yield said
    file.path.unlink()


def test_verdicts_outweigh_scores(scores, workplace, judged, tmp_path, capsys):
    workplace.call(
        "filter_pool",
        *("--pool", "datasets/lvis_pool", "--ledger", str(scores), "--top", "2"),
        *("--at-least", "2", "--allow-list", str(tmp_path / "list")),
    )
    good = sorted(pool_id for pool_id, word in judged.items() if word == "good")
    assert read_allow_list(tmp_path / "list").tolist() == good
    assert "by verdicts: 4 stay, 4 go" in capsys.readouterr().out
    for by in ("combined", "loss"):  # one of the two turns the order around
        workplace.with_config(
            "rank_instances",
            *("--ledger", str(scores), "--category", "aerosol can", "--output", str(tmp_path)),
            *("--by", by),
        )
        table = pq.read_table(tmp_path / "aerosol_can.parquet")
        assert table["verdict"].to_pylist() == ["good", "bad"]
        assert table["rank"].to_pylist() == [1, 2]
        assert [judged[i] for i in table["pool_id"].to_pylist()] == ["good", "bad"]


def test_losses_are_kept_up_to_a_threshold(scores, workplace, tmp_path):
    losses = {
        row["pool_id"]: row["head_loss_box_mean"] + row["head_loss_mask_mean"]
        for row in Ledger(scores).by_instance().to_pylist()
    }
    limit = sorted(losses.values())[4] + 1e-6
    workplace.call(
        "filter_pool",
        *("--pool", "datasets/lvis_pool", "--ledger", str(scores), "--by", "loss"),
        *("--threshold", str(limit), "--allow-list", str(tmp_path / "list")),
    )
    expected = sorted(pool_id for pool_id, loss in losses.items() if loss <= limit)
    assert len(expected) == 5 and read_allow_list(tmp_path / "list").tolist() == expected


@pytest.fixture
def other_pool(tmp_path) -> Path:
    with PoolWriter(tmp_path / "other") as writer:
        rgba = np.full((3, 3, 4), 255, np.uint8)
        writer.add(1, rgba, source=CutOutSource("x"), scores={"clip": 0.3})
    return tmp_path / "other"


def test_a_score_that_a_filter_stored_needs_no_ledger(workplace, other_pool, tmp_path, capsys):
    arguments = ["--pool", str(other_pool), "--allow-list", str(tmp_path / "list"), "--by", "clip"]
    workplace.call("filter_pool", *arguments, "--threshold", "0.4")
    assert "kept 0 of 1 cut-outs, 1 of which had a score" in capsys.readouterr().out
    workplace.call("filter_pool", *arguments, "--threshold", "0.2")
    assert "kept 1 of 1 cut-outs" in capsys.readouterr().out


def test_a_ledger_of_another_pool(scores, workplace, other_pool, tmp_path):
    arguments = ["--pool", str(other_pool), "--allow-list", str(tmp_path / "list")]
    arguments += ["--ledger", str(scores), "--quantile", "0.5"]
    with pytest.raises(UserError, match="no scored cut-out of the ledger"):
        workplace.call("filter_pool", *arguments)
    with pytest.raises(
        UserError, match=r"neither the ledger \(combined, box, mask.* the pool \(clip"
    ):
        workplace.call("filter_pool", *arguments, "--by", "size")
    with pytest.raises(UserError, match="no cut-out of the ledger .* is in the instance pool"):
        workplace.with_config(
            "rank_instances",
            *("--ledger", str(scores), "--category", "aerosol_can"),
            *("GAL.POOL.ROOT", str(other_pool)),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "1"], "give --allow-list, --output or both"),
        (["--allow-list", "list"], "give exactly one of"),
        (["--top", "1", "--output", "datasets/lvis_pool"], "--output is the pool itself"),
        (["--top", "1", "--allow-list", "list", "--pool", "nowhere"], "nowhere does not exist"),
        (["--top", "1", "--allow-list", "list", "--ledger", "nowhere"], "nowhere is empty"),
    ],
)
def test_mistakes_of_filtering(scores, workplace, arguments, message):
    with pytest.raises(UserError, match=message):
        workplace.call(
            "filter_pool", "--pool", "datasets/lvis_pool", "--ledger", str(scores), *arguments
        )
