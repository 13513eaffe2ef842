"""Keys that :mod:`gal_d2.config` had and has no more: each has one value for all runs now.

An earlier run's config still sets them. With the value that is fixed now that changes nothing; with
another one it is refused in a sentence, since the run would not be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from gal_d2.errors import UserError

_LEAVE_OUT = "leave it out"


@dataclass(frozen=True)
class RetiredKey:
    """A key that is gone.

    Attributes:
        value: what all runs have now; it was the default.
        remedy: what to do instead of setting it.
        successor: the key that has its meaning now; "": none has.
        also: further values that mean the same: defaults of earlier releases.
    """

    value: Any
    remedy: str = _LEAVE_OUT
    successor: str = ""
    also: tuple[Any, ...] = ()


_RATE = RetiredKey(0.5, "set GAL.ACCEPT.RATE, the share of the whole training", "GAL.ACCEPT.RATE")
_VETO = "leave it out: GAL.POOL.SAMPLER posterior draws less of what has a high mask loss"

RETIRED_KEYS: Mapping[str, RetiredKey] = {
    "GAL.POSTERIOR.CEILINGS": RetiredKey([100.0, 100.0, 1.0], also=([100.0, 1.0],)),
    "GAL.POSTERIOR.PRIOR_COUNT": RetiredKey(0.5),
    "GAL.POSTERIOR.FULL_AREA": RetiredKey(1024.0),
    "GAL.SCORER.ROIS": RetiredKey("gt", "leave it out: an instance is scored on its own box"),
    "GAL.SCORER.MAX_PROPOSALS": RetiredKey(4),
    "GAL.SCORER.SHRINKAGE": RetiredKey(2.0),
    "GAL.SCORER.PARTNER_EVERY": RetiredKey(50),
    "GAL.SCORER.MAX_REAL_PER_CLASS": RetiredKey(4),
    "GAL.SCORER.MAX_COUNTERFACTUALS": RetiredKey(64),
    "GAL.SCORER.PROBE.PERIOD": RetiredKey(1),
    "GAL.COPY_PASTE.FEATHER_SIGMA": RetiredKey(1.0),
    "GAL.ACCEPT.TOP_K": RetiredKey(5, "set GAL.ACCEPT.POLICY quantile and GAL.ACCEPT.RATE"),
    "GAL.ACCEPT.BATCH_WINDOW": RetiredKey(1000),
    "GAL.ACCEPT.QUANTILE.START_RATE": _RATE,
    "GAL.ACCEPT.QUANTILE.END_RATE": _RATE,
    "GAL.ACCEPT.QUANTILE.WINDOW": RetiredKey(1000),
    "GAL.ACCEPT.QUANTILE.MIN_COUNT": RetiredKey(30),
    "GAL.ACCEPT.WARM_UP.RATE": RetiredKey(0.5, "set GAL.ACCEPT.WARM_UP.RULE to accept or reject"),
    "GAL.ACCEPT.VETO.ENABLED": RetiredKey(False, _VETO),
    "GAL.ACCEPT.VETO.HEAD": RetiredKey("mask", _VETO),
    "GAL.ACCEPT.VETO.QUANTILE": RetiredKey(0.95, _VETO),
    "GAL.ACCEPT.VETO.FACTOR": RetiredKey(1.5, _VETO),
    "GAL.GENERATOR.REVISION": RetiredKey(
        "", "download that revision and give its folder as GAL.GENERATOR.MODEL"
    ),
    "GAL.GENERATOR.CHANNELS_LAST": RetiredKey(True),
    "GAL.GENERATOR.ATTENTION_SLICING": RetiredKey(False, "lower GAL.GENERATOR.BATCH_SIZE"),
    "GAL.GENERATOR.VAE_SLICING": RetiredKey(False, "lower GAL.GENERATOR.BATCH_SIZE"),
    "GAL.GENERATOR.RAY.GENERATORS": RetiredKey(
        0, "give --ray-generators to tools/generate_instances.py"
    ),
    "GAL.GENERATOR.RAY.CUTTERS": RetiredKey(0, "give --ray-cutters to tools/generate_instances.py"),
    "GAL.GENERATOR.RAY.GPUS_PER_CUTTER": RetiredKey(
        0.25, "give --ray-gpus-per-cutter to tools/generate_instances.py"
    ),
    "GAL.GENERATOR.QUEUE": RetiredKey(2),
    "GAL.GENERATOR.MAX_RESTARTS": RetiredKey(3),
    "GAL.GENERATOR.SCHEDULE.FLOOR": RetiredKey(0.1),
    "GAL.GENERATOR.SCHEDULE.HALF_LIFE": RetiredKey(50.0),
    "GAL.GENERATOR.SCHEDULE.EXPOSURES": RetiredKey(4),
    "GAL.GENERATOR.SEGMENTER.THRESHOLD": RetiredKey(128),
    "GAL.GENERATOR.SEGMENTER.SAM.MARGIN": RetiredKey(0.02),
    "GAL.GENERATOR.FILTER.CLIP_TEXT.TOLERANCE": RetiredKey(
        0.01, "set GAL.GENERATOR.FILTER.CLIP_TEXT.MIN"
    ),
    "GAL.GENERATOR.FILTER.CLIP_TEXT.MIN_GROUP": RetiredKey(
        4, "set GAL.GENERATOR.FILTER.CLIP_TEXT.MIN"
    ),
    "GAL.GENERATOR.FILTER.CLIP_IMAGE.MAX_REAL": RetiredKey(10),
    "GAL.GENERATOR.FILTER.VLM.BATCH_SIZE": RetiredKey(8, "set GAL.GENERATOR.BATCH_SIZE"),
}


def add_retired_keys(cfg: CfgNode) -> None:
    """Let ``cfg`` take the keys that are gone; :func:`drop_retired_keys` has the last word."""
    for key, retired in RETIRED_KEYS.items():
        node, name = _place(cfg, key)
        node[name] = retired.value


def drop_retired_keys(cfg: CfgNode) -> None:
    """Take the keys that are gone out of ``cfg``.

    Raises:
        UserError: one of them was set to what is no longer possible.
    """
    for key, retired in RETIRED_KEYS.items():
        node, name = _place(cfg, key)
        value = node.pop(name)
        if not _is_still_so(value, retired, cfg):
            raise UserError(
                f"{key} is {value!r}, but this key is gone, and all runs have "
                f"{retired.value!r}: {retired.remedy}."
            )
    for parent in ("GAL.ACCEPT.QUANTILE", "GAL.ACCEPT.VETO", "GAL.GENERATOR.RAY"):
        node, name = _place(cfg, parent)
        del node[name]


def require_same_retired_keys(before: Mapping[str, Any], cfg: CfgNode, label: str) -> None:
    """Refuse to go on with a run that set a key which is gone.

    Args:
        before: the options of the run so far, by key.
        cfg: of now.
        label: of its checkpoint, for messages.

    Raises:
        UserError: names the key and what to do.
    """
    for key, retired in RETIRED_KEYS.items():
        if key in before and not _is_still_so(before[key], retired, cfg):
            raise UserError(
                f"{label} was made with {key} {before[key]!r}, but this key is gone, and all runs "
                f"have {retired.value!r}: resume with the release that it was made with, or start "
                f"anew in another OUTPUT_DIR and {retired.remedy}."
            )


def with_retired_values(settings: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Nested options below ``prefix`` with the values of the keys that are gone, in place.

    What was named after options keeps its name so.
    """
    for key, retired in RETIRED_KEYS.items():
        if key.startswith(f"{prefix}."):
            *path, name = key.removeprefix(f"{prefix}.").split(".")
            node = settings
            for part in path:
                node = node.setdefault(part, {})
            node[name] = retired.value
    return settings


def _place(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    *path, name = key.split(".")
    for part in path:
        if part not in cfg:
            cfg[part] = CfgNode()
        cfg = cfg[part]
    return cfg, name


def _is_still_so(value: Any, retired: RetiredKey, cfg: CfgNode) -> bool:
    if isinstance(value, tuple):
        value = list(value)
    if value == retired.value or value in retired.also:
        return True
    if not retired.successor:
        return False
    node, name = _place(cfg, retired.successor)
    return node[name] == value
