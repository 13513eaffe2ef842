"""From ``cfg.GAL.GENERATOR`` to the objects of generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from gal_d2.datasets.annotation_file import Category, read_categories
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import (
    load_instances,
    load_metadata,
    register_instances,
    require_dataset,
)
from gal_d2.errors import UserError
from gal_d2.generation.clip import ClipScorer
from gal_d2.generation.cutout_generator import CutoutGenerator, open_candidates
from gal_d2.generation.filters import AreaFilter, InstanceFilter, TruncationFilter
from gal_d2.generation.generator import InstanceGenerator
from gal_d2.generation.journal import recipe_of
from gal_d2.generation.model_filters import (
    ClipImageFilter,
    ClipTextFilter,
    RealCrops,
    VisionLanguageFilter,
)
from gal_d2.generation.pipeline import InstanceCutter, InstancePipeline, PoolStore, Segmenter
from gal_d2.generation.prompts import PromptBook, read_prompt_file
from gal_d2.generation.segmenters import (
    ClipSegSegmenter,
    RembgSegmenter,
    SamBackgroundSegmenter,
)
from gal_d2.generation.stable_diffusion import (
    StableDiffusionGenerator,
    load_text_to_image,
    model_label,
)
from gal_d2.retired_keys import with_retired_values

SEGMENTERS = ("rembg", "clipseg", "sam")
FILTERS = ("area", "truncation", "clip_text", "clip_image", "vlm")

GENERATOR_REGISTRY = Registry("GENERATOR")
GENERATOR_REGISTRY.__doc__ = """
Functions ``(cfg, categories) -> InstanceGenerator``, by the value of ``GAL.GENERATOR.NAME``.

- cfg: the whole config.
- categories: :class:`gal_d2.datasets.annotation_file.Category` of the data set, sorted by id.
"""

# What decides which images are drawn and kept. The prompts do too; the journal compares them one by
# one, so that a further category or template costs no image that is there.
_RECIPE = (
    "NAME",
    "SEED",
    "UNIT_SIZE",
    "DTYPE",
    "CANDIDATES",
    "MODEL",
    "VARIANT",
    "REVISION",  # of pools that were begun when there was this key
    "SIZE",
    "STEPS",
    "GUIDANCE",
    "NEGATIVE_PROMPT",
    "SCHEDULER",
    "SAFETY_CHECKER",
    "SEGMENTER",
    "FILTER",
)


def load_generation_categories(cfg: CfgNode) -> tuple[Category, ...]:
    """The categories of the training set, sorted by id; neither its images nor masks are needed.

    Raises:
        UserError: there is no such data set, or its annotation file is missing or broken.
    """
    if cfg.GAL.DATA.TRAIN:
        return read_categories(cfg.GAL.DATA.TRAIN[0], annotated_only=True)
    return read_categories(load_metadata(cfg.DATASETS.TRAIN[0]).json_file)


def category_names(categories: Sequence[Category]) -> CategoryNames:
    """Look-up of categories by name, synonym or id."""
    return CategoryNames(
        {"id": c.id, "name": c.name, "synonyms": list(c.synonyms)} for c in categories
    )


def build_prompts(cfg: CfgNode, categories: Sequence[Category]) -> PromptBook:
    """The prompts of ``GAL.GENERATOR.PROMPT``.

    Raises:
        UserError: a template or the prompt file is wrong.
    """
    prompt = cfg.GAL.GENERATOR.PROMPT
    own = read_prompt_file(prompt.FILE, category_names(categories)) if prompt.FILE else {}
    return PromptBook(categories, prompt.TEMPLATES, own, seed=cfg.GAL.GENERATOR.SEED)


@GENERATOR_REGISTRY.register()
def cutouts(cfg: CfgNode, categories: Sequence[Category]) -> CutoutGenerator:
    """Draws from ``GAL.GENERATOR.CANDIDATES``."""
    path = cfg.GAL.GENERATOR.CANDIDATES
    return CutoutGenerator(
        open_candidates(path, category_names(categories)), cfg.GAL.GENERATOR.SEED
    )


def build_generator(cfg: CfgNode, categories: Sequence[Category]) -> InstanceGenerator:
    """The generator that ``GAL.GENERATOR.NAME`` names.

    Raises:
        UserError: there is none of that name, or it lacks what it needs.
    """
    check_options(cfg)
    return GENERATOR_REGISTRY.get(cfg.GAL.GENERATOR.NAME)(cfg, categories)


def check_options(cfg: CfgNode) -> None:
    """Check what can be checked at once, before models are loaded for minutes.

    Raises:
        UserError: an option of ``GAL.GENERATOR`` is out of range, or a name is unknown.
    """
    options = cfg.GAL.GENERATOR
    if options.NAME not in GENERATOR_REGISTRY:
        known = ", ".join(sorted(registered for registered, _ in GENERATOR_REGISTRY))
        raise UserError(f"GAL.GENERATOR.NAME is '{options.NAME}'; registered are: {known}.")
    if options.SIZE < 8 or options.SIZE % 8:
        raise UserError(f"GAL.GENERATOR.SIZE is {options.SIZE}: give a multiple of 8 pixels.")
    for key in ("BATCH_SIZE", "STEPS", "PER_CATEGORY", "UNIT_SIZE"):
        if options[key] < 1:
            raise UserError(f"GAL.GENERATOR.{key} is {options[key]}: give at least 1.")
    _check_names("GAL.GENERATOR.SEGMENTER.NAMES", options.SEGMENTER.NAMES, SEGMENTERS)
    _check_names("GAL.GENERATOR.FILTER.NAMES", options.FILTER.NAMES, FILTERS)
    generation_dtype(cfg, generation_device(cfg))
    try:
        options.FILTER.VLM.QUESTION.format(name="", definition="")
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"GAL.GENERATOR.FILTER.VLM.QUESTION is '{options.FILTER.VLM.QUESTION}': its fields may "
            "be {name} and {definition}."
        ) from error


@GENERATOR_REGISTRY.register()
def stable_diffusion(cfg: CfgNode, categories: Sequence[Category]) -> StableDiffusionGenerator:
    """A text-to-image model of diffusers: ``GAL.GENERATOR.MODEL``."""
    options = cfg.GAL.GENERATOR
    device = generation_device(cfg)
    pipeline = load_text_to_image(
        options.MODEL,
        device=device,
        dtype=generation_dtype(cfg, device),
        variant=options.VARIANT,
        scheduler=options.SCHEDULER,
        safety_checker=options.SAFETY_CHECKER,
        compile_denoiser=options.COMPILE,
    )
    return StableDiffusionGenerator(
        pipeline,
        model_label(options.MODEL),
        batch_size=options.BATCH_SIZE,
        size=options.SIZE,
        steps=options.STEPS,
        guidance=options.GUIDANCE,
        negative_prompt=options.NEGATIVE_PROMPT,
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
    cfg: CfgNode, categories: Sequence[Category], *, draws_alpha: bool = False
) -> InstanceCutter:
    """Segmenters and filters.

    Args:
        cfg: the whole config.
        categories: of the data set.
        draws_alpha: the generator cuts out by itself, so no segmenter is loaded.

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
    )


def build_store(cfg: CfgNode, categories: Sequence[Category]) -> PoolStore:
    """The pool that generated instances go to, ``GAL.POOL.ROOT``.

    Args:
        cfg: the whole config.
        categories: of the data set; their names are kept in the pool.

    Raises:
        UserError: none is named, it cannot be written to, or it is for other categories.
    """
    root = cfg.GAL.POOL.ROOT
    if not root:
        raise UserError(
            "GAL.POOL.ROOT is empty: name the folder of the pool that generated instances go to."
        )
    return PoolStore(
        root,
        generation_recipe(cfg),
        flush_seconds=cfg.GAL.GENERATOR.FLUSH_SECONDS,
        names={category.id: category.name for category in categories},
    )


def build_pipeline(
    cfg: CfgNode, categories: Sequence[Category], store: PoolStore | None = None
) -> InstancePipeline:
    """All of generation, in this process.

    Args:
        cfg: the whole config.
        categories: of the data set.
        store: where instances go; by default :func:`build_store`'s.

    Raises:
        UserError: an option is wrong, a model is missing, or the pool cannot be written to.
    """
    generator = build_generator(cfg, categories)
    cutter = build_cutter(cfg, categories, draws_alpha=draws_alpha(generator))
    return InstancePipeline(generator, cutter, store or build_store(cfg, categories))


def draws_alpha(generator: InstanceGenerator) -> bool:
    """Whether every image of a generator comes with an alpha channel."""
    return bool(getattr(generator, "draws_alpha", False))


def generation_recipe(cfg: CfgNode) -> str:
    """A short name of all options that decide what is drawn and kept."""
    settings = with_retired_values(to_plain(cfg.GAL.GENERATOR), "GAL.GENERATOR")
    return recipe_of({key: settings[key] for key in _RECIPE})


def _check_names(key: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{key} has '{name}': choose from {', '.join(known)}.")


def to_plain(node: CfgNode) -> dict:
    """A config node as nested dicts."""
    return {
        key: to_plain(value) if isinstance(value, CfgNode) else value for key, value in node.items()
    }


def generation_device(cfg: CfgNode) -> torch.device:
    """``GAL.GENERATOR.DEVICE``; "auto" is a GPU if there is one.

    Raises:
        UserError: a GPU is asked for where torch sees none.
    """
    name = cfg.GAL.GENERATOR.DEVICE
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"GAL.GENERATOR.DEVICE is '{name}': choose auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"GAL.GENERATOR.DEVICE is {name}, but torch sees no GPU: set it to cpu or auto."
        )
    return device


def generation_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype:
    """``GAL.GENERATOR.DTYPE``; "auto" is float16 on a GPU, else float32.

    Raises:
        UserError: there is none of that name.
    """
    name = cfg.GAL.GENERATOR.DTYPE
    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    if name not in ("float16", "bfloat16", "float32"):
        raise UserError(
            f"GAL.GENERATOR.DTYPE is '{name}': choose auto, float16, bfloat16 or float32."
        )
    return getattr(torch, name)
