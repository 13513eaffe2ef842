"""tools/import_cutouts.py and tools/check_pool.py as a user runs them."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gal_d2.data.pool import CutOutSource, InstancePool, PoolWriter
from gal_d2.data.pool_shard import ShardWriter, shard_names
from gal_d2.engine.launch import run_tool

Tool = Callable[[list[str]], int]
"""Arguments -> exit status."""


def load(repository: Path, name: str) -> Tool:
    spec = importlib.util.spec_from_file_location(name, repository / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(arguments: list[str]) -> int:
        try:
            return run_tool(module.main, module.parse_arguments(arguments))
        except SystemExit as end:
            return end.code

    return call


@pytest.fixture
def import_cutouts(repository: Path) -> Tool:
    return load(repository, "import_cutouts")


@pytest.fixture
def check_pool(repository: Path) -> Tool:
    return load(repository, "check_pool")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with annotations.json, a folder of cut-outs and an X-Paste list of them."""
    monkeypatch.chdir(tmp_path)
    categories = [{"id": 12, "name": "bun"}, {"id": 3, "name": "boot", "synonyms": ["wellington"]}]
    Path("annotations.json").write_text(json.dumps({"categories": categories}))
    for number, name in enumerate(["bun", "wellington", "buns"]):
        Path("cutouts", name).mkdir(parents=True)
        rgba = np.full((4, 5, 4), 50 * number + 100, np.uint8)
        Image.fromarray(rgba).save(f"cutouts/{name}/a.png")
    Path("pool.json").write_text(json.dumps({"0": ["cutouts/wellington/a.png"], "1": []}))
    return tmp_path


FOLDER = ["--folder", "cutouts", "--annotations", "annotations.json", "--pool", "pool"]
XPASTE = ["--xpaste", "pool.json", "--annotations", "annotations.json", "--pool", "pool"]


def test_import_folder_twice(import_cutouts: Tool, work: Path, capsys) -> None:
    assert import_cutouts(FOLDER) == 0
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()[:2]] == [
        ["3", "1", "boot"],
        ["12", "1", "bun"],
    ]
    assert "2 cut-outs of 2 categories added, 0 were stored already, 0 images failed" in out
    assert "unknown category 'buns' (1 images) (did you mean bun?)" in err
    assert "warning: 0 images failed; 1 unknown categories with 1 images were left out" in err
    assert InstancePool("pool").counts() == {3: 1, 12: 1}

    assert import_cutouts(FOLDER) == 0
    assert "0 cut-outs of 0 categories added, 2 were stored already" in capsys.readouterr().out


def test_import_xpaste_records_the_source(import_cutouts: Tool, work: Path) -> None:
    options = ["--generator", "x-paste", "--model", "sd-1.5", "--prompt", "a photo"]
    assert import_cutouts([*XPASTE, *options]) == 0
    pool = InstancePool("pool")
    source = pool.get(pool.all_ids()[0]).source
    assert (source.generator, source.model, source.prompt) == ("x-paste", "sd-1.5", "a photo")
    assert pool.category_ids.tolist() == [3]


def test_import_chosen_categories(import_cutouts: Tool, work: Path) -> None:
    assert import_cutouts([*FOLDER, "--categories", "Bun"]) == 0
    assert InstancePool("pool").counts() == {12: 1}


def test_corrupt_images_are_a_warning(import_cutouts: Tool, work: Path, capsys) -> None:
    Path("cutouts/bun/b.png").write_text("no image")
    assert import_cutouts(FOLDER) == 0
    out, err = capsys.readouterr()
    assert "1 images failed" in out
    assert "skipped cutouts/bun/b.png: cannot identify image file" in err


def test_nothing_imported_is_a_failure(import_cutouts: Tool, work: Path, capsys) -> None:
    Path("cutouts/bun/a.png").write_text("no image")
    assert import_cutouts([*FOLDER, "--categories", "bun"]) == 1
    assert "skipped cutouts/bun/a.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*FOLDER, "--categories", "bunn"],
            "not in the annotation file: 'bunn' (did you mean bun?)",
        ),
        (["--folder", "nowhere", *FOLDER[2:]], "nowhere is not a folder"),
        (["--xpaste", "nowhere.json", *XPASTE[2:]], "nowhere.json cannot be read"),
        ([*FOLDER[:3], "nowhere.json", *FOLDER[4:]], "nowhere.json cannot be read"),
        ([*FOLDER[:5], "annotations.json"], "annotations.json cannot be created"),
    ],
)
def test_mistakes_are_one_sentence(
    import_cutouts: Tool, work: Path, capsys, arguments: list[str], message: str
) -> None:
    assert import_cutouts(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_no_workers(import_cutouts: Tool, work: Path) -> None:
    assert import_cutouts([*FOLDER, "--workers", "0"]) == 2


def fill(root: Path, seeds: range, category_id: int) -> list[int]:
    with PoolWriter(root) as writer:
        return [
            writer.add(
                category_id,
                np.full((4, 4, 4), seed + 100, np.uint8),
                source=CutOutSource("test", seed=seed),
            )
            for seed in seeds
        ]


def test_sound_pool(check_pool: Tool, work: Path, capsys) -> None:
    fill(Path("pool"), range(3), 12)
    fill(Path("pool"), range(2, 4), 12)
    fill(Path("pool"), range(2), 3)
    assert check_pool(["pool", "--annotations", "annotations.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [["3", "2", "boot"], ["12", "4", "bun"]]
    assert lines[2] == (
        "pool: 6 sound cut-outs of 2 categories in 3 shards (1 stored twice); "
        "0 corrupt shards, 0 corrupt cut-outs"
    )


@pytest.mark.parametrize("option", [[], ["--no-decode"]])
def test_all_damage_is_listed(check_pool: Tool, work: Path, capsys, option: list[str]) -> None:
    root = Path("pool")
    ids = fill(root, range(3), 12)
    (name,) = shard_names(root)
    content = bytearray((root / name).read_bytes())
    for start in (content.find(b"RIFF"), content.rfind(b"RIFF")):
        content[start + 20] ^= 0xFF
    (root / name).write_bytes(content)
    fill(root, range(2), 3)
    (other,) = set(shard_names(root)) - {name}
    os.truncate(root / other, 100)
    left = ShardWriter(root)
    assert check_pool(["pool", *option]) == 1
    out = capsys.readouterr().out
    assert f"corrupt shard pool/{other}: " in out
    assert f"corrupt cut-out {ids[0]}: row 0 of pool/{name}" in out
    assert f"corrupt cut-out {ids[2]}: row 2 of pool/{name}" in out
    assert f"unfinished shard pool/{left.temporary.name}: " in out
    assert "1 sound cut-outs of 1 categories in 2 shards" in out
    assert out.endswith("1 corrupt shards, 2 corrupt cut-outs\n")


def test_unfinished_shards_alone_are_no_failure(check_pool: Tool, work: Path, capsys) -> None:
    fill(Path("pool"), range(1), 3)
    ShardWriter(Path("pool"))
    assert check_pool(["pool"]) == 0
    assert "unless a writer is running, delete it" in capsys.readouterr().out


def test_pool_that_does_not_exist(check_pool: Tool, work: Path, capsys) -> None:
    assert check_pool(["nowhere"]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
