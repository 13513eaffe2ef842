"""Ten lines at the start of a training that say what it is, and at its end what lies where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from gal_d2.datasets.registration import load_metadata
from gal_d2.datasets.statistics import category_statistics
from gal_d2.pool.instance_pool import InstancePool

# What a training leaves in OUTPUT_DIR, and what it is for.
RESULTS = (
    ("report.html", "one page about the run, for a browser (tools/report.py)"),
    ("model_final.pth", "the trained model"),
    ("metrics.json", "losses and metrics by step (TensorBoard reads the folder)"),
    ("log.txt", "the whole log, with config and model"),
    ("config.yaml", "the whole config"),
    ("inference", "predictions and AP of each category"),
    ("ledger", "each score of a pasted instance, and what was decided"),
    ("auditions", "each score of an audition"),
    ("likeness.npz", "how probable a pretrained network finds each cut-out's category"),
    ("decisions", "pictures of pasted instances, by score"),
    ("pool", "instances that were drawn while training"),
)


def start_summary(
    cfg: CfgNode, *, num_images: int, pool: InstancePool | None, start_iter: int = 0
) -> str:
    """What is trained, on what, and where results go: a line each.

    Args:
        cfg: the whole config.
        num_images: images that train.
        pool: that is pasted from, or None.
        start_iter: steps that were done before.
    """
    lines = {
        "data": _data(cfg.DATASETS.TRAIN, num_images),
        "evaluation": _evaluation(cfg),
        "pool": _pool(cfg, pool),
        "pastes": _pastes(cfg),
        "scoring": _scoring(cfg),
        "generator": _generator(cfg),
        "model": _model(cfg),
        "schedule": _schedule(cfg, num_images, start_iter),
        "device": _device(cfg),
        "results": f"{cfg.OUTPUT_DIR} (the config and the model are in its log.txt)",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:>{width}}: {text}" for name, text in lines.items())


def end_summary(output_dir: str) -> str:
    """Where the results of a training lie: those that are there, a line each."""
    root = Path(output_dir)
    found = [(root / name, meaning) for name, meaning in RESULTS if (root / name).exists()]
    if not found:
        return f"Done. {root} has no results."
    width = max(len(str(path)) for path, _ in found)
    lines = [f"  {path!s:<{width}}  {meaning}" for path, meaning in found]
    return "\n".join(["Done. Results:", *lines])


def _data(names: Sequence[str], num_images: int) -> str:
    metadata = load_metadata(names[0])
    counts = Counter(metadata.category_frequency)
    objects = sum(int(category_statistics(name).instance_count.sum()) for name in names)
    groups = ", ".join(
        f"{counts[group]} {word}"
        for group, word in (("r", "rare"), ("c", "common"), ("f", "frequent"))
    )
    files = ", ".join(load_metadata(name).json_file for name in names)
    return (
        f"{num_images:,} images that train, {objects:,} objects of "
        f"{len(metadata.thing_classes):,} categories ({groups}); {files}"
    )


def _evaluation(cfg: CfgNode) -> str:
    if not cfg.DATASETS.TEST:
        return "none"
    files = ", ".join(load_metadata(name).json_file for name in cfg.DATASETS.TEST)
    every = f"every {cfg.TEST.EVAL_PERIOD:,} steps and " if cfg.TEST.EVAL_PERIOD > 0 else ""
    return f"{files}, {every}at the end"


def _pool(cfg: CfgNode, pool: InstancePool | None) -> str:
    if pool is None:
        return "none"
    known = load_metadata(cfg.DATASETS.TRAIN[0]).thing_dataset_id_to_contiguous_id
    counts = {i: n for i, n in pool.counts().items() if i in known}
    return (
        f"{sum(counts.values()):,} cut-outs of {len(counts):,} of the {len(known):,} categories; "
        f"{pool.root}"
    )


def _pastes(cfg: CfgNode) -> str:
    node = cfg.GAL.COPY_PASTE
    if not node.ENABLED:
        return "none"
    real = f", {node.REAL_FRACTION:.0%} of them real objects" if node.REAL_FRACTION > 0 else ""
    sampler = cfg.GAL.POOL.SAMPLER
    if sampler == "posterior":
        pool = cfg.GAL.POOL
        sampler += f" (one of the {pool.BEST} best of {pool.CANDIDATES}, of more where most help; "
        images = cfg.GAL.AUDITION.IMAGES
        sampler += f"auditions on {images:g} images an image" if images else "no auditions"
        network = cfg.GAL.LIKENESS.TIMM or cfg.GAL.LIKENESS.CLIP
        sampler += f"; likeness by {network})" if network else "; no likeness)"
    return (
        f"{node.MIN_PASTES} to {node.MAX_PASTES} an image{real}, blend {node.BLEND}, "
        f"sampler {sampler}"
    )


def _scoring(cfg: CfgNode) -> str:
    if not cfg.GAL.SCORER.ENABLED:
        return "none: every paste trains" if cfg.GAL.COPY_PASTE.ENABLED else "none"
    accept = cfg.GAL.ACCEPT
    unit = "each instance" if accept.UNIT == "instance" else "all of a step together"
    return f"heads {', '.join(cfg.GAL.SCORER.HEADS)}; accepted by {accept.POLICY}, {unit}"


def _generator(cfg: CfgNode) -> str:
    node = cfg.GAL.GENERATOR
    if not node.ENABLED:
        return "off"
    return f"{node.NAME}, {node.MODE}, every {node.PERIOD:,} steps"


def _model(cfg: CfgNode) -> str:
    backbone = cfg.MODEL.TIMM.NAME or f"ResNet-{cfg.MODEL.RESNETS.DEPTH}"
    timm = cfg.MODEL.TIMM
    weights = cfg.MODEL.WEIGHTS or (timm.NAME and timm.WEIGHTS)
    if not weights:
        weights = "timm's weights" if timm.NAME and timm.PRETRAINED else "from scratch"
    return f"{cfg.MODEL.META_ARCHITECTURE}, {backbone}, {weights}"


def _schedule(cfg: CfgNode, num_images: int, start_iter: int) -> str:
    solver = cfg.SOLVER
    passes = solver.MAX_ITER * solver.IMS_PER_BATCH / max(num_images, 1)
    resumed = f"from step {start_iter:,} on, " if start_iter else ""
    return (
        f"{resumed}{solver.MAX_ITER:,} steps of {solver.IMS_PER_BATCH} images ({passes:.1f} "
        f"passes), {solver.OPTIMIZER}, learning rate {solver.BASE_LR:g}"
    )


def _device(cfg: CfgNode) -> str:
    name = cfg.MODEL.DEVICE
    if name.startswith("cuda"):
        name += f" ({torch.cuda.get_device_name()})"
    else:
        name += f" ({torch.get_num_threads()} threads)"
    precision = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else "float32"
    return f"{name}, {precision}, {comm.get_world_size()} process(es)"
