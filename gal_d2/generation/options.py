"""Options of ``GAL.GENERATOR`` that several parts read: names, device, dtype and the recipe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from gal_d2.errors import UserError
from gal_d2.generation.journal import recipe_of
from gal_d2.retired_keys import with_retired_values

SEGMENTERS = ("rembg", "clipseg", "sam")
FILTERS = ("area", "truncation", "clip_text", "clip_image", "vlm")

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


def generation_recipe(cfg: CfgNode) -> str:
    """A short name of all options that decide what is drawn and kept."""
    settings = with_retired_values(to_plain(cfg.GAL.GENERATOR), "GAL.GENERATOR")
    return recipe_of({key: settings[key] for key in _RECIPE})


def check_names(key: str, names: Sequence[str], known: Sequence[str]) -> None:
    """See that all names are known.

    Raises:
        UserError: one is not; it says that ``key`` has it.
    """
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
