"""What the samples of a step see of a pool that grows while training."""

from __future__ import annotations

import numpy as np

from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.snapshots import Snapshots

# Of the source, in the trainer's snapshots, that says which shards samples may draw from.
SOURCE = "pool"
_SHARDS = "shards"


class GrowingPool:
    """Keeps a pool at what the samples of a step may draw from; it is pickled to loader workers.

    That is the shards in the snapshot that the step sees, whatever the folder has by then: so a
    resumed run, and any number of workers, draw the same. Where there is no snapshot (pictures of
    the training stream) it is all that is there.

    Args:
        pool: changed in place.
        snapshots: of the run.
    """

    def __init__(self, pool: InstancePool, snapshots: Snapshots) -> None:
        self.pool = pool
        self.snapshots = snapshots
        self._shown: int | None = None

    def follow(self, step: int) -> None:
        """Show what the samples of ``step`` see."""
        number = self.snapshots.number(step)
        if number == self._shown:
            return
        shards = self.snapshots.at(step).get(f"{SOURCE}.{_SHARDS}")
        if shards is None:
            self.pool.refresh()
        else:
            self.pool.show(shards.tolist())
        self._shown = number


def pool_state(pool: InstancePool, number: int) -> dict[str, np.ndarray]:
    """What snapshot ``number`` has of a growing pool: the names of its shards, (n,) str."""
    return {_SHARDS: np.array(pool.shards, dtype=np.str_)}
