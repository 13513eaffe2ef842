"""The feature filter of benchmarks/comparison.py: keep what looks like the category's real objects.

A cut-out's likeness is the cosine of its box features with the mean of the real objects' ones of
its category (unit vectors), by a trained detector, the cut-out alone on a real image; mean over
placements. It stands in for the CLIP filter of the published pools, for which no download is
needed. With --clip it is CLIP's, after DiverGen: the mean cosine with real objects; with --imagenet
the same by the pooled features of MODEL.TIMM's network as its weight file has it.

    python benchmarks/feature_filter.py --config-file configs/miniature_copypaste.yaml \
        --allow-list output/alike.parquet MODEL.WEIGHTS output/miniature_copypaste/model_final.pth
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data import detection_utils as utils
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gal_d2.commands.score_pool import open_pool
from gal_d2.copy_paste.mapper import CopyPasteMapper
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.placements import AuditionImages, sample_per_category
from gal_d2.copy_paste.scale import class_scales
from gal_d2.datasets.registration import load_metadata
from gal_d2.datasets.statistics import category_statistics
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.generation.clip import ClipScorer
from gal_d2.generation.model_filters import ClipImageFilter, ImageEmbedder, RealCrops
from gal_d2.modeling.timm_embedder import TimmEmbedder
from gal_d2.pool.allow_list import write_allow_list
from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.ranking import KeepRule, keep_by_category
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.launch import run_tool
from gal_d2.setup.setup import setup

logger = logging.getLogger("gal_d2")

REAL_PER_CLASS = 64  # at least, as far as there are
GROUP = 32  # cut-outs that share a forward pass
BATCH_SIZE = 8


def box_features(model: nn.Module, samples: Sequence[dict]) -> Tensor:
    """(N, D) unit vectors: box features at the boxes of the samples' N instances, in order."""
    device = next(model.parameters()).device
    heads = model.roi_heads
    box_head = heads.box_head[0] if isinstance(heads.box_head, nn.ModuleList) else heads.box_head
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(samples).tensor)
        boxes = [sample["instances"].gt_boxes.to(device) for sample in samples]
        pooled = heads.box_pooler([features[name] for name in heads.box_in_features], boxes)
        return F.normalize(box_head(pooled), dim=1)


def mean_features(model: nn.Module, batches: Iterator[list[dict]], num_classes: int) -> Tensor:
    """(C, D) mean of the unit vectors of each class's instances; zeros where there is none.

    Args:
        model: trained.
        batches: of samples with ``gt_classes``.
        num_classes: C.
    """
    total, count = None, torch.zeros(num_classes)
    for samples in batches:
        vectors = box_features(model, samples).cpu()
        classes = torch.cat([sample["instances"].gt_classes for sample in samples])
        if total is None:
            total = torch.zeros(num_classes, vectors.shape[1])
        total.index_add_(0, classes, vectors)
        count += torch.bincount(classes, minlength=num_classes)
    return total / count.clamp_min(1)[:, None]


def likeness_by_features(cfg: CfgNode, pool_ids: np.ndarray, placements: int) -> dict[int, float]:
    """By pool id, the mean cosine of a cut-out's box features with its class's real objects'.

    Args:
        cfg: the whole config; ``MODEL.WEIGHTS`` is the model.
        pool_ids: (N,) of the pool of ``GAL.POOL.ROOT``.
        placements: real images that each is put on.
    """
    model = GALTrainer.load_model(cfg).eval()
    metadata = load_metadata(cfg.DATASETS.TRAIN[0])
    num_classes = len(metadata.thing_classes)
    augmentations = utils.build_augmentation(cfg, is_train=False)
    scenes = get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN), filter_empty=False)
    rng = np.random.default_rng(0)
    indices = sample_per_category(scenes, num_classes, REAL_PER_CLASS, rng)
    mapper = CopyPasteMapper(augmentations=augmentations, image_format=cfg.INPUT.FORMAT)
    real = MapDataset(DatasetFromList([scenes[i] for i in indices], copy=False), mapper)
    mean = mean_features(model, _batches(cfg, real, "real objects"), num_classes)

    scale_mean, scale_std = class_scales([category_statistics(name) for name in cfg.DATASETS.TRAIN])
    orders = [np.random.default_rng(number).permutation(pool_ids) for number in range(placements)]
    keys = np.concatenate(
        [np.stack([ids, np.full_like(ids, number)], axis=1) for number, ids in enumerate(orders)]
    )
    candidates = AuditionImages(
        [keys[start : start + GROUP] for start in range(0, len(keys), GROUP)],
        scenes=scenes,
        pool=InstancePool(cfg.GAL.POOL.ROOT),
        class_of_category=metadata.thing_dataset_id_to_contiguous_id,
        scale_mean=scale_mean,
        scale_std=scale_std,
        augmentations=augmentations,
        image_format=cfg.INPUT.FORMAT,
        options=PasteOptions.from_config(cfg),
    )
    values: dict[int, list[float]] = {}
    for (samples,) in _batches(cfg, candidates, "candidates", size=1):
        instances = [sample["instances"] for sample in samples]
        classes = torch.cat([i.gt_classes for i in instances])
        readable = torch.cat([i.gt_boxes.nonempty() for i in instances])
        cosines = F.cosine_similarity(box_features(model, samples).cpu(), mean[classes])
        ids = torch.cat([i.pool_id for i in instances])
        for pool_id, cosine in zip(ids[readable].tolist(), cosines[readable].tolist(), strict=True):
            values.setdefault(pool_id, []).append(cosine)
    return {pool_id: float(np.mean(cosines)) for pool_id, cosines in values.items()}


def likeness_by_clip(cfg: CfgNode, pool_ids: np.ndarray, name: str) -> dict[int, float]:
    """By pool id, CLIP's mean cosine with real objects of the category; those without any are out.

    Args:
        cfg: the whole config.
        pool_ids: (N,) of the pool of ``GAL.POOL.ROOT``.
        name: hub name or local folder of the CLIP model.

    Raises:
        UserError: transformers or the model is missing.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    clip = ClipScorer.load(name, device=device, dtype=torch.float32)
    return likeness_to_real(cfg, pool_ids, clip)


def likeness_by_imagenet(cfg: CfgNode, pool_ids: np.ndarray) -> dict[int, float]:
    """As :func:`likeness_by_clip`, by the network and the weights of ``cfg.MODEL.TIMM``.

    Raises:
        UserError: the config names none, or they do not fit.
    """
    node = cfg.MODEL.TIMM
    if not node.NAME or not node.WEIGHTS:
        raise UserError(
            "--imagenet goes by the network of MODEL.TIMM, but MODEL.TIMM.NAME or .WEIGHTS is "
            "empty: set both, or leave out --imagenet."
        )
    embedder = TimmEmbedder(node.NAME, node.WEIGHTS, torch.device(cfg.MODEL.DEVICE))
    return likeness_to_real(cfg, pool_ids, embedder)


def likeness_to_real(
    cfg: CfgNode, pool_ids: np.ndarray, embedder: ImageEmbedder
) -> dict[int, float]:
    """By pool id, the mean cosine with real objects of the category; those without any are out.

    Args:
        cfg: the whole config.
        pool_ids: (N,) of the pool of ``GAL.POOL.ROOT``.
        embedder: makes vectors of pictures.
    """
    class_of = load_metadata(cfg.DATASETS.TRAIN[0]).thing_dataset_id_to_contiguous_id
    scenes = get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN), filter_empty=False)
    real = RealCrops(scenes, sorted(class_of, key=class_of.get))
    image_filter = ClipImageFilter(embedder, real)
    pool = InstancePool(cfg.GAL.POOL.ROOT)
    values = {}
    categories = pool.category_of(pool_ids)
    for category in tqdm(np.unique(categories).tolist(), desc="categories", disable=None):
        mine = pool_ids[categories == category]
        for start in range(0, len(mine), 64):
            cut_outs = {}
            for pool_id in mine[start : start + 64].tolist():
                try:
                    cut_outs[pool_id] = pool.get(pool_id).rgba
                except CorruptCutOutError as error:
                    logger.warning("left out: %s", error)
            found = image_filter.likeness(category, list(cut_outs.values()))
            values |= dict(zip(cut_outs, found.tolist(), strict=True))
    return {pool_id: value for pool_id, value in values.items() if np.isfinite(value)}


def _batches(cfg: CfgNode, dataset: Dataset, what: str, size: int = BATCH_SIZE) -> Iterator[list]:
    loader = DataLoader(dataset, size, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=list)
    return iter(tqdm(loader, desc=what, unit=" steps", disable=None))


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    pool, categories = open_pool(cfg)
    pool_ids = np.concatenate([pool.ids(category) for category in categories])
    if args.imagenet:
        values = likeness_by_imagenet(cfg, pool_ids)
    elif args.clip:
        values = likeness_by_clip(cfg, pool_ids, args.clip)
    else:
        values = likeness_by_features(cfg, pool_ids, args.placements)
    rule = KeepRule(quantile=1 - args.keep, at_least=1)
    kept = keep_by_category(pool_ids, pool.category_of(pool_ids), values, rule)
    write_allow_list(args.allow_list, pool_ids[kept])
    logger.info("Kept %d of %d cut-outs: %s", kept.sum(), len(kept), args.allow_list)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser(epilog=__doc__)
    parser.add_argument("--allow-list", type=Path, required=True, help="file of the kept ones")
    parser.add_argument("--keep", type=float, default=0.4, help="share of each category")
    parser.add_argument("--placements", type=int, default=2, help="real images for each cut-out")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--clip", metavar="MODEL", help="go by this CLIP model of transformers")
    model.add_argument("--imagenet", action="store_true", help="go by MODEL.TIMM's weights")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_tool(main, parse_arguments())
