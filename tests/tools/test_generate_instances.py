"""tools/generate_instances.py as a user runs it, with a tiny Stable Diffusion on the CPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from gal_d2.pool.check import check_shard
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import ShardReader, shard_names
from gal_d2.pool.writer import PoolWriter
from gal_d2.setup.launch import run_tool

sys.path.insert(0, str(Path(__file__).parent.parent / "generation"))
import tiny_models

CATEGORIES = [
    {"id": 12, "name": "bun", "def": "small rounded bread", "synonyms": ["bun", "roll"]},
    {"id": 30, "name": "sandal_(type_of_shoe)", "def": "a shoe with straps"},
    {"id": 41, "name": "boot"},
]


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    return load_script(repository / "tools/generate_instances.py")


@pytest.fixture(autouse=True)
def plain_logging(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """detectron2's logger would keep the stream of the first test, which is closed by the next."""
    monkeypatch.setattr("gal_d2.commands.generate.setup_logger", lambda **options: None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with annotations and the tiny models."""
    root = tmp_path_factory.mktemp("generate")
    categories = [{"frequency": "r", "image_count": 1, **category} for category in CATEGORIES]
    content = {"images": [], "annotations": [], "categories": categories}
    (root / "train.json").write_text(json.dumps(content))
    for name in ("stable_diffusion", "clip", "clipseg"):
        getattr(tiny_models, f"save_{name}")(root / name)
    return root


@pytest.fixture
def arguments(repository: Path, work: Path) -> list[str]:
    """configs/lvis_gal.yaml, with tiny models in place of the published ones."""
    options = {
        "GAL.DATA.TRAIN": f"('{work / 'train.json'}', '{work}')",
        "GAL.GENERATOR.MODEL": work / "stable_diffusion",
        "GAL.GENERATOR.VARIANT": "",
        "GAL.GENERATOR.DEVICE": "cpu",
        "GAL.GENERATOR.SIZE": 32,
        "GAL.GENERATOR.STEPS": 2,
        "GAL.GENERATOR.UNIT_SIZE": 3,
        "GAL.GENERATOR.BATCH_SIZE": 2,
        "GAL.GENERATOR.SEGMENTER.NAMES": "['clipseg']",
        "GAL.GENERATOR.SEGMENTER.CLIPSEG.MODEL": work / "clipseg",
        "GAL.GENERATOR.FILTER.CLIP.MODEL": work / "clip",
        # Noise has no area or truncation to speak of, and some likeness to any name.
        "GAL.GENERATOR.FILTER.NAMES": "['area', 'clip_text']",
        "GAL.GENERATOR.FILTER.AREA.MIN": 0.0,
        "GAL.GENERATOR.FILTER.AREA.MAX": 1.0,
        "GAL.GENERATOR.FILTER.CLIP_TEXT.MIN": 0.08,
    }
    pairs = [str(word) for pair in options.items() for word in pair]
    return ["--config-file", str(repository / "configs/lvis_gal.yaml"), *pairs]


def content(root: Path) -> dict[int, dict]:
    """All that a pool has, byte by byte, by id; nothing is stored twice."""
    rows = {}
    for name in shard_names(root):
        assert check_shard(root / name).error is None
        reader = ShardReader(root / name)
        for row in range(len(reader)):
            fields = reader.read_fields(row)
            assert fields["pool_id"] not in rows
            rows[fields["pool_id"]] = fields
    return rows


def outcomes(root: Path) -> dict[tuple[int, int], tuple]:
    """(pool id, reason) of each request that the journal has; the last entry counts."""
    found = {}
    for path in sorted((root / "journal").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            for entry in json.loads(line)["outcomes"]:
                key = entry["category_id"], entry["index"]
                found[key] = entry["pool_id"], entry["reason"]
    return found


KILL = """\
import os, runpy, signal, sys
import gal_d2
from gal_d2.generation.journal import Journal

append, calls = Journal.append, []


def append_or_die(self, outcomes):
    calls.append(outcomes)
    if len(calls) == 2:
        # The worst moment: the cut-outs of this unit are in the pool, the journal lacks them.
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, outcomes)


Journal.append = append_or_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_and_resumed_is_the_same_as_uninterrupted(
    repository: Path, arguments: list[str], tmp_path: Path
) -> None:
    # Processes of their own, as a user's: what other tests leave behind in this one (threads,
    # backends) may round otherwise, and one other pixel is another cut-out.
    def run(*command: str, code: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", *code]
            + [str(repository / "tools" / "generate_instances.py"), *command],
            env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = [*arguments, "--per-category", "5", "--categories", "roll", "boot"]
    printed = run(*arguments, "--output", str(whole)).stdout
    expected = content(whole)
    drawn = outcomes(whole)
    assert drawn.keys() == {(c, i) for c in (12, 41) for i in range(5)}
    assert {pool_id for pool_id, _ in drawn.values()} - {None} == expected.keys()
    # Something was kept of each category, and something dropped.
    assert {row["category_id"] for row in expected.values()} == {12, 41}
    assert {reason for _, reason in drawn.values()} == {"", "clip_text"}
    assert "10 images drawn" in printed and f"{len(expected)} passed" in printed
    bun = next(row for row in expected.values() if row["category_id"] == 12)
    assert (bun["generator"], bun["model"]) == ("diffusers", "stable_diffusion")
    assert bun["prompt"] in (
        "a photo of a single bun", "bun, small rounded bread, in a white background"
    )  # fmt: skip
    assert {name for name, _ in bun["scores"]} == {"area", "clip_text"}

    command = [*arguments, "--output", str(killed), "GAL.GENERATOR.FLUSH_SECONDS", "0"]
    died = run(*command, code=("-c", KILL))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(outcomes(killed)) == 3
    assert 0 < len(content(killed)) < len(expected)

    assert "7 images drawn" in run(*command).stdout
    assert content(killed) == expected
    assert outcomes(killed) == drawn

    assert "nothing is missing" in run(*command).stdout
    assert content(killed) == expected


def test_processes_of_torchrun_fill_one_pool(
    tool: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    arguments = [*arguments, "--per-category", "4"]
    tool.run(tool.parse_arguments([*arguments, "--output", str(tmp_path / "one")]))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        tool.run(tool.parse_arguments([*arguments, "--output", str(tmp_path / "two")]))
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert "(process 1 of 2)" in capsys.readouterr().out


def test_dry_run_prints_prompts_and_draws_nothing(
    tool: ModuleType, arguments: list[str], tmp_path: Path, capsys
) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("boot:\n- one muddy {name}\n- a wellington\n")
    arguments = [*arguments, "--dry-run", "--per-category", "7", "--output", str(tmp_path / "pool")]
    tool.run(tool.parse_arguments([*arguments, "GAL.GENERATOR.PROMPT.FILE", str(prompts)]))
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "12  bun: 7 to draw",
        "a photo of a single bun",
        "bun, small rounded bread, in a white background",
        "30  sandal_(type_of_shoe): 7 to draw",
        "a photo of a single sandal, type of shoe",
        "sandal, a shoe with straps, in a white background",
        "41  boot: 7 to draw",
        "one muddy boot",
        "a wellington",
        "21 images of 3 categories in 9 units are to draw",
    ]
    assert not (tmp_path / "pool").exists()


def test_contact_sheets_and_statistics(
    tool: ModuleType, arguments: list[str], tmp_path: Path, capsys
) -> None:
    sheets = tmp_path / "sheets"
    arguments += ["--per-category", "3", "--output", str(tmp_path / "pool")]
    arguments += ["GAL.GENERATOR.FILTER.CLIP_TEXT.MIN", "-1.0"]  # all pass
    arguments += ["--categories", "30", "--contact-sheet", str(sheets)]
    tool.run(tool.parse_arguments(arguments))
    assert [path.name for path in sheets.iterdir()] == ["0030_sandal_type_of_shoe.png"]
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    kept = len(InstancePool(tmp_path / "pool"))
    assert table[1][:4] == ["30", "sandal_(type_of_shoe)", "3", str(kept)]
    assert table[2][:3] == ["all", "3", str(kept)]


def test_own_images_go_through_the_same_pipeline(
    tool: ModuleType, arguments: list[str], tmp_path: Path
) -> None:
    """Candidates with an alpha channel need no segmenter: none is loaded."""
    import numpy as np

    from gal_d2.pool.cut_out import CutOutSource

    with PoolWriter(tmp_path / "candidates") as writer:
        for value in range(3):
            rgba = np.full((9, 9, 4), 40 * value + 130, np.uint8)
            writer.add(41, rgba, source=CutOutSource("imitation", seed=value))
    options = {
        "GAL.GENERATOR.NAME": "cutouts",
        "GAL.GENERATOR.CANDIDATES": tmp_path / "candidates",
        "GAL.GENERATOR.SEGMENTER.CLIPSEG.MODEL": "nowhere",
        "GAL.GENERATOR.FILTER.NAMES": "['area', 'truncation']",
    }
    arguments += [str(word) for pair in options.items() for word in pair]
    arguments += ["--per-category", "3", "--output", str(tmp_path / "pool")]
    tool.run(tool.parse_arguments(arguments))
    pool, candidates = InstancePool(tmp_path / "pool"), InstancePool(tmp_path / "candidates")
    assert pool.counts() == {41: 3}
    assert candidates.contains(pool.all_ids()).all()


def test_other_options_are_said_and_drawn_anew(
    tool: ModuleType, arguments: list[str], tmp_path: Path, caplog
) -> None:
    arguments += ["--per-category", "2", "--categories", "bun", "--output", str(tmp_path / "pool")]
    tool.run(tool.parse_arguments(arguments))
    before = content(tmp_path / "pool")
    tool.run(tool.parse_arguments([*arguments, "GAL.GENERATOR.STEPS", "3"]))
    assert "2 images were drawn with other options" in caplog.text
    assert content(tmp_path / "pool").items() >= before.items()
    assert len(content(tmp_path / "pool")) > len(before)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--categories", "bum"], r"--categories: .*'bum' \(did you mean bun\?\)"),
        (["GAL.GENERATOR.NAME", "dalle"], "NAME is 'dalle'; registered are: cutouts, stable_diff"),
        (["GAL.GENERATOR.NAME", "cutouts"], "CANDIDATES is '', which is no folder"),
        (["GAL.GENERATOR.SIZE", "30"], "SIZE is 30: give a multiple of 8"),
        (["GAL.GENERATOR.STEPS", "0"], "STEPS is 0: give at least 1"),
        (["GAL.GENERATOR.MODEL", "./none"], "MODEL is './none', which is no folder"),
        (["GAL.GENERATOR.DEVICE", "gpu"], "DEVICE is 'gpu': choose auto, cpu or cuda"),
        (["GAL.GENERATOR.DTYPE", "int8"], "DTYPE is 'int8': choose"),
        (["GAL.GENERATOR.SEGMENTER.NAMES", "['unet']"], "SEGMENTER.NAMES has 'unet': choose from"),
        (["GAL.GENERATOR.SEGMENTER.NAMES", "[]"], "SEGMENTER.NAMES is empty, but the generator"),
        (["GAL.GENERATOR.FILTER.NAMES", "['clip']"], "FILTER.NAMES has 'clip': choose from"),
        (["GAL.GENERATOR.UNIT_SIZE", "0"], "UNIT_SIZE is 0: give at least 1"),
        (["GAL.GENERATOR.PROMPT.TEMPLATES", "['a {nme}']"], r"\['nme'\]: use some of"),
        (["--output", ""], "GAL.POOL.ROOT is empty"),
    ],
)
def test_mistakes_are_one_sentence(
    tool: ModuleType, arguments: list[str], tmp_path: Path, capsys, extra: list[str], message: str
) -> None:
    base = [*arguments, "--per-category", "1", "--output", str(tmp_path / "pool")]
    parsed = tool.parse_arguments([*base, *extra])
    if extra[0] == "--output":
        parsed.output = None
        parsed.opts += ["GAL.POOL.ROOT", ""]
    with pytest.raises(SystemExit) as exit_status:
        run_tool(tool.run, parsed)
    assert exit_status.value.code == 1
    error = capsys.readouterr().err
    # Loading a model shows its progress before.
    assert re.search(message, error.splitlines()[-1])
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert not content(tmp_path / "pool")


def test_options_may_follow_category_names(tool: ModuleType) -> None:
    parsed = tool.parse_arguments(
        ["--categories", "bun", "Band_Aid", "GAL.GENERATOR.SEED", "-1", "--dry-run"]
    )
    assert parsed.categories == ["bun", "Band_Aid"]
    assert parsed.opts == ["GAL.GENERATOR.SEED", "-1"]
    assert parsed.dry_run
    parsed = tool.parse_arguments(["GAL.GENERATOR.SEED", "3", "--ray", "--per-category", "2"])
    assert (parsed.opts, parsed.ray) == (["GAL.GENERATOR.SEED", "3"], "local")
