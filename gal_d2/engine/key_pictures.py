"""Pictures of a run on their way to TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

from gal_d2.judging.auditions import AuditionHook
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.reporting.cut_outs import varied
from gal_d2.selection.posterior import Posterior
from gal_d2.visualization.contact_sheet import tile
from gal_d2.visualization.ranking import on_neutral
from gal_d2.visualization.samples import training_sheet

TIMES = 20
"""Pictures of a kind in a training: an event file stays small however long it is."""

_IMAGES = 6  # of a sheet
_SIDE = 320  # of an image at most, pixels
_CELL = 96  # of a cut-out, pixels


class KeyPicturesHook(HookBase):
    """Puts pictures into the storage: after the first step, ``TIMES`` times, and after the last.

    ``gal/training_images`` (of the step, with what is pasted), ``gal/best_cut_outs`` and
    ``gal/worst_cut_outs`` (by the expected value, few of a category), ``gal/auditions`` (images of
    the last round). A picture of nothing is left out. Register it after auditions and before the
    writers, in the main process alone.

    Args:
        class_names: by class index.
        image_format: ``cfg.INPUT.FORMAT``.
        posterior: what is known of the cut-outs; None: nothing.
        pool: gives the pool that they are in.
        class_of_category: category id (as in the JSON) -> class index.
        auditions: None: there are none.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        image_format: str,
        *,
        posterior: Posterior | None = None,
        pool: Callable[[], InstancePool] | None = None,
        class_of_category: Mapping[int, int] | None = None,
        auditions: AuditionHook | None = None,
    ) -> None:
        self.class_names, self.image_format = class_names, image_format
        self.posterior, self.pool = posterior, pool
        self.class_of_category = dict(class_of_category or {})
        self.auditions = auditions

    def after_step(self) -> None:
        """Draw, when it is time."""
        done, last = self.trainer.iter + 1, self.trainer.max_iter
        if done in (1, last) or done % max(1, last // TIMES) == 0:
            for name, picture in self._pictures().items():
                get_event_storage().put_image(f"gal/{name}", picture.transpose(2, 0, 1))

    def _pictures(self) -> dict[str, np.ndarray]:
        """(H, W, 3) uint8 RGB each, by name."""
        pictures = {}
        shown = [sample for sample in self.trainer.last_batch if _can_be_drawn(sample)]
        if shown:
            title = f"Step {self.trainer.iter + 1}: real instances blue, pasted cut-outs orange"
            pictures["training_images"] = self._sheet(shown, title)
        if self.auditions is not None and self.auditions.last_images:
            title = "Auditions: cut-outs that are scored without training, orange"
            pictures["auditions"] = self._sheet(self.auditions.last_images, title)
        return pictures | self._best_and_worst()

    def _sheet(self, samples: Sequence[dict], title: str) -> np.ndarray:
        samples = samples[:_IMAGES]
        largest = max(max(sample["image"].shape[1:]) for sample in samples)
        scale = min(1.5, _SIDE / largest)
        return training_sheet(
            samples, self.class_names, image_format=self.image_format, title=title, scale=scale
        )

    def _best_and_worst(self) -> dict[str, np.ndarray]:
        if self.posterior is None or len(self.posterior) < 2:
            return {}
        pool, pool_ids = self.pool(), self.posterior.pool_ids
        pool_ids = pool_ids[pool.contains(pool_ids)]
        value = self.posterior.value(pool_ids)
        category_id = pool.category_of(pool_ids)
        ascending = np.lexsort((pool_ids, value))
        pictures = {}
        for name, order in (("best_cut_outs", ascending[::-1]), ("worst_cut_outs", ascending)):
            rows = varied(order, category_id)
            cells, captions = [], []
            for row in rows:
                cells.append(on_neutral(pool.get_rgba(pool_ids[row]), _CELL))
                class_index = self.class_of_category[int(category_id[row])]
                captions.append(f"{self.class_names[class_index][:9]} {value[row]:+.2f}")
            if cells:
                title = f"{name.split('_')[0].capitalize()} cut-outs, by expected value"
                pictures[name] = tile(cells, columns=6, captions=captions, title=title)
        return pictures


def _can_be_drawn(sample: dict) -> bool:
    """Of our mapper every one; a loader of the user's own may leave masks out."""
    instances = sample.get("instances")
    return instances is not None and instances.has("gt_masks") and instances.has("instance_source")
