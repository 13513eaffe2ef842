"""Base augmentations, and where they leave the original image."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from gal_d2 import add_gal_config
from gal_d2.copy_paste.augmentation import build_augmentations, locate
from gal_d2.copy_paste.masks import Box
from gal_d2.errors import UserError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_gal_config(cfg)
    return cfg


def names(augmentations) -> list[str]:
    return [type(augmentation).__name__ for augmentation in augmentations]


def test_lsj(cfg) -> None:
    cfg.GAL.DATA.AUGMENTATION = "lsj"
    cfg.GAL.DATA.LSJ.IMAGE_SIZE = 96
    augmentations = build_augmentations(cfg)
    assert names(augmentations) == ["RandomFlip", "ResizeScale", "FixedSizeCrop"]
    sample = T.AugInput(np.zeros((30, 40, 3), np.uint8))
    T.AugmentationList(augmentations)(sample)
    assert sample.image.shape == (96, 96, 3)
    cfg.INPUT.RANDOM_FLIP = "none"
    assert names(build_augmentations(cfg)) == ["ResizeScale", "FixedSizeCrop"]


def test_resize_and_none(cfg) -> None:
    cfg.GAL.DATA.AUGMENTATION = "resize"
    assert names(build_augmentations(cfg)) == ["ResizeShortestEdge", "RandomFlip"]
    cfg.INPUT.CROP.ENABLED = True
    assert names(build_augmentations(cfg)) == ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]
    cfg.GAL.DATA.AUGMENTATION = "none"
    assert build_augmentations(cfg) == []


@pytest.mark.parametrize(
    ("node", "key", "value", "message"),
    [
        ("DATA", "AUGMENTATION", "mosaic", "AUGMENTATION is 'mosaic'; it must be one of lsj"),
        ("LSJ", "IMAGE_SIZE", 0, "IMAGE_SIZE is 0"),
        ("LSJ", "MIN_SCALE", 0.0, "MIN_SCALE is 0.0"),
        ("LSJ", "MIN_SCALE", 3.0, "MIN_SCALE is 3.0 and MAX_SCALE 2.0"),
    ],
)
def test_a_senseless_value_is_named(cfg, node, key, value, message) -> None:
    (cfg.GAL.DATA if node == "DATA" else cfg.GAL.DATA.LSJ)[key] = value
    with pytest.raises(UserError, match=message):
        build_augmentations(cfg)


@pytest.mark.parametrize(
    ("transforms", "augmented", "region", "area"),
    [
        ([], (480, 640), Box(0, 0, 640, 480), 640 * 480),
        # Scaled by one half, then padded at the right and the bottom.
        (
            [T.ResizeTransform(480, 640, 240, 320), T.PadTransform(0, 0, 320, 400)],
            (640, 640),
            Box(0, 0, 320, 240),
            320 * 240,
        ),
        # Padding at the left, because the flip came last.
        (
            [T.PadTransform(0, 0, 60, 0), T.HFlipTransform(700)],
            (480, 700),
            Box(60, 0, 700, 480),
            640 * 480,
        ),
        # Scaled by two, then cropped.
        (
            [T.ResizeTransform(480, 640, 960, 1280), T.CropTransform(100, 50, 640, 640)],
            (640, 640),
            Box(0, 0, 640, 640),
            1280 * 960,
        ),
    ],
)
def test_locate(transforms, augmented, region, area) -> None:
    frame = locate(T.TransformList(transforms), (480, 640), augmented)
    assert frame.region == region
    assert frame.full_area == pytest.approx(area)


def test_locate_large_scale_jitter(cfg) -> None:
    cfg.GAL.DATA.LSJ.IMAGE_SIZE = 100
    augmentations = T.AugmentationList(build_augmentations(cfg))
    for seed in range(20):
        np.random.seed(seed)  # noqa: NPY002
        sample = T.AugInput(np.full((50, 70, 3), 9, np.uint8))
        transforms = augmentations(sample)
        frame = locate(transforms, (50, 70), sample.image.shape[:2])
        # The image is 9 everywhere and the padding 128.
        is_scene = (sample.image == 9).all(axis=2)
        expected = np.zeros_like(is_scene)
        expected[frame.region.slices] = True
        assert np.array_equal(is_scene, expected)
