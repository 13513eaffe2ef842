#!/usr/bin/env python3
"""How well a pretrained network tells good cut-outs from bad ones before any training.

By two questions: how much a cut-out looks like real objects of its category (mean cosine, what a
filter by CLIP asks), and how probable its category is among all (GAL.LIKENESS). Needs the truth
about the pool.

    python tools/fetch_efficientnet.py
    python benchmarks/likeness.py street miniature --document docs/results.md
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from documents import check_document, markdown_table, show
from separation import auc

from gal_d2.datasets.registration import load_metadata
from gal_d2.generation.model_filters import ClipImageFilter, RealCrops
from gal_d2.judging.likeness import REAL_OBJECTS, Likeness, load_embedder
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import run_tool
from gal_d2.setup.setup import resolve_datasets
from gal_d2.testbeds.truth import GOOD, PoolTruth

COMMAND = "benchmarks/likeness.py"
NETWORK = ("GAL.LIKENESS.TIMM", "tf_efficientnet_lite0")
WEIGHTS = ("GAL.LIKENESS.WEIGHTS", ".setup/efficientnet_lite0.pth")
BEST = 0.25  # share that the draw takes its cut-outs from


def by_category(cfg: CfgNode, truth: PoolTruth) -> Iterator[tuple[str, str, np.ndarray, dict]]:
    """Name and frequency of each category of the pool, which of its cut-outs are good, and values.

    Also prints the CPU time.
    """
    metadata = load_metadata(cfg.DATASETS.TRAIN[0])
    class_of = metadata.thing_dataset_id_to_contiguous_id
    dicts = get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN), filter_empty=False)
    reference = RealCrops(dicts, sorted(class_of, key=class_of.get), count=REAL_OBJECTS)
    embedder = load_embedder(cfg)
    start = time.process_time()
    likeness = Likeness(embedder, reference, sorted(class_of, key=class_of.get))
    print(f"real objects: {time.process_time() - start:.1f} CPU seconds")
    image_filter = ClipImageFilter(embedder, reference)
    pool = InstancePool(cfg.GAL.POOL.ROOT)
    start = time.process_time()
    for category in pool.category_ids.tolist():
        ids = pool.ids(category)
        cut_outs = [pool.get(int(pool_id)).rgba for pool_id in ids]
        values = {
            "cosine": image_filter.likeness(category, cut_outs),
            "probability": likeness.of(category, cut_outs),
        }
        index = class_of[category]
        is_good = truth.kind[truth.rows(ids)] == GOOD
        frequency = metadata.category_frequency[index]
        yield metadata.thing_classes[index], frequency, is_good, values
    seconds = (time.process_time() - start) / 2
    print(f"{len(pool)} cut-outs: {seconds:.1f} CPU seconds for each of the two values")


def best_share(is_good: np.ndarray, value: np.ndarray) -> float:
    """Share of good ones among the best quarter."""
    return float(is_good[np.argsort(-value)[: max(round(BEST * len(value)), 1)]].mean())


def main(args: argparse.Namespace) -> None:
    if args.document:
        check_document(args.document, COMMAND)
    torch.set_num_threads(1)
    rows = []
    for bed in args.beds:
        cfg = load_config(f"configs/{bed}_gal.yaml", [*NETWORK, *WEIGHTS, "MODEL.DEVICE", "cpu"])
        resolve_datasets(cfg)
        truth = PoolTruth.read(Path(cfg.GAL.POOL.ROOT).parent / "pool_truth.parquet")
        cells = []
        for name, frequency, is_good, values in by_category(cfg, truth):
            found = [f(is_good, v) for f in (auc, best_share) for v in values.values()]
            cells.append([is_good.mean(), *found])
            rows.append([bed, f"{name} ({frequency})", *(f"{x:.2f}" for x in cells[-1])])
        mean = np.mean(cells, axis=0)
        rows.append([bed, "**mean**", *(f"**{x:.2f}**" for x in mean)])
    header = ["pool", "category", "good", "AUC, cosine", "AUC, probability"]
    header += ["good among the best quarter, cosine", "the same, probability"]
    text = (
        "Good against bad cut-outs by EfficientNet-Lite0 with ImageNet's weights and at most "
        f"{REAL_OBJECTS} real objects of each category.\n\n{markdown_table(header, rows)}"
    )
    show(text, args.document, COMMAND)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("beds", nargs="+", help="configs/BED_gal.yaml, with a truth file")
    parser.add_argument("--document", type=Path, help="Markdown file to put the table into")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main, parse_arguments())
