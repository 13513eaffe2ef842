"""A data set in COCO's format, a pool and a ledger of it, in a working folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scored import scored

from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import Verdict, VerdictFile
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger_writer import LedgerWriter

CATEGORIES = [{"id": 3, "name": "boot"}, {"id": 12, "name": "bun"}, {"id": 40, "name": "cup"}]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With mine/train.json, mine/images/, mine/pool and output/own_data/ledger."""
    monkeypatch.chdir(tmp_path)
    Path("mine/images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("mine/images/a.png")

    def annotation(number: int, category: int, box: list[int], **more) -> dict:
        x, y, w, h = box
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        own = {"segmentation": [polygon], "bbox": box, "area": w * h, "iscrowd": 0}
        return {"id": number, "image_id": 1, "category_id": category} | own | more

    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": [
            annotation(1, 3, [0, 0, 40, 36]),
            annotation(2, 12, [30, 20, 40, 40]),
            annotation(3, 12, [50, 5, 10, 10]),
        ],
        "categories": CATEGORIES,
    }
    Path("mine/train.json").write_text(json.dumps(content))

    names = {category["id"]: category["name"] for category in CATEGORIES}
    with PoolWriter("mine/pool", names=names) as writer:
        for number in range(5):
            rgba = np.full((6, 8, 4), 40 + number, np.uint8)
            rgba[..., 3] = 255
            rgba[:2, :3, 3] = 0
            source = CutOutSource("x", "y", "a bun", number, f"{number}.png")
            writer.add((3, 12)[number % 2], rgba, source=source, scores={"clip": 0.1 * number})
    pool = InstancePool("mine/pool")
    ids = pool.all_ids()
    VerdictFile("mine/pool").add([Verdict.now(int(ids[1]), 12, "", "bad", "ann")])
    with LedgerWriter(
        "output/own_data/ledger", category_ids=[3, 12, 40], category_frequency=["r"] * 3
    ) as ledger:
        rows = scored(ids, np.linspace(-1, 1, 5), head_score={}, head_loss={})
        rows.gt_class = torch.from_numpy(np.searchsorted([3, 12], pool.category_of(ids)))
        ledger.append(0, rows, Decision.uniform(torch.ones(5, dtype=torch.bool), "always"), [1])
    return tmp_path
