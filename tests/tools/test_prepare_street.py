"""tools/prepare_street.py as a user calls it, on scikit-image's photographs with drawn labels."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scripts import load_script
from skimage import data

from gal_d2.errors import UserError
from gal_d2.testbeds.street.categories import CATEGORIES

LABELS = ["null"] + [label for c in CATEGORIES for label in c.labels]


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    return load_script(repository / "tools/prepare_street.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name eight photographs with a coat and a shoe each, and some garments."""
    root = tmp_path_factory.mktemp("copies")
    photos, garments = root / "photos", root / "garments"
    (photos / "photos").mkdir(parents=True)
    (photos / "annotations/pixel-level").mkdir(parents=True)
    (garments / "images").mkdir(parents=True)
    names = np.empty((1, len(LABELS)), object)
    names[0] = LABELS
    savemat(photos / "label_list.mat", {"label_list": names})
    pictures = [data.astronaut(), data.chelsea(), data.coffee()]
    for number in range(1, 9):
        labels = np.zeros((90, 60), np.uint8)
        labels[20:60, 10:40] = LABELS.index("coat")
        labels[75:85, 10:30] = LABELS.index("sneakers")
        savemat(photos / f"annotations/pixel-level/{number:04d}.mat", {"groundtruth": labels})
        picture = Image.fromarray(pictures[number % 3]).resize((60, 90))
        picture.save(photos / f"photos/{number:04d}.jpg")
    with (garments / "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label"])
        for label in ("T-Shirt", "Longsleeve", "Hat"):
            for k in range(30):
                Image.fromarray(pictures[k % 3]).resize((30, 40)).save(
                    garments / f"images/{label}{k}.jpg"
                )
                table.writerow([f"{label}{k}", label])
    return ["--photos", str(photos), "--garments", str(garments)]


def test_prepares_prints_and_draws(tool, folders, tmp_path, capsys):
    output, sheet = tmp_path / "street", tmp_path / "sheet.png"
    tool.main(tool.parse_arguments([*folders, "--output", str(output), "--preview", str(sheet)]))
    printed = capsys.readouterr().out
    assert "shoe: the labels shoes, flats, loafers" in printed
    lines: dict[str, list[str]] = {}
    for name, *cells in (line.split() for line in printed.splitlines() if line):
        lines.setdefault(name, cells)  # the photographs' table comes before the candidates'
    # 30 % of eight photographs, each with one of both.
    assert lines["coat"] == lines["shoe"] == ["r", "6", "6", "2", "2"]
    assert "train: 6 images, 12 instances" in printed and "val: 2 images, 4" in printed
    assert "0 frequent, 0 common, 2 rare categories" in printed
    good, wrong, stray, bad = lines["t-shirt"]
    assert (int(good) > 0, int(wrong) > 0, stray) == (True, True, "0")
    assert bad == f"{int(wrong) / (int(good) + int(wrong)):.0%}"
    assert (output / "candidates/t-shirt").is_dir() and (output / "candidates.parquet").is_file()
    assert Image.open(sheet).width > 8 * 60


def test_near_synonyms_apart(tool, folders, tmp_path, capsys):
    arguments = [*folders, "--output", str(tmp_path / "street"), "--keep-synonyms"]
    tool.main(tool.parse_arguments(arguments))
    lines = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    assert "sneakers" in lines and "shoe:" not in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--photos and --garments are needed"),
        (["--preview", "sheet.gif"], "--preview is sheet.gif"),
        (["--val-share", "0"], "--val-share is 0"),
        (["--rare", "socks"], "--rare has socks: choose from"),
        (["--truth"], "run tools/prepare_street.py without --truth"),
    ],
)
def test_a_mistake_is_one_sentence(tool, folders, tmp_path, arguments, message):
    named = [] if not arguments else folders
    arguments = [*named, "--output", str(tmp_path / "street"), *arguments]
    with pytest.raises(UserError, match=message):
        tool.main(tool.parse_arguments(arguments))
    assert not (tmp_path / "street").exists()
