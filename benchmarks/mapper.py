"""Time per image of the training mapper with pastes against without, and images/s of a core.

Scenes: photographs that scikit-image ships, as 640 x 480 JPEG files with polygon annotations like
those of LVIS. Cut-outs: crops of the same photographs under smooth blob masks with a soft edge, in
a real pool on disk. Base augmentation: large-scale jitter to 640 x 640. Each image goes through
the mappers in turn, so that a busy machine slows all of them alike; the time is CPU time of
this process, on one thread.

    python benchmarks/mapper.py --images 120
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import gal_d2  # it prepares the process for detectron2

# isort: split
import cv2
import numpy as np
import skimage.data
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import BoxMode

from gal_d2.copy_paste.augmentation import build_augmentations
from gal_d2.copy_paste.mapper import CopyPasteMapper
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.real_instances import RealInstances
from gal_d2.copy_paste.stream import seeded
from gal_d2.generation.stored_size import needed, reduced
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.sampler import UniformClassSampler

NUM_CLASSES = 40
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")  # in colour, part of the package


def blob(rng: np.random.Generator, radius: float, points: int) -> np.ndarray:
    """(points, 2) float outline of a random smooth shape around (0, 0)."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    waves = [
        rng.uniform(0, 0.3 / k) * np.sin(k * angles + rng.uniform(0, 6.3)) for k in range(1, 6)
    ]
    length = radius * np.clip(1 + np.sum(waves, axis=0), 0.2, 2)
    return np.stack([length * np.cos(angles), length * np.sin(angles)], axis=1)


def write_scenes(folder: Path, count: int, rng: np.random.Generator) -> list[dict]:
    """JPEG files, and their dataset dicts with 12 objects each."""
    records = []
    for index in range(count):
        photograph = getattr(skimage.data, PHOTOGRAPHS[index % len(PHOTOGRAPHS)])()
        size = int(min(photograph.shape[:2]) * rng.uniform(0.7, 1))
        y, x = (rng.integers(0, side - size, endpoint=True) for side in photograph.shape[:2])
        image = cv2.resize(photograph[y : y + size, x : x + size], (640, 480))
        file_name = folder / f"{index}.jpg"
        cv2.imwrite(str(file_name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        annotations = []
        for _ in range(12):
            radius = float(np.exp(rng.uniform(np.log(6), np.log(120))))
            outline = blob(rng, radius, int(rng.integers(12, 80))) + rng.uniform((0, 0), (640, 480))
            outline = outline.clip((0, 0), (640, 480))
            annotations.append(
                {
                    "bbox": [*outline.min(axis=0), *outline.max(axis=0)],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": int(rng.integers(NUM_CLASSES)),
                    "segmentation": [outline.ravel().tolist()],
                    "iscrowd": 0,
                }
            )
        records.append(
            {"file_name": str(file_name), "height": 480, "width": 640, "annotations": annotations}
        )
    return records


def write_pool(
    root: Path, side: int, rng: np.random.Generator, largest: np.ndarray | None = None
) -> InstancePool:
    """A pool of 8 cut-outs for each class, whose longer side is ``side`` pixels.

    Args:
        root: its folder.
        side: see above.
        rng: source of randomness.
        largest: (C,) what a class's cut-outs are reduced to, as generated ones are; None: not.
    """
    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    with PoolWriter(root) as writer:
        for number in range(NUM_CLASSES * 8):
            outline = blob(rng, 1.0, 90)
            outline -= outline.min(axis=0)
            outline *= side / outline.max()
            width, height = np.ceil(outline.max(axis=0)).astype(int)
            alpha = np.zeros((height, width), np.uint8)
            cv2.fillPoly(alpha, [np.round(outline).astype(np.int32)], 255)
            alpha = cv2.GaussianBlur(alpha, (3, 3), 0)
            photograph = photographs[number % len(photographs)]
            y = rng.integers(0, photograph.shape[0] - height, endpoint=True)
            x = rng.integers(0, photograph.shape[1] - width, endpoint=True)
            rgba = np.dstack((photograph[y : y + height, x : x + width], alpha))
            if largest is not None:
                rgba = reduced(rgba, largest[number % NUM_CLASSES])
            writer.add(number % NUM_CLASSES, rgba, source=CutOutSource("benchmark", seed=number))
    return InstancePool(root)


def build_config(size: int) -> CfgNode:
    cfg = get_cfg()
    gal_d2.add_gal_config(cfg)
    cfg.GAL.DATA.LSJ.IMAGE_SIZE = size
    return cfg


def time_mappers(
    mappers: dict[str, CopyPasteMapper], records: list[dict]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Milliseconds per image (by mapper, one value an image), and mean pastes per image."""
    milliseconds: dict[str, list[float]] = {name: [] for name in mappers}
    pastes = dict.fromkeys(mappers, 0)
    for mapper in mappers.values():
        mapper({**records[0], "sample_seed": 0})
    for seed, record in enumerate(records):
        for name, mapper in mappers.items():
            with seeded(seed):
                start = time.process_time_ns()
                sample = mapper({**record, "sample_seed": seed})
                milliseconds[name].append((time.process_time_ns() - start) / 1e6)
            pastes[name] += sample["num_pasted"]
    arrays = {name: np.array(values) for name, values in milliseconds.items()}
    return arrays, {name: total / len(records) for name, total in pastes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=120, help="number of scenes")
    parser.add_argument("--size", type=int, default=640, help="side of the training image, pixels")
    parser.add_argument(
        "--cutout-sides",
        type=int,
        nargs="+",
        default=[64, 128, 256],
        help="longer side of the pool's cut-outs, pixels",
    )
    parser.add_argument(
        "--mean-scale",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=[0.05, 0.25],
        help="sqrt(relative area) of the classes, uniform in this range (the deviation is 0.7 of "
        "it): an assumption about the data",
    )
    parser.add_argument(
        "--reduced",
        action="store_true",
        help="cut-outs are stored no larger than their class is pasted, as generated ones are",
    )
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    config = build_config(arguments.size)
    augmentations = build_augmentations(config)
    scale_mean = rng.uniform(*arguments.mean_scale, NUM_CLASSES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        records = write_scenes(folder, arguments.images, rng)
        print(
            f"{'cut-outs':>9} {'variant':<22} {'pastes':>7} {'ms/image':>9} {'images/s':>9} "
            f"{'ratio':>6}"
        )
        for side in arguments.cutout_sides:
            largest = None
            if arguments.reduced:
                region = arguments.size
                sides = config.GAL.DATA.LSJ.MAX_SCALE * region, region
                largest = needed(scale_mean, 0.7 * scale_mean, *sides, PasteOptions())
            pool = write_pool(folder / f"pool{side}", side, rng, largest)
            common = {
                "augmentations": augmentations,
                "pool": pool,
                "sampler": UniformClassSampler(pool, range(NUM_CLASSES)),
                "class_of_category": {index: index for index in range(NUM_CLASSES)},
                "scale_mean": scale_mean,
                "scale_std": scale_mean * 0.7,
            }
            mappers = {"no pastes": CopyPasteMapper(augmentations=augmentations)}
            for blend in ("basic", "feather", "poisson"):
                options = PasteOptions(max_pastes=20, blend=blend)
                mappers[f"0-20, {blend}"] = CopyPasteMapper(**common, options=options)
            for number, blend in itertools.product((10, 20), ("basic", "feather")):
                options = PasteOptions(min_pastes=number, max_pastes=number, blend=blend)
                mappers[f"always {number}, {blend}"] = CopyPasteMapper(**common, options=options)
            if side == arguments.cutout_sides[0]:
                mappers["0-20, basic, all real"] = CopyPasteMapper(
                    **common,
                    options=PasteOptions(max_pastes=20),
                    real_instances=RealInstances(records),
                    real_fraction=1.0,
                )
            milliseconds, pastes = time_mappers(mappers, records)
            base = milliseconds["no pastes"].mean()
            for name, values in milliseconds.items():
                mean = values.mean()
                print(
                    f"{side:>6} px {name:<22} {pastes[name]:>7.1f} {mean:>9.2f} "
                    f"{1000 / mean:>9.1f} {mean / base:>6.2f}"
                )


if __name__ == "__main__":
    main()
