"""Objects cut out of training images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_utils

from gal_d2.copy_paste.real_instances import RealInstances
from gal_d2.errors import UserError
from gal_d2.files.image_file import UnreadableImageError


def annotate(class_index: int, x0: int, y0: int, x1: int, y1: int, **more) -> dict:
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": class_index,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        **more,
    }


@pytest.fixture
def image(tmp_path: Path) -> tuple[str, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / "scene.png"
    Image.fromarray(pixels).save(path)
    return str(path), pixels


def record(file_name: str, *annotations: dict) -> dict:
    return {"file_name": file_name, "height": 40, "width": 50, "annotations": list(annotations)}


def test_cut_out(image) -> None:
    file_name, pixels = image
    bitmap = np.zeros((40, 50), np.uint8, order="F")
    bitmap[5:15, 30:45] = 1
    bitmap[5, 30] = 0
    rle = annotate(7, 30, 5, 45, 15, segmentation=mask_utils.encode(bitmap))
    instances = RealInstances([record(file_name, annotate(2, 10, 20, 25, 32), rle)])
    assert len(instances) == 2 and instances.classes.tolist() == [2, 7]

    first = instances.cut_out(0)
    assert first.class_index == 2
    assert np.array_equal(first.rgba[..., :3], pixels[20:32, 10:25])
    assert (first.rgba[..., 3] == 255).all()
    second = instances.cut_out(1)
    assert second.class_index == 7
    assert np.array_equal(second.rgba[..., :3], pixels[5:15, 30:45])
    assert np.array_equal(second.rgba[..., 3], bitmap[5:15, 30:45] * 255)


def test_objects_of_a_class_in_order(image) -> None:
    file_name, _ = image
    annotations = [annotate(k, 0, 0, 12 + k, 12) for k in (5, 2, 5)]
    instances = RealInstances([record(file_name, *annotations)])
    assert instances.indices_of(5).tolist() == [0, 2]
    assert instances.indices_of(3).tolist() == []
    assert instances.cut_out(2).class_index == 5


def test_what_is_left_out(image) -> None:
    file_name, _ = image
    without = annotate(3, 0, 0, 20, 20)
    del without["segmentation"]
    usable = annotate(1, 0, 0, 12, 12)
    instances = RealInstances(
        [
            record(file_name, annotate(0, 0, 0, 20, 20, iscrowd=1), without),
            record(file_name),
            record(
                file_name, annotate(4, 0, 0, 9, 9), usable, annotate(5, 0, 0, 20, 20, iscrowd=0)
            ),
        ]
    )
    assert instances.classes.tolist() == [1, 5]
    with pytest.raises(UserError, match="REAL_FRACTION"):
        RealInstances([record(file_name, annotate(4, 0, 0, 9, 9))])
    with pytest.raises(UserError, match="no object to cut out"):
        RealInstances([])


def test_sample_is_uniform_over_classes_then_objects(image) -> None:
    file_name, _ = image
    classes = [9, 0, 9, 9, 4, 9]
    annotations = [annotate(class_index, 0, 0, 12, 12) for class_index in classes]
    instances = RealInstances([record(file_name, *annotations)])
    drawn = instances.sample(6000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=6)
    assert counts[[1, 4]] == pytest.approx(2000, abs=150)
    assert counts[[0, 2, 3, 5]] == pytest.approx(500, abs=80)
    assert instances.sample(0, np.random.default_rng(0)).shape == (0,)


def test_an_outline_that_covers_nothing(image) -> None:
    file_name, _ = image
    beyond = annotate(1, 0, 0, 20, 20, segmentation=[[60, 60, 70, 60, 70, 70]])
    assert RealInstances([record(file_name, beyond)]).cut_out(0) is None


def test_bad_images_are_named(image, tmp_path: Path) -> None:
    file_name, _ = image
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    missing = RealInstances([record(str(tmp_path / "missing.jpg"), annotate(1, 0, 0, 20, 20))])
    with pytest.raises(UnreadableImageError, match=r"missing\.jpg does not exist"):
        missing.cut_out(0)
    broken = RealInstances([record(str(tmp_path / "broken.jpg"), annotate(1, 0, 0, 20, 20))])
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg cannot be read"):
        broken.cut_out(0)
    other_size = {**record(file_name, annotate(1, 0, 0, 20, 20)), "width": 51}
    with pytest.raises(UnreadableImageError, match=r"is 50 x 40, but .* are 51 x 40"):
        RealInstances([other_size]).cut_out(0)


def test_pickle(image) -> None:
    file_name, _ = image
    instances = RealInstances([record(file_name, annotate(2, 10, 20, 25, 32))])
    copied = pickle.loads(pickle.dumps(instances))
    assert np.array_equal(copied.cut_out(0).rgba, instances.cut_out(0).rgba)
