from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from gal_d2.visualization.ranking import (
    NEUTRAL,
    RankedCutOut,
    best_and_worst,
    on_neutral,
    save_best_and_worst,
    save_gallery,
)


def square(color: tuple[int, int, int], alpha: int = 255) -> np.ndarray:
    """A 4 x 4 square of one colour, with a transparent white margin of 2."""
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[2:6, 2:6] = (*color, alpha)
    return rgba


def test_a_cut_out_in_the_middle_of_grey():
    picture = on_neutral(square((200, 10, 10)), 40, margin=0.25)
    assert picture.shape == (40, 40, 3) and picture.dtype == np.uint8
    assert (picture[10:30, 10:30] == (200, 10, 10)).all()
    frame = picture.copy()
    frame[10:30, 10:30] = NEUTRAL
    assert (frame == NEUTRAL).all()


def test_half_transparent_pixels_show_the_grey():
    picture = on_neutral(square((0, 0, 0), alpha=128), 16, margin=0.25)
    assert abs(int(picture[8, 8, 0]) - round(NEUTRAL * (1 - 128 / 255))) <= 1


def test_nothing_to_show_is_grey():
    assert (on_neutral(None, 5) == NEUTRAL).all()
    assert (on_neutral(np.zeros((3, 3, 4), np.uint8), 5) == NEUTRAL).all()


def ranked(count: int) -> list[RankedCutOut]:
    return [
        RankedCutOut(
            square((40 * k, 0, 0)),
            k + 1,
            1.0 - 0.5 * k,
            900 + k,
            {"box score": 0.25, "mask loss": None, "exposures": 3},
            {"prompt": f"a <bun> & {k}"},
            [(3, 0.5, True), (9, 0.75, False), (11, None, True)],
        )
        for k in range(count)
    ]


def test_picture_of_best_and_worst(tmp_path):
    cut_outs = ranked(3)
    path = save_best_and_worst(
        cut_outs[:2],
        cut_outs[:0:-1],
        tmp_path / "new" / "bun.png",
        title="bun",
        value_name="score",
        dpi=100,
    )
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height = picture.shape[0]

    def shows(color: tuple[int, int, int], rows: np.ndarray) -> bool:
        return bool((np.abs(rows - color).sum(axis=2) <= 3).any())

    upper, lower = picture[: height // 2], picture[height // 2 :]
    assert shows((0, 0, 0), upper) and shows((40, 0, 0), upper) and not shows((80, 0, 0), upper)
    assert shows((80, 0, 0), lower) and shows((40, 0, 0), lower)


def test_the_page_needs_no_other_file(tmp_path):
    path = save_gallery(ranked(3), tmp_path / "bun.html", title="bun <b>", value_name="combined")
    page = path.read_text()
    assert "<h1>bun &lt;b&gt;</h1>" in page and "a &lt;bun&gt; &amp; 2" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    headings = re.findall(r"<th>(.*?)</th>", page)
    assert headings == [
        *("rank", "cut-out", "combined", "box score", "mask loss", "exposures"),
        *("history", "prompt", "pool id"),
    ]
    rows = re.findall(r"<tr><td.*?</tr>", page)
    assert len(rows) == 3 and all(row.count("<td") == len(headings) for row in rows)
    assert '<td class=n data-k="0.5">+0.500</td>' in rows[1]
    assert '<td class=n data-k="3">3</td>' in rows[0]  # a count has no sign, nor decimals
    assert rows[0].count("<circle") == 2  # an exposure without a score has no dot
    assert "step 9: +0.750, rejected" in rows[0]
    encoded = re.search(r"data:image/webp;base64,([^\"]+)", rows[0]).group(1)
    thumbnail = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert thumbnail.size == (4, 4)  # without its transparent margin


def test_a_page_of_nothing(tmp_path):
    page = save_gallery([], tmp_path / "none.html", title="none", value_name="phi").read_text()
    assert "<tr><td" not in page


def test_an_unreadable_cut_out_is_listed(tmp_path):
    cut_out = RankedCutOut(None, None, None, 7)
    page = save_gallery([cut_out], tmp_path / "a.html", title="a", value_name="phi").read_text()
    assert "<td class=c>unreadable</td>" in page and "<td class=i>7</td>" in page


def of_a_category(count: int) -> list[RankedCutOut]:
    return [RankedCutOut(square((9, 9, k)), k + 1, -float(k), k) for k in range(count)]


@pytest.mark.parametrize(
    ("count", "top", "best", "worst"),
    [
        (1, 8, [0], []),
        (2, 8, [0], [1]),
        (5, 8, [0, 1, 2], [4, 3]),
        (16, 8, list(range(8)), list(range(15, 7, -1))),
        (20, 3, [0, 1, 2], [19, 18, 17]),
    ],
)
def test_none_of_few_is_shown_twice(count, top, best, worst):
    rows = best_and_worst(of_a_category(count), top)
    assert [[c.pool_id for c in row] for row in rows] == [best, worst]


def test_a_long_title_is_not_cut(tmp_path):
    """One cut-out makes a narrow picture: what stands above it takes several lines."""
    title = "sandal_(type_of_shoe): cut-outs ranked by own_data, ledger output/own_data/pool_scores"
    rows = best_and_worst(of_a_category(1), 8)
    options = {"value_name": "combined score, mean of a cut-out's exposures (1 cut-outs)"}
    paths = [
        save_best_and_worst(*rows, tmp_path / f"{k}.png", title=t, **options)
        for k, t in enumerate(["bun", title])
    ]
    short, long = (np.asarray(Image.open(path).convert("L")) for path in paths)
    assert short.shape[1] == long.shape[1] and short.shape[0] < long.shape[0]
    # Nothing is drawn at the sides, where a cut letter would be.
    assert (long[:, :3] == 255).all() and (long[:, -3:] == 255).all()
