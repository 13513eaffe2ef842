"""Writes a tiny data set in true LVIS v1 layout, with all 1,203 categories, and a pool for it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.writer import PoolWriter

IMAGE_SIZE = 96
USED_CATEGORIES = (1, 7, 500, 1203)
# LVIS v1 says how many images each category has; detectron2's list of them lacks it.
IMAGE_COUNT = {"r": 5, "c": 50, "f": 500}


def write_lvis(datasets: Path, num_train: int = 6, num_val: int = 3, seed: int = 0) -> None:
    """Write ``lvis/lvis_v1_{train,val}.json``, ``coco/{train,val}2017`` and ``lvis_pool``."""
    rng = np.random.default_rng(seed)
    (datasets / "lvis").mkdir(parents=True)
    for split, first_id, count in (("train", 1, num_train), ("val", 1001, num_val)):
        folder = datasets / "coco" / f"{split}2017"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for image_id in range(first_id, first_id + count):
            image = rng.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            used = rng.choice(USED_CATEGORIES, size=2, replace=False).tolist()
            for k, category_id in enumerate(used):
                x, y = 6 + 44 * k, int(rng.integers(5, 50))
                w, h = 36, 40
                cv2.rectangle(image, (x, y), (x + w, y + h), (40 * k, 255 - 40 * k, 99), -1)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            cv2.imwrite(str(folder / f"{image_id:012d}.jpg"), image)
            unused = [c for c in USED_CATEGORIES if c not in used]
            images.append(
                {
                    "id": image_id,
                    "width": IMAGE_SIZE,
                    "height": IMAGE_SIZE,
                    "coco_url": f"http://images.cocodataset.org/{split}2017/{image_id:012d}.jpg",
                    "neg_category_ids": unused[:1],
                    "not_exhaustive_category_ids": unused[1:],
                }
            )
        document = {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {**category, "image_count": IMAGE_COUNT[category["frequency"]]}
                for category in LVIS_CATEGORIES
            ],
        }
        (datasets / "lvis" / f"lvis_v1_{split}.json").write_text(json.dumps(document))

    with PoolWriter(datasets / "lvis_pool") as writer:
        for number in range(8):
            rgba = rng.integers(0, 255, (24, 24, 4), dtype=np.uint8)
            rgba[..., 3] = 255
            writer.add(
                USED_CATEGORIES[number % 4],
                rgba,
                source=CutOutSource("test", "noise", "a square", number),
            )
