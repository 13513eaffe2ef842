from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gal_d2.visualization.contact_sheet import (
    BACKGROUND,
    PASTED,
    REAL,
    draw_instances,
    save_png,
    tile,
)


def square_mask(size: int = 40) -> np.ndarray:
    mask = np.zeros((1, size, size), dtype=bool)
    mask[0, 15:30, 10:30] = True
    return mask


def test_fill_and_outline_have_the_colour_and_the_rest_is_untouched():
    image = np.full((40, 40, 3), 100, dtype=np.uint8)
    drawn = draw_instances(image, square_mask(), [""], [PASTED], alpha=0.5)
    assert drawn[22, 20].tolist() == [(100 + c) // 2 for c in PASTED]  # inside
    assert np.abs(drawn[15, 20] - np.array(PASTED)).max() < 20  # on the outline, antialiased
    assert drawn[5, 5].tolist() == [100] * 3
    assert (image == 100).all()  # the input is not drawn on


def test_scale_enlarges_the_picture():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    assert draw_instances(image, square_mask(), ["x"], [REAL], scale=2).shape == (80, 80, 3)


def test_labels_stay_inside_and_empty_masks_have_none():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    masks = np.zeros((2, 40, 40), dtype=bool)
    masks[0, 0:3, 38:40] = True
    drawn = draw_instances(image, masks, ["a long label", "nothing"], [REAL, PASTED])
    blue = (drawn == np.array(REAL)).all(axis=2)
    orange = (drawn == np.array(PASTED)).all(axis=2)
    assert blue.any() and not orange.any()


def test_tiles_are_in_reading_order():
    pictures = [np.full((4, 6, 3), value, dtype=np.uint8) for value in (10, 20, 30)]
    sheet = tile(pictures, columns=2, gap=1)
    assert sheet.shape == (2 * 5 + 1, 2 * 7 + 1, 3)
    assert sheet[1, 1, 0] == 10 and sheet[1, 8, 0] == 20 and sheet[6, 1, 0] == 30
    assert sheet[6, 8].tolist() == list(BACKGROUND)


def test_titles_and_captions_take_room():
    pictures = [np.zeros((4, 60, 3), dtype=np.uint8)] * 2
    plain = tile(pictures, columns=2)
    assert tile(pictures, columns=2, title="t", captions=["a", "b"]).shape[0] > plain.shape[0]


def test_nothing_to_tile_is_an_error():
    with pytest.raises(ValueError, match="no pictures"):
        tile([], columns=2)


def test_saved_pictures_make_their_folder(tmp_path):
    path = save_png(np.zeros((2, 3, 3), dtype=np.uint8), tmp_path / "a/b.png", max_colors=4)
    assert Image.open(path).size == (3, 2)
