"""From ``cfg.GAL.GENERATOR`` to the objects of generation."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from gal_d2.data.annotation_file import Category, read_categories
from gal_d2.data.category_names import CategoryNames
from gal_d2.data.datasets import load_metadata
from gal_d2.errors import UserError
from gal_d2.generation.cutout_generator import CutoutGenerator, open_candidates
from gal_d2.generation.filters import AreaFilter, InstanceFilter, TruncationFilter
from gal_d2.generation.generator import InstanceGenerator
from gal_d2.generation.journal import recipe_of
from gal_d2.generation.pipeline import InstanceCutter, InstancePipeline, PoolStore, Segmenter
from gal_d2.generation.prompts import PromptBook, read_prompt_file

logger = logging.getLogger(__name__)

GENERATOR_REGISTRY = Registry("GENERATOR")
GENERATOR_REGISTRY.__doc__ = """
Functions ``(cfg, categories) -> InstanceGenerator``, by the value of ``GAL.GENERATOR.NAME``.

- cfg: the whole config.
- categories: :class:`gal_d2.data.annotation_file.Category` of the data set, sorted by id.
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
    "REVISION",
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
        return read_categories(cfg.GAL.DATA.TRAIN[0])
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
    name = cfg.GAL.GENERATOR.NAME
    if name not in GENERATOR_REGISTRY:
        known = ", ".join(sorted(registered for registered, _ in GENERATOR_REGISTRY))
        raise UserError(f"GAL.GENERATOR.NAME is '{name}'; registered are: {known}.")
    return GENERATOR_REGISTRY.get(name)(cfg, categories)


def build_segmenters(cfg: CfgNode) -> list[Segmenter]:
    """The segmenters of ``GAL.GENERATOR.SEGMENTER.NAMES``.

    Raises:
        UserError: one is unknown, or its model cannot be loaded.
    """
    return []


def build_filters(cfg: CfgNode) -> list[InstanceFilter]:
    """The filters of ``GAL.GENERATOR.FILTER.NAMES``, in order.

    Raises:
        UserError: one is unknown, or its model cannot be loaded.
    """
    options = cfg.GAL.GENERATOR.FILTER
    builders = {
        "area": lambda: AreaFilter(options.AREA.MIN, options.AREA.MAX),
        "truncation": lambda: TruncationFilter(options.TRUNCATION.MAX),
    }
    for name in options.NAMES:
        if name not in builders:
            raise UserError(
                f"GAL.GENERATOR.FILTER.NAMES has '{name}': choose from {', '.join(builders)}."
            )
    return [builders[name]() for name in options.NAMES]


def build_cutter(cfg: CfgNode, categories: Sequence[Category]) -> InstanceCutter:
    """Segmenters and filters.

    Raises:
        UserError: one is unknown, or a model cannot be loaded.
    """
    return InstanceCutter(
        build_segmenters(cfg),
        build_filters(cfg),
        threshold=cfg.GAL.GENERATOR.SEGMENTER.THRESHOLD,
    )


def build_store(cfg: CfgNode, root: str | None = None) -> PoolStore:
    """The pool that generated instances go to: ``root``, by default ``GAL.POOL.ROOT``.

    Raises:
        UserError: none is named, or it cannot be written to.
    """
    root = root or cfg.GAL.POOL.ROOT
    if not root:
        raise UserError(
            "GAL.POOL.ROOT is empty: name the folder of the pool that generated instances go to."
        )
    return PoolStore(root, generation_recipe(cfg), flush_seconds=cfg.GAL.GENERATOR.FLUSH_SECONDS)


def build_pipeline(
    cfg: CfgNode, categories: Sequence[Category] | None = None, *, root: str | None = None
) -> InstancePipeline:
    """All of generation, in this process.

    Args:
        cfg: the whole config.
        categories: of the data set; by default they are read from the training set's annotations.
        root: the pool's folder; by default ``GAL.POOL.ROOT``.

    Raises:
        UserError: an option is wrong, a model is missing, or the pool cannot be written to.
    """
    if categories is None:
        categories = load_generation_categories(cfg)
    return InstancePipeline(
        build_generator(cfg, categories), build_cutter(cfg, categories), build_store(cfg, root)
    )


def generation_recipe(cfg: CfgNode) -> str:
    """A short name of all options that decide what is drawn and kept."""
    settings = to_plain(cfg.GAL.GENERATOR)
    return recipe_of({key: settings[key] for key in _RECIPE})


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
