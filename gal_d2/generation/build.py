"""From ``cfg.GAL.GENERATOR`` to the objects of generation."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from gal_d2.datasets.annotation_file import Category, read_categories
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_metadata
from gal_d2.errors import UserError
from gal_d2.generation.build_cutter import build_cutter
from gal_d2.generation.cutout_generator import CutoutGenerator, open_candidates
from gal_d2.generation.generator import InstanceGenerator
from gal_d2.generation.options import (
    FILTERS,
    SEGMENTERS,
    check_names,
    generation_device,
    generation_dtype,
    generation_recipe,
)
from gal_d2.generation.pipeline import InstancePipeline
from gal_d2.generation.prompts import PromptBook, read_prompt_file
from gal_d2.generation.stable_diffusion import (
    StableDiffusionGenerator,
    load_text_to_image,
    model_label,
)
from gal_d2.generation.store import PoolStore
from gal_d2.generation.stored_size import largest_pastes

GENERATOR_REGISTRY = Registry("GENERATOR")
GENERATOR_REGISTRY.__doc__ = """
Functions ``(cfg, categories) -> InstanceGenerator``, by the value of ``GAL.GENERATOR.NAME``.

- cfg: the whole config.
- categories: :class:`gal_d2.datasets.annotation_file.Category` of the data set, sorted by id.
"""


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
    check_names("GAL.GENERATOR.SEGMENTER.NAMES", options.SEGMENTER.NAMES, SEGMENTERS)
    check_names("GAL.GENERATOR.FILTER.NAMES", options.FILTER.NAMES, FILTERS)
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
    cutter = build_cutter(
        cfg, categories, draws_alpha=draws_alpha(generator), largest=largest_pastes(cfg)
    )
    return InstancePipeline(generator, cutter, store or build_store(cfg, categories))


def draws_alpha(generator: InstanceGenerator) -> bool:
    """Whether every image of a generator comes with an alpha channel."""
    return bool(getattr(generator, "draws_alpha", False))
