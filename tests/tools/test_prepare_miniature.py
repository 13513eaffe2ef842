"""tools/prepare_miniature.py as a user calls it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import cv2
import pytest

TINY = [
    *("--object-source", "digits", "--train-images", "4", "--val-images", "2"),
    *("--pool-per-category", "2"),
]


@pytest.fixture
def prepare(repository, tmp_path, monkeypatch):
    """Runs the tool in ``tmp_path`` with these arguments; raises its SystemExit, if any."""

    def run(*arguments: str) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["prepare_miniature.py", *arguments])
        runpy.run_path(str(repository / "tools/prepare_miniature.py"), run_name="__main__")

    return run


def test_prepares_and_draws_a_preview(prepare, tmp_path, capsys):
    prepare(*TINY, "--preview", "sheets/preview.png")
    assert "datasets/miniature train: 4 images" in capsys.readouterr().out
    assert Path(tmp_path / "datasets/miniature/pool").is_dir()
    height, width, _ = cv2.imread(str(tmp_path / "sheets/preview.png")).shape
    assert height > 10 * 144
    assert width >= 2 * 4 * 256  # as wide as the scenes, or four of each kind
    # A second run finds it made, and can still draw it.
    prepare(*TINY, "--preview", "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheets/preview.png").read_bytes()


def test_the_preview_shows_the_kinds_that_there_are(prepare, tmp_path):
    names = ("wrong", "noise", "misplaced", "blur", "colour", "cut-off", "two-objects")
    faults = [text for name in names for text in (f"--{name}", "0.1")]
    prepare(*TINY, *faults, "--pool-per-category", "10", "--preview", "preview.png")
    prepare(*TINY, "--bad", "0", "--preview", "good.png", "--output", "good", "--val-images", "1")
    widths = [cv2.imread(str(tmp_path / name)).shape[1] for name in ("preview.png", "good.png")]
    # Four of each of eight kinds; and where all are good, no wider than the scenes.
    assert widths == [8 * 4 * 144, 4 * 2 * 256]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wrong", "2"], "error: wrong is 2.0: it must lie in [0, 1]."),
        (["--cut-off", "0.7"], "error: wrong + noise + misplaced + cut_off is 1.2, more than 1"),
        (["--bad", "1.5"], "error: bad is 1.5: it must lie in [0, 1]."),
        (["--preview", "sheet.gif"], "error: --preview is sheet.gif"),
        (["--output", "."], "exists and is no prepared miniature"),
    ],
)
def test_a_mistake_is_one_sentence(prepare, tmp_path, capsys, arguments, message):
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="1"):
        prepare(*TINY, *arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "datasets").exists()
