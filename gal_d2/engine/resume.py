"""What becomes of options that are changed when a run is resumed: ``docs/resume.md`` has the table.

A checkpoint keeps the config that it was made with. On resuming, each option that is another one
either takes effect from that step on, which is said in one line, or the run stops with a sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode

from gal_d2.errors import UserError
from gal_d2.retired_keys import require_same_retired_keys

logger = logging.getLogger(__name__)

# Why an option, or all below it, cannot change; None where it can. The longest match counts, and
# what matches nothing can change.
_FIXED: dict[str, str | None] = {
    "SEED": "samples, proposals and the probe are drawn from it",
    "SOLVER.OPTIMIZER": "the checkpoint has the state of the other optimizer",
    "SOLVER.BIAS_LR_FACTOR": "the optimizer's state is grouped by it",
    "SOLVER.WEIGHT_DECAY_BIAS": "the optimizer's state is grouped by it",
    "SOLVER.WEIGHT_DECAY_NORM": "the optimizer's state is grouped by it",
    "MODEL": "the checkpoint's weights and optimizer state are those of the other model",
    "MODEL.DEVICE": None,
    "MODEL.RPN": None,
    "MODEL.ROI_HEADS": None,
    "MODEL.WEIGHTS": "a resumed run goes on with its checkpoint's weights and never reads it",
    "GAL.POOL.ROOT": "what is known of each cut-out belongs to the other pool",
    "GAL.POOL.SAMPLER": "the snapshots that samples are drawn from are those of the other one",
    "GAL.POSTERIOR": "what is known of each cut-out was added up by it",
    "GAL.SNAPSHOTS": "the snapshots that are there are numbered by it",
    "GAL.SCORER": "scores from before and after could not be compared",
    "GAL.SCORER.ENABLED": None,
    "GAL.SCORER.PICTURE_PERIOD": None,
    "GAL.ACCEPT.UNIT": "the state of the decisions so far is that of the other unit",
}
_NOT_MEANT = frozenset({"OUTPUT_DIR", "VERSION", "MODEL.ROI_HEADS.NUM_CLASSES"})
_REMEDY = (
    "set it as it was, or start anew in another OUTPUT_DIR, with MODEL.WEIGHTS of this run if its "
    "weights are to be the start"
)


def changed_options(before: str, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """By key, the values of options that differ, (before, now).

    Args:
        before: ``cfg.dump()`` of the run so far. Keys that only one of the two has are not
            compared: they are of another release.
        cfg: of now.
    """
    old = dict(_flat(yaml.safe_load(before)))
    new = dict(_flat(yaml.safe_load(cfg.dump())))
    return {
        key: (old[key], new[key])
        for key in sorted(old.keys() & new.keys())
        if key not in _NOT_MEANT and old[key] != new[key] and not _same_place(key, old, new)
    }


def refusal(key: str) -> str | None:
    """Why an option cannot change when a run is resumed; None if it can."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in _FIXED:
            return _FIXED[prefix]
    return None


def check_options(before: str | None, cfg: CfgNode, label: str) -> None:
    """Refuse options that cannot change, and say in one line which others did.

    Args:
        before: ``cfg.dump()`` of the run so far; None where a checkpoint does not have it.
        cfg: of now.
        label: of the checkpoint, for messages.

    Raises:
        UserError: an option that cannot change is another one, or one is gone.
    """
    if before is None:
        logger.warning(
            "%s does not say which options it was made with: changed ones are not noticed.", label
        )
        return
    old_options = dict(_flat(yaml.safe_load(before)))
    require_same_retired_keys(old_options, cfg, label)
    changed = changed_options(before, cfg)
    was_scored = old_options.get("GAL.SCORER.ENABLED", False)
    for key, (old, new) in changed.items():
        if key.startswith("GAL.SCORER.") and not (was_scored and cfg.GAL.SCORER.ENABLED):
            continue  # there are no scores from before, or none from now on
        if key == "SEED" and new < 0:
            continue  # -1: whichever it was
        reason = refusal(key)
        if reason is not None:
            raise UserError(
                f"{key} is {_text(new)}, but {label} was made with {_text(old)}, and a resumed run "
                f"cannot change it: {reason}; {_REMEDY}."
            )
    if changed:
        logger.warning(
            "Changed options, which take effect from here on: %s.",
            ", ".join(
                f"{key} {_text(new)} (was {_text(old)})" for key, (old, new) in changed.items()
            ),
        )


def check_steps_left(done: int, max_iter: int) -> None:
    """Refuse to resume behind the end.

    Raises:
        UserError: more steps are done than the run is to have.
    """
    if done > max_iter:
        raise UserError(
            f"SOLVER.MAX_ITER is {max_iter}, but the checkpoint has done {done} steps: set it to "
            f"{done} or more, or start anew in another OUTPUT_DIR."
        )


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], label: str = "the checkpoint"
) -> None:
    """Restore what an optimizer remembers; its options stay those that it was built with.

    torch takes learning rate, momentum and weight decay from the state, so that a resumed run would
    silently keep the old ones.

    Raises:
        UserError: the state is for other groups of parameters.
    """
    options = [
        {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise UserError(
            f"the optimizer's state in {label} is for other groups of parameters ({error}): "
            "SOLVER's weight decays or what is frozen of the model changed; set them as they were, "
            "or start anew in another OUTPUT_DIR."
        ) from error
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)


def adopt_learning_rate(
    optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> None:
    """Have a restored scheduler follow the optimizer's own base rates, from its step on.

    Args:
        optimizer: with the ``initial_lr`` that the config gives.
        scheduler: restored: it knows its step, and the base rates of the run so far.
    """
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    rates = scheduler.get_lr()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``("SOLVER.BASE_LR", 0.02)`` and so on."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        # A list and a tuple mean the same, and so do 1 and 1.0.
        yield prefix, tuple(node) if isinstance(node, list) else node


def _same_place(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether both values are paths of one folder."""
    if key != "GAL.POOL.ROOT" or not (old[key] and new[key]):
        return False
    return Path(old[key]).resolve() == Path(new[key]).resolve()


def _text(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)
