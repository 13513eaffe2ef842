"""What two runs must share for their gradients to be comparable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Entries of earlier releases, for what could be done otherwise then.
_FORMER = {"by_layer": False, "bias": False}


def obstacle(state: Mapping[str, Any] | None, signature: Mapping[str, Any]) -> str | None:
    """Why a state cannot be gone on with, as part of a sentence; None if it can.

    Args:
        state: of a checkpoint, perhaps of an earlier release, with its ``"signature"``.
        signature: of now.
    """
    if not state:
        return "the checkpoint has none (it was written without scoring)"
    theirs = {
        key: value
        for key, value in (state.get("signature") or {}).items()
        if key not in _FORMER or value != _FORMER[key]
    }
    differing = [
        key for key in sorted({*signature, *theirs}) if theirs.get(key) != signature.get(key)
    ]
    return f"the checkpoint's differs in {', '.join(differing)}" if differing else None
