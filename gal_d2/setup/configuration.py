"""Reads config files and the command line's KEY VALUE pairs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from gal_d2.config import add_gal_config
from gal_d2.errors import UserError
from gal_d2.retired_keys import add_retired_keys, drop_retired_keys

_LARGEST = 2**63 - 1


def load_config(
    config_file: str,
    opts: list[str] | None = None,
    add_config: Callable[[CfgNode], None] | None = None,
) -> CfgNode:
    """Read a YAML config and the command line's ``KEY VALUE`` pairs on top of the defaults.

    Args:
        config_file: "" for the defaults alone.
        opts: of the command line.
        add_config: adds the keys of a user's project to the defaults.

    Raises:
        UserError: the file is not there or is no YAML, a key is unknown, or a value is of another
            type.
    """
    cfg = get_cfg()
    if add_config is not None:
        add_config(cfg)
    add_gal_config(cfg)
    known = list(_names(cfg))
    add_retired_keys(cfg)
    defaults = dict(_items(cfg))
    if config_file:
        if not Path(config_file).is_file():
            raise UserError(
                f"the config file '{config_file}' does not exist: the folder configs/ has what "
                "comes with GAL-D2."
            )
        try:
            # detectron2's default lets YAML tags call functions.
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except Exception as error:  # YAML and yacs raise of every kind
            raise UserError(
                f"{config_file}: {_reason(error, known)} (a config file is YAML; gal_d2/config.py "
                "lists this project's keys)"
            ) from error
    try:
        cfg.merge_from_list(list(opts or []))
    except Exception as error:
        raise UserError(
            f"command line option: {_reason(error, known)} (options are pairs KEY VALUE, as in "
            "SOLVER.BASE_LR 0.01; gal_d2/config.py lists this project's keys)"
        ) from error
    for key, value in _items(cfg):
        _check_value(key, value, defaults.get(key))
    drop_retired_keys(cfg)
    return cfg


def _check_value(key: str, value: object, default: object) -> None:
    """Refuse what yacs takes for a value of any type."""
    if value is None and default is not None:
        raise UserError(
            f"{key} is null, as an empty value in YAML is: give one, or leave the key out, for the "
            f"default is {default!r}."
        )
    # Over a null in the file, the command line may give anything.
    if isinstance(default, int | float) and not isinstance(value, int | float):
        raise UserError(f"{key} is {value!r}: give a number; the default is {default!r}.")
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int) and abs(number) > _LARGEST:
            raise UserError(f"{key} has the number {str(number)[:20]}..., which is too large.")


def _reason(error: Exception, known: list[str]) -> str:
    text = str(error.args[0]) if error.args else str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):  # a _BASE_ that is not there
        text = f"'{error.filename}' does not exist"
    text = " ".join(text.split())[:500]
    unknown = text.rpartition(": ")[2] if "Non-existent" in text else ""
    nearest = nearest_key(unknown, known)
    return f"{text} (did you mean {nearest}?)" if nearest else text


def nearest_key(unknown: str, known: list[str]) -> str:
    """The key that somebody who wrote ``unknown`` may have meant; "" if none is like it.

    One of the same name in another place is nearer than one that is spelt like it.
    """
    *_, name = unknown.split(".")
    namesakes = [key for key in known if key.split(".")[-1] == name]
    nearest = difflib.get_close_matches(unknown, namesakes, n=1, cutoff=0.0)
    nearest = nearest or difflib.get_close_matches(unknown, known, n=1)
    return nearest[0] if nearest else ""


def _names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """Names of all options and of the nodes that they are in."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _names(value, f"{prefix}{key}.")


def _items(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names of all options, with their dots, and their values."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
