"""Which options of a run differ from the defaults, and from those of other runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from detectron2.config import get_cfg

from gal_d2.config import add_gal_config
from gal_d2.reporting.run import Run, flat

# They say where a run is, not what it is.
_PLACES = frozenset({"OUTPUT_DIR", "VERSION"})
ABSENT = "(no such option)"


@cache
def defaults() -> dict[str, object]:
    """detectron2's and this project's, by dotted key."""
    cfg = get_cfg()
    add_gal_config(cfg)
    return flat(cfg)


def from_defaults(run: Run) -> list[tuple[str, str, str]]:
    """(key, default, value) of each option that was changed, by key."""
    known = defaults()
    return [
        (key, text_of(known.get(key, ABSENT)), text_of(value))
        for key, value in sorted(run.config.items())
        if key not in _PLACES and text_of(known.get(key, ABSENT)) != text_of(value)
    ]


def between(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, value of each run) of the options in which runs with a config differ, by key."""
    keys = sorted({key for run in runs for key in run.config} - _PLACES)
    rows = [(key, [text_of(run.config.get(key, ABSENT)) for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def text_of(value: object) -> str:
    """An option as people write it; a tuple is the list that YAML makes of it.

    Example:
        >>> text_of((1, "a")), text_of(""), text_of(2.0)
        ("[1, 'a']", "''", '2.0')
    """
    if isinstance(value, list | tuple):
        return repr(list(value))
    return value if isinstance(value, str) and value else repr(value)
