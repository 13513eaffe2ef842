"""Contact sheets of a pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gal_d2.datasets.annotation_file import Category
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.writer import PoolWriter
from gal_d2.visualization.pool_sheet import on_chequers, write_pool_sheets

CATEGORIES = (
    Category(3, "bun", "r", 1),
    Category(5, "sandal_(type_of_shoe)/x", "r", 1),
    Category(9, "boot", "r", 1),
)


def test_a_sheet_for_each_category_that_the_pool_has(tmp_path: Path) -> None:
    with PoolWriter(tmp_path / "pool") as writer:
        for number in range(12):
            rgba = np.full((5, 4, 4), 20 * number, np.uint8)
            rgba[..., 3] = 255
            source = CutOutSource("test", seed=number)
            writer.add(3 if number < 10 else 5, rgba, source=source, scores={"clip_text": 0.25})
    paths = write_pool_sheets(tmp_path / "pool", CATEGORIES, tmp_path / "sheets", count=9)
    assert [path.name for path in paths] == ["0003_bun.png", "0005_sandal_type_of_shoe_x.png"]
    wide, narrow = (Image.open(path).size for path in paths)
    assert wide[0] > 4 * narrow[0] / 2 and wide[1] > narrow[1]  # 8 + 1 pictures against 2


def test_empty_pool_has_no_sheets(tmp_path: Path) -> None:
    assert write_pool_sheets(tmp_path / "none", CATEGORIES, tmp_path / "sheets") == []
    assert not (tmp_path / "sheets").exists()


def test_transparency_shows_chequers() -> None:
    rgba = np.zeros((10, 20, 4), np.uint8)
    rgba[:, 10:, 3] = 255
    picture = on_chequers(rgba, 40)
    assert picture.shape == (40, 40, 3)
    assert set(np.unique(picture[:, :18])) == {200, 235}
    assert (picture[10:30, 22:] == 0).all()
    assert set(np.unique(picture[:8])) == {200, 235}  # above and below the object as well
