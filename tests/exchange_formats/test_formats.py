"""Pools go into other programs' formats and come back."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import register_instances
from gal_d2.errors import UserError
from gal_d2.exchange_formats.coco import pool_from_coco, pool_to_coco
from gal_d2.exchange_formats.parquet import pool_to_parquet
from gal_d2.exchange_formats.xpaste import pool_to_xpaste
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.importer import import_files, list_xpaste
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.ledger import Ledger


@pytest.fixture
def pool(work) -> InstancePool:
    return InstancePool("mine/pool")


def test_objects_of_a_data_set_become_a_pool(work):
    register_instances("doors", "mine/train.json", "mine/images", replace=True)
    report = pool_from_coco("doors", "mine/real", min_size=20)
    assert (report.added, report.left_out, report.already_stored) == ({3: 1, 12: 1}, 1, 0)
    real = InstancePool("mine/real")
    image = np.asarray(Image.open("mine/images/a.png"))
    (boot,), (bun,) = real.ids(3), real.ids(12)
    for pool_id, part in ((boot, image[:36, :40]), (bun, image[20:60, 30:70])):
        cut_out = real.get(pool_id)
        assert (cut_out.rgba[..., :3] == part).all() and (cut_out.rgba[..., 3] == 255).all()
    assert real.get(bun).source == CutOutSource("real", "doors", origin="a.png#1")
    assert real.category_names == {3: "boot", 12: "bun", 40: "cup"}
    again = pool_from_coco("doors", "mine/real", min_size=20)
    assert not again.added and again.already_stored == 2
    few = pool_from_coco("doors", "mine/few", min_size=20, only={12})
    assert few.added == {12: 1}


def test_an_image_that_is_not_there_is_named(work):
    content = json.loads(Path("mine/train.json").read_text())
    content["images"].append({"id": 2, "file_name": "b.png", "height": 60, "width": 80})
    content["annotations"].append({**content["annotations"][0], "id": 9, "image_id": 2})
    Path("mine/train.json").write_text(json.dumps(content))
    register_instances("doors", "mine/train.json", "mine/images", replace=True)
    report = pool_from_coco("doors", "mine/real")
    assert report.added.total() == 2 and list(report.unreadable) == ["mine/images/b.png"]


def test_a_pool_as_coco(pool):
    path = pool_to_coco(pool, "as_coco", ledger=Ledger("output/own_data/ledger"))
    coco = COCO(str(path))
    assert len(coco.imgs) == len(coco.anns) == 5 and [c["id"] for c in coco.cats.values()] == [
        *(3, 12, 40)
    ]
    scores = []
    for image, pool_id in zip(coco.dataset["images"], pool.all_ids().tolist(), strict=True):
        cut_out = pool.get(pool_id)
        (annotation,) = coco.loadAnns(coco.getAnnIds(image["id"]))
        rgba = np.asarray(Image.open(Path("as_coco") / image["file_name"]))
        assert image["pool_id"] == str(pool_id) and (rgba == cut_out.rgba).all()
        assert (image["prompt"], image["seed"]) == (cut_out.source.prompt, cut_out.source.seed)
        assert annotation["category_id"] == cut_out.category_id
        mask = mask_utils.decode(annotation["segmentation"])
        assert (mask == (rgba[..., 3] > 0)).all() and annotation["area"] == 42
        scores.append(annotation["score_mean"])
    assert scores == pytest.approx(np.linspace(-1, 1, 5))
    assert [a["verdict"] for a in coco.dataset["annotations"]] == ["", "bad", "", "", ""]


def test_what_was_exported_can_be_cut_out_again(pool):
    register_instances("again", pool_to_coco(pool, "as_coco"), "as_coco", replace=True)
    assert pool_from_coco("again", "copy", min_size=2).added == {3: 3, 12: 2}


def test_a_pool_without_names_is_no_coco_data_set(work):
    with PoolWriter("nameless") as writer:
        writer.add(3, np.full((3, 3, 4), 255, np.uint8), source=CutOutSource("x"))
    with pytest.raises(UserError, match=r"does not know what its categories are called"):
        pool_to_coco(InstancePool("nameless"), "as_coco")


def test_there_and_back_in_x_paste_s_form(pool):
    path = pool_to_xpaste(pool, "as_xpaste", [40, 12, 3])
    content = json.loads(path.read_text())
    assert {k: len(v) for k, v in content.items()} == {"0": 3, "1": 2}
    assert all(name.startswith("*images/") for names in content.values() for name in names)
    names = CategoryNames.from_file("mine/train.json")
    found = list_xpaste(path, names)
    import_files(found.files, "copy", CutOutSource("import"), names=names, allow_opaque=True)
    copy = InstancePool("copy")
    for category in (3, 12):
        pictures = [
            {p.get(i).rgba.tobytes() for i in p.ids(category).tolist()} for p in (pool, copy)
        ]
        assert pictures[0] == pictures[1]


def test_x_paste_s_classes_are_those_of_the_data_set(pool):
    with pytest.raises(UserError, match=r"cut-outs of category 12, which the annotations do not"):
        pool_to_xpaste(pool, "as_xpaste", [3, 40])


def test_a_pool_as_parquet(pool):
    assert pool_to_parquet(pool, "pool.parquet") == 5
    table = pq.read_table("pool.parquet")
    assert table["pool_id"].to_pylist() == pool.all_ids().tolist()
    for row in table.to_pylist():
        cut_out = pool.get(row["pool_id"])
        picture = np.asarray(Image.open(BytesIO(row["image"])).convert("RGBA"))
        assert (picture == cut_out.rgba).all()
        assert row["category"] == pool.category_names[cut_out.category_id]
        assert row["score_clip"] == cut_out.scores["clip"] and row["seed"] == cut_out.source.seed
    assert table["verdict"].to_pylist() == ["", "bad", "", "", ""]
