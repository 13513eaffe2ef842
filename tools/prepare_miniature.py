#!/usr/bin/env python3
"""Prepare the miniature LVIS: scenes, annotations, a pool of candidates and the truth about it.

tools/prepare_miniature.py
tools/prepare_miniature.py --output datasets/miniature_polluted --bad 0.8 --preview preview.png
tools/prepare_miniature.py --output datasets/miniature_other --seed 1 --noise 0 --misplaced 0 \\
  --wrong 0.1 --blur 0.1 --colour 0.1 --cut-off 0.1 --two-objects 0.1

Objects that are missing are fetched, and it says so: tools/fetch_image_sets.py has from where.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet

from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.miniature.categories import CATEGORIES
from gal_d2.testbeds.miniature.faults import KINDS
from gal_d2.testbeds.miniature.prepare import prepare_miniature
from gal_d2.testbeds.miniature.settings import MiniatureConfig
from gal_d2.testbeds.miniature.sources import OBJECT_SOURCES

_TILE = 144
_SCENE_SCALE = 2


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    default = MiniatureConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("datasets/miniature"))
    parser.add_argument(
        "--sources",
        type=Path,
        default=Path("datasets/sources"),
        help="where fetched source images are kept (%(default)s)",
    )
    for name, kind, meaning in (
        ("seed", int, "of everything"),
        ("train-images", int, "number of training scenes"),
        ("val-images", int, "number of validation scenes"),
        ("pool-per-category", int, "number of candidates per category"),
        ("wrong", float, "share of candidates that show the partner category"),
        ("noise", float, "share of candidates with noise"),
        ("misplaced", float, "share of candidates with a misplaced mask"),
        ("blur", float, "share of candidates that are blurred"),
        ("colour", float, "share of candidates in false colours"),
        ("cut-off", float, "share of candidates that lack a part at one side"),
        ("two-objects", float, "share of candidates that show two objects of the category"),
        ("ambiguous-wrong", float, "share of wrong objects in ambiguous categories"),
    ):
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=kind, default=value, help=f"{meaning} (default: {value})"
        )
    parser.add_argument(
        "--bad",
        type=float,
        help="share of bad candidates in all; scales the shares above (default: as these have it)",
    )
    parser.add_argument(
        "--object-source",
        choices=OBJECT_SOURCES,
        default=default.object_source,
        help="'auto' falls back to scikit-learn's digits (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="make it anew even if it is there")
    parser.add_argument("--preview", type=Path, help="write a contact sheet of it to this PNG")
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = vars(arguments)
    output, sources = options.pop("output"), options.pop("sources")
    force, preview = options.pop("force"), options.pop("preview")
    if preview is not None and preview.suffix != ".png":
        raise UserError(f"--preview is {preview}: give it a name that ends in .png.")
    try:
        prepare_miniature(*(output, sources, MiniatureConfig(**options)), force=force, fetch=fetch)
    except OSError as error:
        raise UserError(
            f"The miniature cannot be written to {output} ({error}): free some space or choose "
            "another --output."
        ) from error
    if preview is not None:
        write_preview(output, preview)
    for split in ("train", "val"):
        content = json.loads((output / f"annotations/miniature_{split}.json").read_text())
        print(
            f"{output} {split}: {len(content['images'])} images, "
            f"{len(content['annotations'])} instances"
        )


def fetch(sources: Path) -> bool:
    """Fetch Fashion-MNIST as tools/fetch_image_sets.py does; whether it could be."""
    sys.path.append(str(Path(__file__).resolve().parent))  # the tools are no package
    from fetch_image_sets import fetch_fashion_mnist

    return fetch_fashion_mnist(sources)


def write_preview(miniature: Path, path: Path) -> None:
    """Draw scenes with their masks, and candidates of every category by what is the matter."""
    rows = [
        _scene_row(miniature, split, slice(start, start + 5))
        for split, start in (("train", 0), ("train", 5), ("val", 0), ("val", 5))
    ]
    rows.append(_pool_rows(miniature))
    width = max(row.shape[1] for row in rows)
    sheet = np.vstack(
        [
            cv2.copyMakeBorder(
                row, 0, 8, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255)
            )
            for row in rows
        ]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet):
        raise UserError(f"{path} cannot be written: choose another --preview.")


def _scene_row(miniature: Path, split: str, which: slice) -> np.ndarray:
    content = json.loads((miniature / f"annotations/miniature_{split}.json").read_text())
    tiles = []
    for image in content["images"][which]:
        plain = cv2.imread(str(miniature / "images" / split / image["file_name"]))
        plain = cv2.resize(plain, None, fx=_SCENE_SCALE, fy=_SCENE_SCALE)
        drawn = plain.copy()
        for annotation in content["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            outlines = [
                np.round(_SCENE_SCALE * np.array(polygon).reshape(-1, 2)).astype(np.int32)
                for polygon in annotation["segmentation"]
            ]
            cv2.polylines(drawn, outlines, True, (0, 255, 0), 1)
            name = CATEGORIES[annotation["category_id"] - 1].name.split("_")[0]
            _write(drawn, name, outlines[0].min(axis=0) + (0, 10))
        tiles.append(np.hstack([plain, drawn]))
    return np.hstack(tiles) if tiles else np.zeros((1, 1, 3), np.uint8)


def _pool_rows(miniature: Path, columns: int = 4) -> np.ndarray:
    pool = InstancePool(miniature / "pool")
    truth = pyarrow.parquet.read_table(miniature / "pool_truth.parquet").to_pydict()
    ids = {
        (category_id, kind): [] for category_id in range(1, len(CATEGORIES) + 1) for kind in KINDS
    }
    for pool_id, category_id, kind in zip(
        truth["pool_id"], truth["category_id"], truth["kind"], strict=True
    ):
        ids[category_id, kind].append(pool_id)
    present = [kind for kind in KINDS if any(ids[i, kind] for i in range(1, len(CATEGORIES) + 1))]
    rows = []
    for category_id, category in enumerate(CATEGORIES, start=1):
        tiles = []
        for kind in present:
            for column in range(columns):
                tile = np.full((_TILE, _TILE, 3), 200, np.uint8)
                if column < len(ids[category_id, kind]):
                    rgba = pool.get(ids[category_id, kind][column]).rgba
                    _put(tile, rgba)
                if column == 0:
                    count = len(ids[category_id, kind])
                    name = category.name.split("_")[0] + "*" * category.ambiguous
                    _write(tile, f"{name}: {kind.split('_')[0]} {count}", (2, 12))
                tiles.append(tile)
        rows.append(np.hstack(tiles))
    return np.vstack(rows)


def _put(tile: np.ndarray, rgba: np.ndarray) -> None:
    scale = min((_TILE - 20) / max(rgba.shape[:2]), 2.0)
    rgba = cv2.resize(rgba, None, fx=scale, fy=scale).astype(np.float32)
    height, width = rgba.shape[:2]
    part = tile[16 : 16 + height, 4 : 4 + width]
    alpha = rgba[..., 3:] / 255
    part[:] = alpha * rgba[..., 2::-1] + (1 - alpha) * part


def _write(image: np.ndarray, text: str, corner: tuple[int, int] | np.ndarray) -> None:
    corner = tuple(int(v) for v in corner)
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, thickness)


if __name__ == "__main__":
    run_tool(main, parse_arguments())
