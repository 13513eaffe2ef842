"""Weight files of timm models, under timm's names or another port's."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor

from gal_d2.errors import UserError


def read_timm_weights(
    path: str | Path, name: str, keys: tuple[str, str] = ("MODEL.TIMM.WEIGHTS", "MODEL.TIMM.NAME")
) -> dict[str, Tensor]:
    """The tensors of a weight file under the names that they have in timm's model ``name``.

    Another port of the same network calls its tensors differently. Where not one name is timm's,
    they are taken in the order of the file, which is the order in which the network is built, if
    all shapes agree.

    Args:
        path: a .pth or .safetensors file.
        name: a timm model name.
        keys: config keys of both, for messages.

    Returns:
        By name. Where some names are timm's, the file as it is: timm knows what to do with it.

    Raises:
        UserError: the file is missing or broken, or its tensors are those of another network.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{keys[0]} is '{path}', which is not a file: give a local .pth or "
            ".safetensors file, or leave it empty."
        )
    try:
        found = load_state_dict(str(path), weights_only=True)
    # torch and safetensors raise what they like for a broken file.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{keys[0]} is '{path}', which cannot be read as weights ({reason}): download it again."
        ) from error
    with torch.device("meta"):  # no memory, no time: only names and shapes
        expected = timm.create_model(name).state_dict()
    if found.keys() & expected.keys():
        return found
    for (theirs, tensor), (ours, meta) in zip(found.items(), expected.items(), strict=False):
        if tensor.shape != meta.shape:
            raise UserError(
                f"{keys[0]} is '{path}', whose tensors are not those of timm's '{name}': "
                f"'{theirs}' has the shape {tuple(tensor.shape)} where '{ours}' has "
                f"{tuple(meta.shape)}; give weights of that model, or name theirs in "
                f"{keys[1]}."
            )
    if len(found) != len(expected):
        raise UserError(
            f"{keys[0]} is '{path}', which has {len(found)} tensors where timm's '{name}' "
            f"has {len(expected)}: give weights of that model, or name theirs in {keys[1]}."
        )
    return dict(zip(expected, found.values(), strict=True))
