"""Loading pretrained models by hub name or local folder, with errors that say what to do."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gal_d2.errors import UserError


def require_package(name: str, needed_by: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: of the package.
        needed_by: the option that asks for it, for the message.

    Raises:
        UserError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{needed_by} needs the package {name}, which does not import ({error}): "
            "pip install 'gal-d2[generate]'"
        ) from error


def load_pretrained(
    loader: Any, model: str, key: str, index_file: str = "config.json", **options: Any
) -> Any:
    """``loader.from_pretrained(model, **options)``.

    Args:
        loader: a class of diffusers or transformers.
        model: name on the hub, or a local folder.
        key: config key that names the model, for the message.
        index_file: a file that a local folder must have.
        options: of ``from_pretrained``.

    Raises:
        UserError: there is no such model, it is incomplete, or the hub is out of reach.
    """
    folder = Path(model)
    remedy = (
        f"download it on a machine with a network (hf download {model} "
        "--local-dir FOLDER) and set the key to that folder"
    )
    if folder.is_dir():
        if not (folder / index_file).is_file():
            raise UserError(
                f"{key} is '{model}', a folder without {index_file}: name one that "
                "save_pretrained or hf download wrote."
            )
        remedy = "the folder is incomplete or of another kind of model; download it again"
    elif not model or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(
            f"{key} is '{model}', which is no folder: name one that is there, or a model on the "
            "hub (OWNER/NAME)."
        )
    try:
        return loader.from_pretrained(model, **options)
    except Exception as error:  # hub clients and loaders raise what their versions like
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key} is '{model}', which cannot be loaded ({reason}): {remedy}.") from (
            error
        )


def load_transformer(
    model_class: str,
    processor_class: str,
    model: str,
    key: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Any, Any]:
    """A model of transformers, on its device, and its processor.

    Args:
        model_class, processor_class: names in transformers.
        model, key: as for :func:`load_pretrained`.
        device, dtype: of the model.

    Raises:
        UserError: transformers or the model is missing, or it is of another kind.
    """
    transformers = require_package("transformers", key)
    loaded = load_pretrained(getattr(transformers, model_class), model, key, use_safetensors=True)
    processor = load_pretrained(getattr(transformers, processor_class), model, key)
    return loaded.to(device, dtype), processor
