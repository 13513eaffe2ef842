"""Cut-outs are stored no larger than their class can be pasted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode

from gal_d2.copy_paste.augmentation import Frame
from gal_d2.copy_paste.masks import Box
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.scale import draw_size
from gal_d2.generation.generator import GeneratedImage
from gal_d2.generation.instance_cutter import InstanceCutter
from gal_d2.generation.stored_size import largest_pastes, reduced
from gal_d2.pool.cut_out import CutOutSource, decode_rgba
from gal_d2.setup.configuration import load_config

FOREGROUND = [200, 40, 90]


def ellipse(height: int, width: int) -> np.ndarray:
    """(height, width) bool."""
    y, x = np.mgrid[:height, :width] + 0.5
    return (2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2 <= 1


def cut_out_of(mask: np.ndarray) -> np.ndarray:
    """One colour on the mask, black around it."""
    color = np.where(mask[..., None], np.uint8(FOREGROUND), np.uint8(0))
    return np.dstack((color, np.uint8(255) * mask))


class TestReduced:
    def test_size_and_aspect(self) -> None:
        rgba = cut_out_of(ellipse(100, 60))
        pixels = np.count_nonzero(rgba[..., 3])
        result = reduced(rgba, math.sqrt(pixels) / 2)
        assert result.shape == (50, 30, 4) and result.dtype == np.uint8
        assert np.count_nonzero(result[..., 3]) == pytest.approx(pixels / 4, rel=0.02)

    def test_a_size_between_pixels_is_rounded_up(self) -> None:
        result = reduced(cut_out_of(np.ones((100, 60), bool)), math.sqrt(6000) / 3)
        assert result.shape[:2] == (34, 20)

    @pytest.mark.parametrize("largest", [math.inf, 60.0, math.sqrt(50 * 60)])
    def test_it_is_never_enlarged_or_touched_in_vain(self, largest: float) -> None:
        rgba = cut_out_of(np.ones((50, 60), bool))
        assert reduced(rgba, largest) is rgba

    def test_a_hard_mask_stays_hard_and_black_does_not_mix_into_the_edge(self) -> None:
        result = reduced(cut_out_of(ellipse(90, 90)), 25.0)
        assert set(np.unique(result[..., 3])) == {0, 255}
        seen = result[result[..., 3] == 255]
        assert (seen[:, :3] == FOREGROUND).all()
        assert result[0, 0].tolist() == [0, 0, 0, 0]

    def test_a_soft_mask_is_averaged(self) -> None:
        rgba = cut_out_of(np.ones((4, 4), bool))
        rgba[:2, :2, 3] = [[255, 155], [255, 155]]
        result = reduced(rgba, 2.0)
        assert result[..., 3].tolist() == [[205, 255], [255, 255]]

    def test_what_lies_under_transparent_pixels_is_kept(self) -> None:
        rgba = np.full((8, 8, 4), 255, np.uint8)
        rgba[:, :4] = [10, 20, 30, 0]
        result = reduced(rgba, 4.0 / math.sqrt(2))
        assert (result[:, :2] == [10, 20, 30, 0]).all() and (result[:, 2:] == 255).all()

    def test_lines_that_would_vanish_are_left_alone(self) -> None:
        rgba = cut_out_of(np.arange(40)[None].repeat(40, axis=0) % 4 == 0)
        assert reduced(rgba, 5.0) is rgba


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """Objects of sides 10 and 30 in category 7, one of side 10 in category 9, in 100 x 100 px."""
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": category_id,
            "segmentation": [[0, 0, side, 0, side, side, 0, side]],
            "bbox": [0, 0, side, side],
            "area": side**2,
            "iscrowd": 0,
        }
        for number, (category_id, side) in enumerate([(7, 10), (7, 30), (9, 10)], start=1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "bun"}, {"id": 9, "name": "boot"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    files = f"('{tmp_path / 'train.json'}', '{tmp_path}')"
    return load_config("", ["GAL.DATA.TRAIN", files, "GAL.COPY_PASTE.ASPECT_JITTER", "0.0"])


class TestLargestPastes:
    def test_by_the_sizes_of_the_class(self, cfg: CfgNode) -> None:
        cfg.GAL.COPY_PASTE.MAX_RELATIVE_SIZE = 1.0
        # 0.2 + 3 * 0.1 and 0.1 of an image that is scaled to twice 640 px.
        assert largest_pastes(cfg) == pytest.approx({7: 640.0, 9: 128.0}, rel=0.01)

    def test_no_larger_than_pastes_are_clipped(self, cfg: CfgNode) -> None:
        assert largest_pastes(cfg) == pytest.approx({7: 320.0, 9: 128.0}, rel=0.01)
        cfg.GAL.DATA.LSJ.IMAGE_SIZE = 64
        cfg.GAL.COPY_PASTE.MIN_SIZE = 20
        assert largest_pastes(cfg) == pytest.approx({7: 32.0, 9: 20.0}, rel=0.01)

    def test_images_resized_as_detectron2_does(self, cfg: CfgNode) -> None:
        cfg.GAL.DATA.AUGMENTATION = "resize"
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (200, 400), 900
        assert largest_pastes(cfg) == pytest.approx({7: 300.0, 9: 60.0}, rel=0.01)
        cfg.INPUT.CROP.ENABLED = True  # the crop is enlarged by no one knows how much
        assert largest_pastes(cfg) == {}

    def test_unknown(self, cfg: CfgNode, tmp_path: Path, caplog) -> None:
        cfg.GAL.DATA.AUGMENTATION = "none"
        assert largest_pastes(cfg) == {}
        cfg.GAL.DATA.AUGMENTATION = "lsj"
        content = json.loads((tmp_path / "train.json").read_text())
        for category in content["categories"]:
            category |= {"frequency": "f", "image_count": 100}
        (tmp_path / "train.json").write_text(json.dumps(content | {"annotations": []}))
        assert largest_pastes(cfg) == {} and not caplog.records
        del content["annotations"]  # enough to generate by
        (tmp_path / "train.json").write_text(json.dumps(content))
        assert largest_pastes(cfg) == {}
        assert "stored as they are cut" in caplog.text and "train.json" in caplog.text

    def test_no_paste_needs_more_in_either_direction(self, cfg: CfgNode) -> None:
        cfg.GAL.COPY_PASTE.ASPECT_JITTER = 0.3
        stored = reduced(np.full((900, 700, 4), 255, np.uint8), largest_pastes(cfg)[7])
        frame = Frame(Box(0, 0, 640, 640), 1280**2)
        options, rng = PasteOptions.from_config(cfg), np.random.default_rng(0)
        shape, pixels = stored.shape[:2], stored.shape[0] * stored.shape[1]
        sizes = [draw_size(shape, pixels, (0.2, 0.1), frame, options, rng) for _ in range(300)]
        assert (np.array(sizes) <= shape).all() and max(sizes)[0] > 0.95 * shape[0]


def test_the_cutter_stores_reduced_cut_outs_but_leaves_finished_ones(request_for) -> None:
    """A finished one is of a pool, and keeps its id there."""
    rgba = cut_out_of(ellipse(80, 80))
    source = CutOutSource("drawn")
    images = [
        GeneratedImage(request_for(category_id, 0), rgba[..., :3], source, rgba[..., 3], finished)
        for category_id, finished in ((3, False), (3, True), (7, False))
    ]
    checked = InstanceCutter([], [], largest={3: 20.0}).check(images)
    side = math.ceil(80 * 20 / math.sqrt(np.count_nonzero(rgba[..., 3])))
    assert [(image.height, image.width) for image in checked] == [(side, side), (80, 80), (80, 80)]
    stored = decode_rgba(checked[0].encoded, side, side)
    assert np.array_equal(stored, reduced(rgba, 20.0))
