from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from browser import CHROMIUM, dump_dom
from synthetic_run import (
    STEPS,
    make_pool,
    make_run,
    write_journal,
    write_truth,
)

from gal_d2.errors import UserError
from gal_d2.reporting.dossier import gather
from gal_d2.reporting.report import json_for_script, page_of, write_report
from gal_d2.reporting.run import read_runs

NASTY = '<img src=x onerror="window.hacked=1">&</script>'
NAMES = [NASTY, "bun", "coat_(rain)", "dog", "eel", "fig"]
SECTIONS = ["run", "precision", "categories", "pastes", "belief", "cutouts", "generator", "time"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs with pastes of one pool, and one without."""
    root = tmp_path_factory.mktemp("runs")
    pool = make_pool(root / "data/pool", NAMES)
    write_truth(pool)
    write_journal(pool)
    return {
        "ours": make_run(root / "ours", NAMES, pool, ap=42.0),
        "other": make_run(root / "a<b>&c", NAMES, pool, ap=40.0),
        "plain": make_run(root / "plain", NAMES, None, ap=38.0),
    }


@pytest.fixture(scope="module")
def page(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(*_split(folders.values()), output=path)


def _split(folders) -> tuple[Path, list[Path]]:
    first, *rest = folders
    return first, rest


def content_of(page: str) -> dict:
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])


def section(page: str, key: str) -> str:
    return re.search(rf'<section id="{key}">(.*?)</section>', page, re.S)[1]


class Tags(HTMLParser):
    """The tags of a page, with their attributes, and its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_all_parts_are_there(page: Path):
    text = page.read_text()
    assert re.findall(r'<section id="(\w+)">', text) == SECTIONS
    assert 'class="missing"' not in text
    content = content_of(text)
    assert set(content["data"]) == {"change", "pastes", "belief"}
    assert set(content["charts"]) == {
        *("precision", "distinct", "good", "accepted", "belief", "uncertainty", "separation"),
        *("outcomes", "time", "time-runs"),
    }


def test_every_chart_is_one_that_plotly_knows(page: Path):
    for figure in content_of(page.read_text())["charts"].values():
        go.Figure(figure)  # raises for a property that does not exist


def test_names_and_paths_cannot_become_markup(page: Path):
    text = page.read_text()
    body = text[: text.index('<script type="application/json"')]
    assert "<img src=x" not in text and "a<b>&c" not in body
    assert "&lt;img src=x onerror=" in body and "a&lt;b&gt;&amp;c" in body
    attributes = {name for _, values in Tags(body).tags for name in values}
    assert not any(name.startswith("on") for name in attributes)


def test_the_page_needs_no_other_file(page: Path):
    text = page.read_text()
    tags = Tags(text[: text.index('<script type="application/json"')]).tags
    sources = [v for _, a in tags for k, v in a.items() if k in ("src", "href", "srcset")]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)


def test_figures_of_a_run_by_hand(page: Path):
    content = content_of(page.read_text())
    traces = content["charts"]["precision"]["data"]
    # mask APr of our run: 42 + 2 + 1 + step / 10, at steps 24 and 48
    values = [t["y"] for t in traces if t["legendgroup"] == "0"]
    assert [47.4, 49.8] in values and len(traces) == 3 * 8
    # Each category once a step; the first category's are rejected in the second half.
    pastes = content["data"]["pastes"]
    assert [sum(row) for row in pastes["pasted"]] == [STEPS] * len(NAMES)
    assert [sum(row) for row in pastes["accepted"]] == [STEPS // 2, *[STEPS] * (len(NAMES) - 1)]
    assert content["charts"]["good"]["data"][0]["y"] == [0.5, 0.5, 0.5, 0.5]
    assert content["charts"]["distinct"]["data"][0]["y"] == [6 * len(NAMES)] * 4
    change = content["data"]["change"]
    assert change["others"] == ["a<b>&c", "plain"]
    assert change["tasks"]["mask"] == [[2.0] * len(NAMES), [4.0] * len(NAMES)]
    assert content["charts"]["outcomes"]["data"][0]["x"] == [1, 0]  # kept, by category


def test_best_and_worst_have_pictures_and_what_they_are(page: Path):
    found = section(page.read_text(), "cutouts")
    best, worst = (
        re.search(rf"<h3>{title}</h3>(.*?)<h3>", found, re.S)[1] for title in ("Best", "Worst")
    )
    assert best.count('class="truth good">good<') == 12 == best.count("data:image/webp;base64,")
    assert worst.count('class="truth bad">wrong object<') == 12
    assert re.search(r"step \d+: [+-][\d.]+, pasted", best)
    assert ", audition</title>" in found and ", pasted, rejected</title>" in found


def test_what_is_missing_is_left_out_with_a_sentence(folders: dict[str, Path], tmp_path: Path):
    text = write_report(folders["plain"], output=tmp_path / "plain.html").read_text()
    assert "no ledger" in section(text, "pastes") and "no ledger" in section(text, "cutouts")
    assert "kept no posterior" in section(text, "belief")
    assert "no journal" in section(text, "generator")
    assert "no other run" in section(text, "run")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.json").write_text("")
    text = write_report(bare).read_text()
    assert (bare / "report.html").is_file()
    assert "no evaluation" in section(text, "precision") and "no times" in section(text, "time")
    assert "neither a config.yaml nor a log.txt" in section(text, "run")


def test_pictures_need_the_pool(folders: dict[str, Path], tmp_path: Path):
    run = tmp_path / "moved"
    run.mkdir()
    for part in ("ledger", "snapshots", "metrics.json"):
        (run / part).symlink_to(folders["ours"] / part)
    text = write_report(run, output=tmp_path / "r.html").read_text()
    assert "name its folder with --pool" in section(text, "cutouts")
    assert "36 cut-outs were scored" in section(text, "belief")  # as the ledger knows categories
    pool = folders["ours"].parent / "data/pool"
    text = write_report(run, output=tmp_path / "r.html", pool=pool).read_text()
    assert "data:image/webp" in section(text, "cutouts")


def test_scores_of_batches_rank_no_cut_outs(tmp_path: Path):
    pool = make_pool(tmp_path / "pool", NAMES)
    run = make_run(tmp_path / "batch", NAMES, pool, ACCEPT={"UNIT": "batch"})
    text = page_of(gather(read_runs([run])))
    assert "scores all pastes of a step together" in section(text, "cutouts")


def test_a_damaged_snapshot_leaves_one_part_out(tmp_path: Path):
    pool = make_pool(tmp_path / "pool", NAMES)
    run = make_run(tmp_path / "run", NAMES, pool)
    (run / "snapshots/000000004.npz").write_bytes(b"broken")
    text = page_of(gather(read_runs([run])))
    assert "cannot be read" in section(text, "belief")
    assert "Ranked by mean score" in section(text, "cutouts")


def test_a_truth_of_another_pool_is_not_used(tmp_path: Path):
    other = make_pool(tmp_path / "other/pool", ["a", "b"])
    pool = make_pool(tmp_path / "data/pool", NAMES)
    write_truth(other).rename(tmp_path / "data/pool_truth.parquet")
    run = make_run(tmp_path / "run", NAMES, pool)
    content = content_of(page_of(gather(read_runs([run]))))
    assert "good" not in content["charts"] and "belief" in content["charts"]


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda p: p, "does not exist"), (lambda p: p.mkdir() or p, "none of config.yaml")],
)
def test_a_folder_of_no_training_is_refused(tmp_path: Path, make, message: str):
    with pytest.raises(UserError, match=message):
        write_report(make(tmp_path / "nothing"))


def test_json_in_a_script_element():
    text = json_for_script({"a": ["</script>", float("nan"), 1.5], 2: (True, None)})
    assert text == '{"a":["\\u003c/script>",null,1.5],"2":[true,null]}'


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_it(page: Path):
    dom = dump_dom(page)
    assert "data-error" not in re.search(r"<body[^>]*>", dom)[0]
    charts = re.findall(r'data-chart="([\w-]+)"', dom)
    assert re.search(rf'<body[^>]* data-drawn="{len(charts)}"', dom) and len(charts) == 12
    # The explorers have their controls; names are text in them, not markup.
    assert dom.count("<select>") >= 4 and "<datalist" in dom
    assert "<img src=x" not in dom
    # Of a category, best and worst are shown when it is chosen: one panel at a time.
    assert dom.count('class="panel shown"') == 1


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_one_part_alone(page: Path):
    dom = dump_dom(page, "#only=time")
    shown = re.findall(r'<section id="(\w+)">', dom)
    assert shown == ["time"]


def test_lvis_size(tmp_path: Path):
    """1,203 categories: the page stays below 10 MB, and opens with ten rows of each table."""
    names = [f"category_name_{n:04d}" for n in range(1203)]
    pool = make_pool(tmp_path / "data/pool", names)
    runs = [make_run(tmp_path / name, names, pool) for name in ("a", "b", "c")]
    path = write_report(runs[0], runs[1:])
    assert path.stat().st_size < 10e6
    text = path.read_text()
    assert text.count('data-first="10"') == 3  # categories, pastes, belief
    assert len(content_of(text)["data"]["pastes"]["first"]) == 10
    assert section(text, "cutouts").count("data:image/webp") < 600


def test_a_pool_that_was_filled_anew(folders: dict[str, Path], tmp_path: Path):
    pool = make_pool(tmp_path / "pool", ["a", "b"], seed=1)
    output = tmp_path / "r.html"
    text = write_report(folders["ours"], output=output, pool=pool.root).read_text()
    assert "36 cut-outs were scored" in section(text, "belief")  # as the ledger knows them
    assert "name the right one with --pool" in section(text, "cutouts")
