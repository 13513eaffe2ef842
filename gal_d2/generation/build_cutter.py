"""From ``GAL.GENERATOR.SEGMENTER`` and ``FILTER`` to segmenters and filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from gal_d2.datasets.annotation_file import Category
from gal_d2.datasets.registration import (
    load_instances,
    register_instances,
    require_dataset,
)
from gal_d2.errors import UserError
from gal_d2.generation.clip import ClipScorer
from gal_d2.generation.filters import AreaFilter, InstanceFilter, TruncationFilter
from gal_d2.generation.instance_cutter import InstanceCutter, Segmenter
from gal_d2.generation.model_filters import (
    ClipImageFilter,
    ClipTextFilter,
    RealCrops,
    VisionLanguageFilter,
)
from gal_d2.generation.options import SEGMENTERS, generation_device, generation_dtype
from gal_d2.generation.segmenters import (
    ClipSegSegmenter,
    RembgSegmenter,
    SamBackgroundSegmenter,
)


def build_segmenters(cfg: CfgNode) -> list[Segmenter]:
    """The segmenters of ``GAL.GENERATOR.SEGMENTER.NAMES``.

    Raises:
        UserError: one is unknown, or its model cannot be loaded.
    """
    options = cfg.GAL.GENERATOR.SEGMENTER
    device = generation_device(cfg)
    shared = {
        "device": device,
        "dtype": generation_dtype(cfg, device),
        "batch_size": cfg.GAL.GENERATOR.BATCH_SIZE,
    }
    builders = {
        "rembg": lambda: [
            RembgSegmenter.load(model, file=options.REMBG.FILE, device=device)
            for model in options.REMBG.MODELS
        ],
        "clipseg": lambda: [ClipSegSegmenter.load(options.CLIPSEG.MODEL, **shared)],
        "sam": lambda: [SamBackgroundSegmenter.load(options.SAM.MODEL, **shared)],
    }
    return [segmenter for name in options.NAMES for segmenter in builders[name]()]


def build_filters(
    cfg: CfgNode, categories: Sequence[Category], clip: ClipScorer | None
) -> list[InstanceFilter]:
    """The filters of ``GAL.GENERATOR.FILTER.NAMES``, in order.

    Args:
        cfg: the whole config.
        categories: of the data set.
        clip: for the filters that need it.

    Raises:
        UserError: a model cannot be loaded.
    """
    options = cfg.GAL.GENERATOR.FILTER
    builders = {
        "area": lambda: AreaFilter(options.AREA.MIN, options.AREA.MAX),
        "truncation": lambda: TruncationFilter(options.TRUNCATION.MAX),
        "clip_text": lambda: ClipTextFilter(clip, options.CLIP_TEXT.MIN),
        "clip_image": lambda: ClipImageFilter(
            clip, build_real_crops(cfg, categories), options.CLIP_IMAGE.MIN
        ),
        "vlm": lambda: build_vision_language_filter(cfg),
    }
    return [builders[name]() for name in options.NAMES]


def build_clip(cfg: CfgNode) -> ClipScorer:
    """The CLIP model of filters and of the choice between masks.

    Raises:
        UserError: it cannot be loaded.
    """
    device = generation_device(cfg)
    return ClipScorer.load(
        cfg.GAL.GENERATOR.FILTER.CLIP.MODEL,
        device=device,
        dtype=generation_dtype(cfg, device),
        batch_size=cfg.GAL.GENERATOR.BATCH_SIZE,
    )


def build_real_crops(cfg: CfgNode, categories: Sequence[Category]) -> RealCrops:
    """Real objects of the training set, which must be there with its images.

    Raises:
        UserError: it is not.
    """
    dicts: list[dict] = []
    if cfg.GAL.DATA.TRAIN:
        register_instances("gal_train", *cfg.GAL.DATA.TRAIN, annotated_only=True, replace=True)
        names = ("gal_train",)
    else:
        names = cfg.DATASETS.TRAIN
    for name in names:
        require_dataset(name)
        dicts += load_instances(name)
    return RealCrops(dicts, [category.id for category in categories])


def build_vision_language_filter(cfg: CfgNode) -> VisionLanguageFilter:
    """The filter that asks a vision-language model.

    Raises:
        UserError: the model cannot be loaded.
    """
    options = cfg.GAL.GENERATOR.FILTER.VLM
    device = generation_device(cfg)
    return VisionLanguageFilter.load(
        options.MODEL,
        device=device,
        dtype=generation_dtype(cfg, device),
        question=options.QUESTION,
        minimum=options.MIN,
        batch_size=cfg.GAL.GENERATOR.BATCH_SIZE,
    )


def build_cutter(
    cfg: CfgNode,
    categories: Sequence[Category],
    *,
    draws_alpha: bool = False,
    largest: Mapping[int, float] | None = None,
) -> InstanceCutter:
    """Segmenters and filters.

    Args:
        cfg: the whole config.
        categories: of the data set.
        draws_alpha: the generator cuts out by itself, so no segmenter is loaded.
        largest: of :func:`~gal_d2.generation.stored_size.largest_pastes`, which needs the training
            set's annotations: not every machine has them.

    Raises:
        UserError: one is unknown, or a model cannot be loaded.
    """
    if not cfg.GAL.GENERATOR.SEGMENTER.NAMES and not draws_alpha:
        raise UserError(
            "GAL.GENERATOR.SEGMENTER.NAMES is empty, but the generator draws no alpha channel: "
            f"name some of {', '.join(SEGMENTERS)}."
        )
    segmenters = [] if draws_alpha else build_segmenters(cfg)
    clip = None
    if len(segmenters) > 1 or {"clip_text", "clip_image"} & set(cfg.GAL.GENERATOR.FILTER.NAMES):
        clip = build_clip(cfg)
    return InstanceCutter(
        segmenters,
        build_filters(cfg, categories, clip),
        similarity=clip,
        largest=largest,
    )
