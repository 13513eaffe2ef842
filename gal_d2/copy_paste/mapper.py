"""The training mapper: read, augment, paste, and hand over what detectron2's models take."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import get_detection_dataset_dicts
from detectron2.data import transforms as T

from gal_d2.copy_paste.augmentation import (
    Frame,
    build_augmentations,
    build_probe_augmentations,
    locate,
)
from gal_d2.copy_paste.fields import NO_POOL_ID, InstanceSource
from gal_d2.copy_paste.objects import SceneObjects, real_objects, to_sample
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.paste import paste_cutouts, pick_number
from gal_d2.copy_paste.place import Placement, prepare_paste
from gal_d2.copy_paste.real_instances import RealInstances
from gal_d2.copy_paste.scale import class_scales
from gal_d2.copy_paste.stand_alone import pool_arguments
from gal_d2.datasets.probe import ProbeImages
from gal_d2.datasets.registration import load_metadata
from gal_d2.datasets.statistics import category_statistics
from gal_d2.errors import UserError
from gal_d2.files.image_file import UnreadableImageError, WarnOnce, read_training_image
from gal_d2.pool.configured import open_configured_pool
from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.pool.growth import GrowingPool
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.usable import PROBLEMS, problem_of
from gal_d2.selection.sampler import PoolSampler, build_pool_sampler
from gal_d2.selection.snapshots import Snapshots

logger = logging.getLogger(__name__)

# The probe draws from a generator of its own: the pastes are the same with and without it.
_PROBE_STREAM = 1


class CopyPasteMapper:
    """Maps a dataset dict to a training sample, with objects pasted into the augmented scene.

    Without ``sampler`` and ``real_instances`` nothing is pasted; the output is the same otherwise.
    The output is the input dict without "annotations", and with

    - "image": uint8 tensor (C, H, W), channels in the order of ``image_format``.
    - "instances": the real objects, then the pasted ones in the order of pasting, with gt_boxes
      (tight, XYXY), gt_classes, gt_masks (BitMasks: exactly the visible pixels), instance_source
      (int64, an InstanceSource) and pool_id (int64, -1 where it is not from the pool).
    - "num_pasted": how many objects were pasted and are visible.
    - "num_corrupt": how many pastes were skipped because their cut-out could not be read.
    - "num_drawn", "num_unusable": how many cut-outs were drawn from the pool, and how many of these
      were skipped because there is nothing to paste (:mod:`gal_d2.pool.usable`).
    - "unpasted", with ``return_unpasted``: a sample like this one, of the same augmented scene
      without the pastes.
    - "probe", with ``probe``: samples of real images of the pasted classes, whole and without
      pastes, for the scorer; see :mod:`gal_d2.datasets.probe`.

    Randomness of the pastes comes from ``default_rng(dataset_dict["sample_seed"])``, that of the
    augmentations from NumPy's global generator, as everywhere in detectron2.

    An image that cannot be read gives None, and a warning once per file and process.

    Args:
        augmentations: applied to the scene before pasting.
        image_format: "RGB" or "BGR".
        options: how to paste.
        pool, sampler: where cut-outs come from, and which ones are taken.
        growing_pool: has ``pool`` follow what the step may see, where it is filled while training.
        class_of_category: category id (as in the JSON) -> class index; needed with a pool.
        scale_mean, scale_std: float (number of classes,), mean and standard deviation of
            sqrt(object area / image area); needed for pasting.
        real_instances: objects of the training set to paste.
        real_fraction: share of the pastes that is taken from ``real_instances``.
        return_unpasted: see above.
        probe: where the probe's images come from.
        probe_augmentations: of the probe's images; without chance.
        probe_images: how many are drawn for a training image that has pastes.

    Raises:
        UserError: a value makes no sense.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str = "BGR",
        options: PasteOptions | None = None,
        pool: InstancePool | None = None,
        sampler: PoolSampler | None = None,
        growing_pool: GrowingPool | None = None,
        class_of_category: Mapping[int, int] | None = None,
        scale_mean: np.ndarray | None = None,
        scale_std: np.ndarray | None = None,
        real_instances: RealInstances | None = None,
        real_fraction: float = 0.0,
        return_unpasted: bool = False,
        probe: ProbeImages | None = None,
        probe_augmentations: Sequence[T.Augmentation | T.Transform] = (),
        probe_images: int = 1,
    ) -> None:
        if not 0 <= real_fraction <= 1:
            raise UserError(
                f"GAL.COPY_PASTE.REAL_FRACTION is {real_fraction}; it must be in [0, 1]."
            )
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"INPUT.FORMAT is '{image_format}'; it must be RGB or BGR.")
        self.is_pasting = sampler is not None or real_instances is not None
        if self.is_pasting and (scale_mean is None or scale_std is None):
            raise ValueError("pasting needs scale_mean and scale_std")
        if sampler is not None and (pool is None or class_of_category is None):
            raise ValueError("a sampler needs its pool, and class_of_category")
        if real_fraction < 1 and sampler is None and real_instances is not None:
            raise ValueError(f"with real_fraction {real_fraction}, a pool and sampler are needed")
        if real_fraction > 0 and real_instances is None:
            raise ValueError(f"with real_fraction {real_fraction}, real_instances are needed")
        if probe_images < 1:
            raise UserError(f"GAL.SCORER.PROBE.IMAGES is {probe_images}; it must be 1 or more.")
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.options = options or PasteOptions()
        self.pool = pool
        self.sampler = sampler
        self.growing_pool = growing_pool
        self.class_of_category = dict(class_of_category or {})
        self.scale_mean = scale_mean
        self.scale_std = scale_std
        self.real_instances = real_instances
        self.real_fraction = real_fraction
        self.return_unpasted = return_unpasted
        self.probe = probe
        self.probe_augmentations = T.AugmentationList(list(probe_augmentations))
        self.probe_images = probe_images
        self._warn_once = WarnOnce(logger)
        logger.info(
            "Training augmentations: %s; pastes: %s",
            augmentations,
            self.options if self.is_pasting else "none",
        )

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        *,
        dataset_dicts: Sequence[dict] | None = None,
        probe_dicts: Sequence[dict] = (),
    ) -> dict:
        """The constructor's arguments.

        Args:
            cfg: GAL.DATA, GAL.COPY_PASTE, GAL.POOL, INPUT and DATASETS.TRAIN are read.
            dataset_dicts: the training set, where it is loaded already. Only real-to-real
                copy-paste needs it, and loads it otherwise.
            probe_dicts: the images of the probe; none: there is no probe.

        Raises:
            UserError: a key has a value that makes no sense, or the pool cannot be used.
        """
        arguments = {
            "augmentations": build_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
        }
        if probe_dicts:
            arguments |= {
                "probe": ProbeImages(list(probe_dicts)),
                "probe_augmentations": build_probe_augmentations(cfg),
                "probe_images": cfg.GAL.SCORER.PROBE.IMAGES,
            }
        if not cfg.GAL.COPY_PASTE.ENABLED:
            return arguments

        class_of_category = load_metadata(cfg.DATASETS.TRAIN[0]).thing_dataset_id_to_contiguous_id
        scale_mean, scale_std = class_scales(
            [category_statistics(name) for name in cfg.DATASETS.TRAIN]
        )
        real_fraction = cfg.GAL.COPY_PASTE.REAL_FRACTION
        arguments |= {
            "options": PasteOptions.from_config(cfg),
            "class_of_category": class_of_category,
            "scale_mean": scale_mean,
            "scale_std": scale_std,
            "real_fraction": real_fraction,
            # What a rejected batch is replaced by.
            "return_unpasted": cfg.GAL.SCORER.ENABLED and cfg.GAL.ACCEPT.UNIT == "batch",
        }
        if real_fraction < 1:
            pool = _open_pool(cfg)
            arguments["pool"] = pool
            if cfg.GAL.GENERATOR.ENABLED:
                arguments["growing_pool"] = GrowingPool(pool, Snapshots.from_config(cfg))
            arguments["sampler"] = build_pool_sampler(cfg, pool, class_of_category)
        if real_fraction > 0:
            if dataset_dicts is None:
                dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
            arguments["real_instances"] = RealInstances(
                dataset_dicts, min_size=cfg.GAL.COPY_PASTE.MIN_SIZE
            )
        return arguments

    @classmethod
    def from_pool(
        cls,
        cfg: CfgNode,
        pool: str | PathLike,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform] | None = None,
        options: PasteOptions | None = None,
    ) -> CopyPasteMapper:
        """A mapper for a plain detectron2 script, which takes the place of ``DatasetMapper``.

        Args:
            cfg: detectron2's; ``INPUT`` and ``DATASETS.TRAIN`` are read, keys of GAL-D2 are not.
            pool: its folder. Its categories are found by name in the training set.
            augmentations: of the scene; None: what ``INPUT`` says.
            options: how many objects are pasted, how large and how.

        Raises:
            UserError: the training set has no masks, or the pool nothing of its categories.
        """
        return cls(**pool_arguments(cfg, pool, augmentations=augmentations, options=options))

    def __call__(self, dataset_dict: dict) -> dict | None:
        """Map one dataset dict; it is not changed. See the class."""
        scene = self._scene(dataset_dict, self.augmentations)
        if scene is None:
            return None
        sample, image, frame, real = scene
        unpasted = dict(sample)
        counts = Counter(num_drawn=0, num_unusable=0, num_corrupt=0)
        placements, pasted = self._draw_pastes(dataset_dict, frame, counts)
        if self.return_unpasted:
            unpasted |= to_sample(image.copy() if placements else image, real)
            unpasted |= dict.fromkeys(counts, 0)
        if placements:
            visible_real, visible_pasted = paste_cutouts(
                image, frame.region, real.masks, placements, self.options
            )
            pasted = pasted.remaining(visible_pasted)
            real = real.remaining(visible_real)
        sample |= to_sample(image, real, pasted)
        sample |= counts
        if self.return_unpasted:
            sample["unpasted"] = unpasted
        if self.probe is not None:
            sample["probe"] = self._draw_probe(dataset_dict, pasted.classes)
        return sample

    def _scene(
        self, dataset_dict: dict, augmentations: T.AugmentationList
    ) -> tuple[dict, np.ndarray, Frame, SceneObjects] | None:
        """The sample without image and objects; the augmented image, (H, W, 3) uint8, writeable;
        where the original is in it; its real objects. None if it cannot be read."""
        try:
            image = read_training_image(dataset_dict, self.image_format)
        except UnreadableImageError as error:
            self._warn_once(dataset_dict["file_name"], f"{error} It is left out of training.")
            return None
        original = image.shape[:2]
        scene = T.AugInput(image)
        transforms = augmentations(scene)
        image = scene.image
        if not (image.flags.c_contiguous and image.flags.writeable):
            image = np.array(image, order="C")
        frame = locate(transforms, original, image.shape[:2])
        sample = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        sample.setdefault("height", original[0])
        sample.setdefault("width", original[1])
        return sample, image, frame, real_objects(dataset_dict, transforms, frame)

    def _draw_probe(self, dataset_dict: dict, pasted_classes: Sequence[int]) -> list[dict]:
        """Samples of probe images of the pasted classes."""
        rng = _generator(dataset_dict, _PROBE_STREAM)
        samples = []
        for record in self.probe.draw(pasted_classes, self.probe_images, rng):
            scene = self._scene(record, self.probe_augmentations)
            if scene is not None and scene[3].masks:
                sample, image, _, real = scene
                samples.append(sample | to_sample(image, real))
        return samples

    def _draw_pastes(
        self, dataset_dict: dict, frame: Frame, counts: Counter
    ) -> tuple[list[Placement], SceneObjects]:
        """Placements, and what they show; ``counts`` is added to."""
        placements: list[Placement] = []
        pasted = SceneObjects()
        if not self.is_pasting:
            return placements, pasted

        rng = _generator(dataset_dict)
        num = pick_number(self.options, rng)
        is_real = np.zeros(num, dtype=bool)
        if self.real_instances is not None:
            is_real = rng.random(num) < self.real_fraction
            real_indices = iter(self.real_instances.sample(int(is_real.sum()), rng).tolist())
        if self.sampler is not None:
            step = dataset_dict.get("sample_step", 0)
            if self.growing_pool is not None:
                self.growing_pool.follow(step)
            pool_ids = iter(self.sampler.sample(int((~is_real).sum()), rng, step).tolist())

        for from_real in is_real.tolist():
            pool_id = NO_POOL_ID
            if from_real:
                found = self._cut_out_real(next(real_indices))
            else:
                pool_id = next(pool_ids, None)
                if pool_id is None:  # an empty pool
                    continue
                counts["num_drawn"] += 1
                found = self._cut_out_of_pool(pool_id)
            if found is None:
                counts["num_corrupt"] += 1
                continue
            class_index, rgba = found
            if not from_real and self._is_unusable(pool_id, rgba):
                counts["num_unusable"] += 1
                continue
            scale = (float(self.scale_mean[class_index]), float(self.scale_std[class_index]))
            placement = prepare_paste(
                rgba, scale, frame, self.options, rng, bgr=self.image_format == "BGR"
            )
            if placement is not None:
                placements.append(placement)
                pasted.add(placement.mask, class_index, InstanceSource.PASTED, pool_id)
        return placements, pasted

    def _is_unusable(self, pool_id: int, rgba: np.ndarray) -> bool:
        problem = problem_of(rgba)
        if problem is not None:
            self._warn_once(
                problem,
                f"Cut-out {pool_id} of {self.pool.root} is skipped, as others like it will be: "
                f"{PROBLEMS[problem]}; tools/check_pool.py counts them.",
            )
        return problem is not None

    def _cut_out_of_pool(self, pool_id: int) -> tuple[int, np.ndarray] | None:
        """Class index and RGBA; None if the cut-out is corrupt, which the pool has logged."""
        try:
            cut_out = self.pool.get(pool_id)
        except CorruptCutOutError:
            return None
        return self.class_of_category[cut_out.category_id], cut_out.rgba

    def _cut_out_real(self, index: int) -> tuple[int, np.ndarray] | None:
        try:
            return self.real_instances.cut_out(index)
        except UnreadableImageError as error:
            self._warn_once(str(error), f"{error} Nothing is cut out of it.")
            return None


def _open_pool(cfg: CfgNode) -> InstancePool:
    if not cfg.GAL.POOL.ROOT:
        raise UserError(
            "GAL.COPY_PASTE.ENABLED is True but GAL.POOL.ROOT is empty: name the folder of an "
            "instance pool, or paste real objects only (GAL.COPY_PASTE.REAL_FRACTION 1.0)."
        )
    # One that is drawn while training may have nothing yet.
    return open_configured_pool(cfg, allow_empty=cfg.GAL.GENERATOR.ENABLED)


def _generator(dataset_dict: dict, *stream: int) -> np.random.Generator:
    seed = dataset_dict.get("sample_seed")
    if seed is None:  # outside our stream, e.g. in detectron2's own loader
        seed = np.random.randint(2**31)  # noqa: NPY002
    return np.random.default_rng([seed, *stream] if stream else seed)
