"""tools/import_cutouts.py and tools/check_pool.py as a user runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import ShardWriter, shard_names
from gal_d2.pool.writer import PoolWriter
from gal_d2.setup.launch import run_tool

Tool = Callable[[list[str]], int]
"""Arguments -> exit status."""


def load(repository: Path, name: str) -> Tool:
    module = load_script(repository / f"tools/{name}.py")

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
        rgba[..., 3] = 255
        rgba[0, 0] = 0
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


def striped(value: int) -> np.ndarray:
    """A cut-out (4, 4, 4) that can be pasted."""
    rgba = np.full((4, 4, 4), value, np.uint8)
    rgba[1] -= 30
    return rgba


def fill(root: Path, seeds: range, category_id: int) -> list[int]:
    with PoolWriter(root) as writer:
        return [
            writer.add(
                category_id,
                striped(seed + 130),
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
    assert lines[-1] == (
        "pool: 6 sound cut-outs of 2 categories in 3 shards (1 stored twice); "
        "0 corrupt shards, 0 corrupt cut-outs; 0 cannot be pasted"
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
    assert "1 corrupt shards, 2 corrupt cut-outs" in out


def test_unfinished_shards_alone_are_no_failure(check_pool: Tool, work: Path, capsys) -> None:
    fill(Path("pool"), range(1), 3)
    ShardWriter(Path("pool"))
    assert check_pool(["pool"]) == 0
    assert "unless a writer is running, delete it" in capsys.readouterr().out


def test_pool_that_does_not_exist(check_pool: Tool, work: Path, capsys) -> None:
    assert check_pool(["nowhere"]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def soft(alpha: int) -> np.ndarray:
    """A cut-out (8, 8, 4) of which a margin is transparent, and the rest as opaque as said."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[2:7, 1:7] = (200, 90, 10, alpha)
    return rgba


def test_what_can_never_be_pasted_is_refused_and_counted(
    import_cutouts: Tool, work: Path, capsys
) -> None:
    folder = Path("cutouts/bun")
    (folder / "a.png").unlink()
    photograph = np.full((8, 8, 4), 255, np.uint8)
    photograph[..., :3] = np.arange(192).reshape(8, 8, 3)
    for name, rgba in (
        ("good", soft(255)),
        ("faint1", soft(127)),
        ("faint2", soft(60)),
        ("photograph", photograph),
        ("black", soft(255) * np.array([0, 0, 0, 1], np.uint8)),
    ):
        Image.fromarray(rgba).save(folder / f"{name}.png")
    arguments = [*FOLDER, "--categories", "bun"]
    assert import_cutouts(arguments) == 0
    err = capsys.readouterr().err
    assert "skipped cutouts/bun/faint1.png: no pixel is half opaque" in err
    assert "skipped cutouts/bun/photograph.png: it is opaque from corner to corner" in err
    assert "warning: 4 images cannot be pasted and were refused: 2 faint" in err
    assert "1 blank" in err and "1 opaque" in err and "--allow-opaque" in err
    assert InstancePool("pool").counts() == {12: 1}
    # Asked for, the photograph is taken.
    assert import_cutouts([*arguments, "--allow-opaque"]) == 0
    assert InstancePool("pool").counts() == {12: 2}


def test_an_object_of_which_a_sliver_is_opaque_is_a_warning(
    import_cutouts: Tool, check_pool: Tool, work: Path, capsys
) -> None:
    glass = soft(80)
    glass[2, 1:7, 3] = 255  # its rim
    Image.fromarray(glass).save("cutouts/bun/glass.png")
    assert import_cutouts([*FOLDER, "--categories", "bun"]) == 0
    assert "1 images are more than half transparent" in capsys.readouterr().err
    assert check_pool(["pool"]) == 0
    assert "1 cut-outs are more than half transparent" in capsys.readouterr().out


def test_a_pool_of_before_that_cannot_be_pasted_is_noticed(
    check_pool: Tool, work: Path, capsys
) -> None:
    with PoolWriter("pool") as writer:
        writer.add(12, soft(100), source=CutOutSource("test"))
        writer.add(12, soft(255), source=CutOutSource("test"))
    assert check_pool(["pool", "--annotations", "annotations.json"]) == 1
    out = capsys.readouterr().out
    assert "category 12 bun: 1 of 2 cut-outs can never be pasted: 1 faint" in out
    assert "2 sound cut-outs" in out and out.endswith("1 cannot be pasted\n")


def test_folders_as_other_systems_leave_them(import_cutouts: Tool, work: Path, capsys) -> None:
    """macOS writes accents apart from their letters, and a hidden file beside each file."""
    categories = [{"id": 1, "name": "caf\u00e9 cr\u00e8me"}, {"id": 2, "name": "bun"}]
    Path("annotations.json").write_text(json.dumps({"categories": categories}))
    root = Path("others")
    for path in ("cafe\u0301 cre\u0300me/a.png", "__MACOSX/bun/a.png", "bun/@eaDir/b.png"):
        (root / path).parent.mkdir(parents=True)
        Image.fromarray(soft(200 + len(path))).save(root / path)
    for name in ("._a.png", ".DS_Store", "desktop.ini", "Thumbs.db"):
        (root / "cafe\u0301 cre\u0300me" / name).write_bytes(b"no image")
    assert import_cutouts(["--folder", "others", *FOLDER[2:]]) == 0
    assert InstancePool("pool").counts() == {1: 1}
    assert capsys.readouterr().err == ""


def test_palettes_with_transparency(import_cutouts: Tool, work: Path) -> None:
    """One colour of the palette is transparent, or each has its own alpha; GIF; grey."""
    folder = Path("cutouts/bun")
    (folder / "a.png").unlink()
    palette = Image.new("P", (6, 6), 1)
    palette.putpalette([0, 0, 0, 200, 20, 30, 10, 220, 30])
    for x in range(6):
        palette.putpixel((x, 0), 0)
        palette.putpixel((x, 3), 2)
    palette.save(folder / "colour.png", transparency=0)
    palette.save(folder / "alphas.png", transparency=bytes([0, 255, 180]))
    palette.save(folder / "colour.gif", transparency=0)
    Image.fromarray(np.arange(100, 136, dtype=np.uint8).reshape(6, 6)).save(
        folder / "grey.png", transparency=100
    )
    assert import_cutouts([*FOLDER, "--categories", "bun"]) == 0
    pool = InstancePool("pool")
    # The two palettes with one transparent colour hold the same pixels: one cut-out.
    assert pool.counts() == {12: 3}
    shapes = sorted(pool.get(i).rgba.shape[:2] for i in pool.all_ids())
    assert shapes == [(5, 6), (5, 6), (6, 6)]
