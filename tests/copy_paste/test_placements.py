from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from gal_d2.copy_paste.masks import Box
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.place import draw_free_position
from gal_d2.copy_paste.placements import AuditionImages, sample_per_category
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter

SIDE = 64


@pytest.fixture
def pool(tmp_path) -> InstancePool:
    """Two opaque squares of categories 3 and 12, and a speck that is transparent to the eye."""
    with PoolWriter(tmp_path / "pool") as writer:
        for category_id, color in ((3, (255, 0, 0)), (12, (0, 255, 0))):
            rgba = np.full((10, 10, 4), 255, np.uint8)
            rgba[..., :3] = color
            writer.add(category_id, rgba, source=CutOutSource("test"))
        faint = np.full((5, 5, 4), 20, np.uint8)
        writer.add(12, faint, source=CutOutSource("faint"))
    return InstancePool(tmp_path / "pool")


@pytest.fixture
def scenes(tmp_path) -> list[dict]:
    records = []
    for image_id in range(4):
        path = tmp_path / f"{image_id}.png"
        cv2.imwrite(str(path), np.full((SIDE, SIDE, 3), 10 * image_id, np.uint8))
        records.append(
            {"file_name": str(path), "image_id": 100 + image_id, "height": SIDE, "width": SIDE}
        )
    return records


def dataset(pool, scenes, keys, **changes) -> AuditionImages:
    """Each cut-out on an image of its own."""
    arguments = {
        "scenes": scenes,
        "pool": pool,
        "class_of_category": {3: 0, 12: 1},
        "scale_mean": np.array([0.25, 0.5]),
        "scale_std": np.zeros(2),
        "image_format": "RGB",
        "options": PasteOptions(aspect_jitter=0.0, flip_prob=0.0),
        **changes,
    }
    return AuditionImages([np.array([key]) for key in keys], **arguments)


def ids(pool: InstancePool) -> dict[str, int]:
    found = {}
    for pool_id in pool.all_ids().tolist():
        cut_out = pool.get(pool_id)
        name = "faint" if cut_out.source.generator == "faint" else str(cut_out.category_id)
        found[name] = pool_id
    return found


def test_a_sample_is_the_cut_out_alone_and_whole(pool, scenes):
    red = ids(pool)["3"]
    keys = [(red, number) for number in range(20)]
    for (sample,) in dataset(pool, scenes, keys):
        instances = sample["instances"]
        assert len(instances) == 1 and instances.gt_classes.tolist() == [0]
        assert instances.pool_id.tolist() == [red] and instances.instance_source.tolist() == [1]
        mask = instances.gt_masks.tensor[0].numpy()
        # 0.25 of the image's side, and all of it inside
        assert mask.sum() == 16 * 16 and mask.shape == (SIDE, SIDE)
        x0, y0, x1, y1 = instances.gt_boxes.tensor[0].tolist()
        assert (x1 - x0, y1 - y0) == (16, 16)
        image = sample["image"].numpy().transpose(1, 2, 0)
        assert (image[mask] == (255, 0, 0)).all()
        background = 10 * (sample["image_id"] - 100)
        assert (image[~mask] == background).all()


def test_a_placement_depends_on_its_own_key_alone(pool, scenes):
    red, green = ids(pool)["3"], ids(pool)["12"]
    keys = [(red, 0), (red, 1), (green, 0)]
    forward = dataset(pool, scenes, keys)
    backward = dataset(pool, scenes, keys[::-1])
    for index, key in enumerate(keys):
        (sample,), (same,) = forward[index], backward[len(keys) - 1 - index]
        assert sample["image_id"] == same["image_id"], key
        assert (sample["image"] == same["image"]).all()
    other = dataset(pool, scenes, keys, seed=1)
    assert any((forward[i][0]["image"] != other[i][0]["image"]).any() for i in range(len(keys)))
    places = {tuple(forward[i][0]["instances"].gt_boxes.tensor[0].tolist()) for i in range(2)}
    assert len(places) == 2  # the placements of one cut-out differ


def test_the_image_is_brought_to_test_size(pool, scenes):
    data = dataset(pool, scenes, [(ids(pool)["3"], 0)], augmentations=[T.Resize((128, 128))])
    (sample,) = data[0]
    assert sample["image"].shape == (3, 128, 128)
    assert sample["instances"].gt_masks.tensor.sum() == 32 * 32
    assert (sample["height"], sample["width"]) == (SIDE, SIDE)


def test_a_cut_out_without_foreground_has_no_box(pool, scenes):
    ((sample,),) = dataset(pool, scenes, [(ids(pool)["faint"], 0)])
    assert sample["instances"].gt_boxes.tensor.tolist() == [[0, 0, 0, 0]]
    assert not sample["instances"].gt_masks.tensor.any()


def test_images_that_cannot_be_read_are_passed_over(pool, scenes, caplog):
    for record in scenes[1:]:
        record["file_name"] += ".gone"
    keys = [(ids(pool)["3"], number) for number in range(3)]
    # Of four images one is left; ten draws miss it with probability .75 ** 10.
    assert {sample["image_id"] for (sample,) in dataset(pool, scenes, keys)} == {100}
    assert "Another one is taken" in caplog.text
    scenes[0]["file_name"] += ".gone"
    with pytest.raises(UserError, match="10 real images in a row cannot be read"):
        dataset(pool, scenes, keys)[0]


def test_several_share_an_image_and_do_not_touch(pool, scenes):
    red, green, faint = (ids(pool)[name] for name in ("3", "12", "faint"))
    group = np.array([(i, n) for n in range(10) for i in (red, green)] + [(faint, 0)])
    samples = AuditionImages(
        [group],
        scenes=scenes,
        pool=pool,
        class_of_category={3: 0, 12: 1},
        scale_mean=np.array([0.2, 0.3]),
        scale_std=np.zeros(2),
        image_format="RGB",
        options=PasteOptions(),
    )[0]
    keys = [
        (pool_id, number)
        for sample in samples
        for pool_id, number in zip(
            sample["instances"].pool_id.tolist(), sample["placement"].tolist(), strict=True
        )
    ]
    assert sorted(keys) == sorted(map(tuple, group.tolist()))  # each once
    assert 1 < len(samples) < 7  # about 4 and more of them an image
    for sample in samples:
        boxes = sample["instances"].gt_boxes.tensor
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        overlap = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - torch.maximum(
            boxes[:, None, :2], boxes[None, :, :2]
        )
        touching = (overlap >= 0).all(-1)
        assert torch.equal(touching, torch.eye(len(boxes), dtype=torch.bool))
        assert sample["instances"].gt_masks.tensor.sum(0).max() == 1


def test_no_image_is_left_with_room(pool, scenes):
    red = ids(pool)["3"]
    data = dataset(pool, scenes, [])
    data.groups = [np.array([(red, n) for n in range(s, s + 40)]) for s in (0, 40, 80)]
    for index in range(len(data)):
        *full, last = data[index]
        assert full and len(last["instances"])
        for sample in full:  # of squares of 16 px
            taken = [Box(*map(int, box)) for box in sample["instances"].gt_boxes.tensor.tolist()]
            assert (
                draw_free_position(
                    (16, 16), Box(0, 0, SIDE, SIDE), taken, np.random.default_rng(0), gap=2
                )
                is None
            )


def record_of(*classes: int, crowd: bool = False) -> dict:
    return {"annotations": [{"category_id": c, "iscrowd": int(crowd)} for c in classes]}


def test_a_sample_has_enough_of_every_class():
    dicts = [record_of(0) for _ in range(50)] + [record_of(1, 1), record_of(2), record_of()]
    chosen = sample_per_category(dicts, 3, 5, np.random.default_rng(0))
    assert sorted(chosen)[-2:] == [50, 51]  # the only ones of classes 1 and 2
    assert sum(index < 50 for index in chosen) == 5
    assert sample_per_category(dicts, 3, 0, np.random.default_rng(0)) != chosen
    assert len(sample_per_category(dicts, 3, 0, np.random.default_rng(0))) == 52


def test_crowds_do_not_count():
    dicts = [record_of(0, crowd=True), record_of(0)]
    assert sample_per_category(dicts, 1, 1, np.random.default_rng(0)) == [1]
