#!/usr/bin/env python3
"""Prepare real photographs: a long-tailed LVIS-style set, and candidates for its pool.

tools/prepare_street.py --photos clothing-co-parsing --garments clothing-dataset
tools/generate_instances.py --config-file configs/street_gal.yaml
tools/prepare_street.py --truth

The folders are copies of github's bearpaw/clothing-co-parsing and alexeygrigorev/clothing-dataset.
The last command says what the cut-outs of the pool really show, for reports. docs/street.md goes on
from here; gal_d2/testbeds/street/ says what is done.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from gal_d2.errors import UserError
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.street.candidates import prepare_candidates, write_pool_truth
from gal_d2.testbeds.street.categories import RARE, RARE_IMAGES
from gal_d2.testbeds.street.photographs import prepare_photographs
from gal_d2.testbeds.street.settings import StreetConfig, street_categories
from gal_d2.testbeds.truth import GOOD
from gal_d2.visualization.contact_sheet import BAD, PASTED, REAL, draw_instances, save_png, tile
from gal_d2.visualization.contact_sheet import GOOD as GOOD_COLOR

_PHOTOGRAPHS = 16  # of the sheet
_PER_KIND = 4
_CELL = 96
_KINDS = {GOOD: GOOD_COLOR, "wrong_object": BAD, "stray": PASTED}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    default = StreetConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="of Clothing Co-Parsing")
    parser.add_argument("--garments", type=Path, metavar="FOLDER", help="of single garments")
    parser.add_argument("--output", type=Path, default=Path("datasets/street"))
    parser.add_argument("--seed", type=int, default=default.seed, help="of split and candidates")
    parser.add_argument(
        "--val-share",
        type=float,
        default=default.val_share,
        help="of the photographs (%(default)s)",
    )
    parser.add_argument(
        "--keep-synonyms", action="store_true", help="do not unite labels such as bag and purse"
    )
    parser.add_argument(
        "--rare",
        nargs="*",
        default=list(RARE),
        metavar="NAME",
        help="categories that keep few training photographs; the others that show them validate "
        f"(default: {' '.join(RARE)})",
    )
    parser.add_argument(
        "--rare-images", type=int, default=RARE_IMAGES, help="that they keep (%(default)s)"
    )
    parser.add_argument(
        "--min-images",
        type=int,
        default=default.min_images,
        help="a category in fewer photographs is left out (%(default)s)",
    )
    parser.add_argument("--preview", type=Path, help="write a contact sheet of it to this PNG")
    parser.add_argument(
        "--truth", action="store_true", help="only say what the pool's cut-outs really show"
    )
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.truth:
        print(describe_pool(write_pool_truth(arguments.output)))
        return
    if arguments.photos is None or arguments.garments is None:
        raise UserError(
            "--photos and --garments are needed: name copies of bearpaw/clothing-co-parsing and "
            "alexeygrigorev/clothing-dataset (docs/datasets.md)."
        )
    if arguments.preview is not None and arguments.preview.suffix != ".png":
        raise UserError(f"--preview is {arguments.preview}: give it a name that ends in .png.")
    config = StreetConfig(
        seed=arguments.seed,
        val_share=arguments.val_share,
        merge=not arguments.keep_synonyms,
        rare=tuple(arguments.rare),
        rare_images=arguments.rare_images,
        min_images=arguments.min_images,
    )
    for category in street_categories(config.merge):
        if len(category.labels) > 1:
            print(f"{category.name}: the labels {', '.join(category.labels)}")
    contents = prepare_photographs(arguments.photos, arguments.output, config)
    print(describe_photographs(contents))
    candidates = prepare_candidates(arguments.garments, arguments.output, config)
    kinds: dict[str, Counter] = defaultdict(Counter)
    for candidate in candidates:
        kinds[candidate["category"]][candidate["kind"]] += 1
    print(describe_pool(kinds))
    if arguments.preview is not None:
        write_preview(arguments.output, contents, candidates, arguments.preview)
        print(f"contact sheet: {arguments.preview}")


def describe_photographs(contents: Mapping[str, dict]) -> str:
    """A line for each category: its frequency, and images and objects in both splits."""
    images, objects = {}, {}
    for split, content in contents.items():
        of_category = [a["category_id"] for a in content["annotations"]]
        seen = {(a["category_id"], a["image_id"]) for a in content["annotations"]}
        objects[split], images[split] = Counter(of_category), Counter(i for i, _ in seen)
    lines = [f"{'category':<14} frequency  train images, objects   val images, objects"]
    for record in contents["train"]["categories"]:
        i = record["id"]
        lines.append(
            f"{record['name']:<14} {record['frequency']:^9} {images['train'][i]:>13} "
            f"{objects['train'][i]:>8} {images['val'][i]:>13} {objects['val'][i]:>8}"
        )
    frequencies = Counter(record["frequency"] for record in contents["train"]["categories"])
    for split, content in contents.items():
        lines.append(
            f"{split}: {len(content['images'])} images, {len(content['annotations'])} instances"
        )
    numbers = f"{frequencies['f']} frequent, {frequencies['c']} common, {frequencies['r']} rare"
    lines.append(f"{numbers} categories")
    return "\n".join(lines)


def describe_pool(counts: Mapping[str, Mapping[str, int]]) -> str:
    """A line for each category: how many of each kind, and the share of bad ones."""
    lines = [f"{'candidates of':<14} {'good':>6} {'wrong':>6} {'stray':>6}  bad"]
    total: Counter = Counter()
    for name, kinds in [*counts.items(), ("all", total)]:
        bad = kinds.get("wrong_object", 0) + kinds.get("stray", 0)
        number = bad + kinds.get(GOOD, 0)
        if not number:
            continue
        lines.append(
            f"{name:<14} {kinds.get(GOOD, 0):>6} {kinds.get('wrong_object', 0):>6} "
            f"{kinds.get('stray', 0):>6} {bad / number:>4.0%}"
        )
        if name != "all":
            total.update(kinds)
    return "\n".join(lines)


def write_preview(
    output: Path, contents: Mapping[str, dict], candidates: Sequence[dict], path: Path
) -> None:
    """Draw photographs with their instances, and some candidates of each kind by category."""
    names = {record["id"]: record["name"] for record in contents["train"]["categories"]}
    pictures, captions = [], []
    for split, content in contents.items():
        step = max(1, len(content["images"]) // (_PHOTOGRAPHS // 2))
        for image in content["images"][::step][: _PHOTOGRAPHS // 2]:
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            with Image.open(output / "images" / split / image["file_name"]) as file:
                rgb = np.asarray(file.convert("RGB"))
            pictures.append(
                draw_instances(
                    rgb,
                    np.array([mask_utils.decode(a["segmentation"]) for a in own], bool).reshape(
                        -1, *rgb.shape[:2]
                    ),
                    [names[a["category_id"]] for a in own],
                    [REAL] * len(own),
                )
            )
            captions.append(f"{split} {image['file_name']}")
    rows = [tile(pictures, columns=8, title="Photographs", captions=captions)]
    for category in dict.fromkeys(c["category"] for c in candidates):
        cells, texts = [], []
        for kind, color in _KINDS.items():
            own = [c for c in candidates if (c["category"], c["kind"]) == (category, kind)]
            for candidate in own[:_PER_KIND]:
                cells.append(_cell(candidate["path"], color))
                texts.append(candidate["label"])
        title = f"Candidates of {category}: good green, similar ones red, strays orange"
        rows.append(tile(cells, columns=3 * _PER_KIND, title=title, captions=texts))
    width = max(row.shape[1] for row in rows)
    padded = [
        cv2.copyMakeBorder(
            row, 0, 0, 0, width - row.shape[1], cv2.BORDER_CONSTANT, value=(255, 255, 255)
        )
        for row in rows
    ]
    save_png(np.vstack(padded), path)


def _cell(path: Path, color: tuple[int, int, int]) -> np.ndarray:
    """A picture in a square of :data:`_CELL` pixels with a frame."""
    canvas = Image.new("RGB", (_CELL, _CELL), color)
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_CELL - 6, _CELL - 6))
    canvas.paste(small, ((_CELL - small.width) // 2, (_CELL - small.height) // 2))
    return np.asarray(canvas)


if __name__ == "__main__":
    run_tool(main, parse_arguments())
