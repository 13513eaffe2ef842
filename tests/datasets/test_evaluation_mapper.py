"""Evaluation reads images as training does."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from gal_d2.datasets.evaluation_mapper import EvaluationMapper
from gal_d2.files.image_file import read_training_image


@pytest.fixture
def record(tmp_path: Path) -> dict:
    values = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    Image.fromarray(values).save(tmp_path / "a.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 4,
        "height": 24,
        "width": 32,
        "annotations": [{}],
    }


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_same_pixels_as_in_training(record: dict, image_format: str) -> None:
    sample = EvaluationMapper(augmentations=[], image_format=image_format)(record)
    expected = read_training_image(record, image_format).transpose(2, 0, 1)
    np.testing.assert_array_equal(sample.pop("image").numpy(), expected)
    assert sample == {k: v for k, v in record.items() if k != "annotations"}


def test_augmentations_keep_the_original_size(record: dict) -> None:
    mapper = EvaluationMapper(augmentations=[T.ResizeShortestEdge(48, 1000)])
    sample = mapper({k: v for k, v in record.items() if k not in ("height", "width")})
    assert sample["image"].shape == (3, 48, 64)
    assert (sample["height"], sample["width"]) == (24, 32)


def test_an_unreadable_image_is_marked_and_named_once(record: dict, caplog) -> None:
    Path(record["file_name"]).write_bytes(b"no image")
    mapper = EvaluationMapper(augmentations=[])
    with caplog.at_level(logging.WARNING):
        samples = [mapper(record) for _ in range(2)]
    (message,) = [r.getMessage() for r in caplog.records]
    assert "a.png cannot be read" in message and "left out of the evaluation" in message
    for sample in samples:
        assert sample["unreadable"] and sample["image_id"] == 4
        assert sample["image"].shape == (3, sample["height"], sample["width"])
