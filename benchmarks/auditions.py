"""How much cheaper auditions are where cut-outs share an image. CPU time, as ratios.

Puts cut-outs of the miniature's pool on real images, one on each and as many as there is room for,
and scores them with a detector of random weights: what it costs does not depend on the weights.

    python benchmarks/auditions.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model
from documents import markdown_table

from gal_d2.copy_paste.augmentation import build_probe_augmentations
from gal_d2.datasets.registration import load_metadata
from gal_d2.judging.auditions import Auditioner
from gal_d2.judging.build_scorer import build_scorer
from gal_d2.judging.judge import GROUPS
from gal_d2.pool.configured import open_configured_pool
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.launch import run_tool
from gal_d2.setup.setup import setup

CUT_OUTS = 64
IMAGES_PER_PASS = 8


def build_auditioner(config_file: str) -> Auditioner:
    arguments = ["--config-file", config_file, "--num-gpus", "0", "--eval-only"]
    cfg = setup(argument_parser().parse_args([*arguments, "OUTPUT_DIR", "output/auditions"]))
    metadata = load_metadata(cfg.DATASETS.TRAIN[0])
    groups = torch.tensor([GROUPS.index(f) for f in metadata.category_frequency])
    model = build_model(cfg)
    return Auditioner(
        cfg,
        model,
        build_scorer(cfg, model.roi_heads, groups),
        scenes=get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN), filter_empty=False),
        pool=open_configured_pool(cfg),
        class_of_category=metadata.thing_dataset_id_to_contiguous_id,
        augmentations=build_probe_augmentations(cfg),
    )


def audition(auditioner: Auditioner, keys: np.ndarray, size: int) -> int:
    """Score (N, 2) ``keys``, ``size`` of them sharing images; how many images it took."""
    groups = [keys[start : start + size] for start in range(0, len(keys), size)]
    samples = [sample for group in auditioner.images(groups, seed=0) for sample in group]
    for start in range(0, len(samples), IMAGES_PER_PASS):
        auditioner.score(samples[start : start + IMAGES_PER_PASS])
    return len(samples)


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    auditioner = build_auditioner(args.config_file)
    rng = np.random.default_rng(0)
    ids = auditioner.pool.all_ids()
    seconds: dict[int, list[float]] = {1: [], CUT_OUTS: []}
    images = {}
    for number in range(args.repeat + 1):  # the first one warms up
        keys = np.stack([rng.choice(ids, CUT_OUTS, replace=False), np.full(CUT_OUTS, number)], 1)
        for size, times in seconds.items():
            start = time.process_time()
            images[size] = audition(auditioner, keys, size)
            times.append(time.process_time() - start)
    ratios = [a / b for a, b in zip(*(times[1:] for times in seconds.values()), strict=True)]
    print(
        markdown_table(
            ["cut-outs an image", "images for 64", "auditions a second, relative"],
            [
                ["1", images[1], "1.0"],
                [
                    f"as many as fit ({CUT_OUTS / images[CUT_OUTS]:.1f})",
                    images[CUT_OUTS],
                    f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
                ],
            ],
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="configs/miniature_gal.yaml")
    parser.add_argument("--repeat", type=int, default=9)
    run_tool(main, parser.parse_args())
