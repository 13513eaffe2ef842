"""Counts losses and gradients that are NaN or infinite, and names the first of each cause."""

from __future__ import annotations

import logging
from collections import Counter

from torch import Tensor

logger = logging.getLogger(__name__)


class NonFiniteReport:
    """``counts`` holds the number of instances by cause, e.g. ``"loss of the mask head"``."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, cause: str, bad: Tensor, image_ids: list, pool_ids: Tensor) -> None:
        """Note the instances where ``bad``; the first time that a cause has any, log them.

        Args:
            cause: what was not finite.
            bad: (N,) bool.
            image_ids: N names of the images.
            pool_ids: (N,) int64; -1 for a real instance.
        """
        rows = bad.nonzero()[:, 0].tolist()
        if rows and cause not in self.counts:
            named = ", ".join(
                f"image {image_ids[row]} "
                + (f"pool id {int(pool_ids[row])}" if pool_ids[row] >= 0 else "(real)")
                for row in rows[:5]
            )
            logger.warning(
                "The %s is not finite for %d instance(s): %s. They are neither scored nor learnt "
                "from; further ones are counted, not logged.",
                cause,
                len(rows),
                named,
            )
        if rows:
            self.counts[cause] += len(rows)
