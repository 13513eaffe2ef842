"""The offline setting's work: directions of the classes, then a score of each placement."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import get_detection_dataset_dicts
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gal_d2.commands.offline_options import OfflineOptions
from gal_d2.commands.offline_record import next_step, origin_of, scored_placements
from gal_d2.copy_paste.mapper import CopyPasteMapper
from gal_d2.copy_paste.placements import sample_per_category
from gal_d2.datasets.category_identity import require_same_classes
from gal_d2.datasets.registration import load_metadata
from gal_d2.errors import UserError, some_of
from gal_d2.files.atomic_file import replacing
from gal_d2.files.checksum import seal_zip
from gal_d2.files.weights_file import DAMAGE, read_state
from gal_d2.judging.attach import rehearse_on_noise, scored_roi_heads
from gal_d2.judging.auditions import Auditioner
from gal_d2.judging.build_scorer import build_scorer
from gal_d2.judging.judge import class_groups
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.setup.arguments import SPLITS

logger = logging.getLogger(__name__)
POLICY = "offline"  # in the ledger's column "policy"
# The model stands still, so all real objects count alike: an average over the last 200 or so.
_MOMENTUM = 0.99
_REAL_PER_CLASS_AND_STEP = 64
_COUNTERFACTUALS_PER_STEP = 512
_PER_IMAGE = 4  # cut-outs that are put together for each image of a batch
# Of the first pass, which only has to find out what resembles what.
_FIRST_PASS_REAL = 4


class OfflinePass:
    """Directions and scores of one model and one pool; every process of the run has one.

    Args:
        cfg: the whole config.
        model: trained, in evaluation mode, on its device.
        pool: of the cut-outs.
        categories: ids of those to score.
        options: see there.

    Raises:
        UserError: the model cannot be scored, or an option is out of range.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        pool: InstancePool,
        categories: Sequence[int],
        options: OfflineOptions,
    ) -> None:
        self.cfg, self.model, self.pool, self.options = cfg, model, pool, options
        self.categories = categories
        self.metadata = load_metadata(cfg.DATASETS.TRAIN[0])
        self.class_of_category = self.metadata.thing_dataset_id_to_contiguous_id
        self.scorer = build_scorer(
            _offline_scorer_config(cfg),
            scored_roi_heads(model),
            class_groups(self.metadata),
            partner_every=1,
            max_real_per_class=_REAL_PER_CLASS_AND_STEP,
            max_counterfactuals=_COUNTERFACTUALS_PER_STEP,
        )
        rehearse_on_noise(self.scorer.gradients, model)
        self.augmentations = utils.build_augmentation(cfg, is_train=False)
        self.auditioner = Auditioner(
            cfg,
            model,
            self.scorer,
            scenes=get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN), filter_empty=False),
            pool=pool,
            class_of_category=self.class_of_category,
            augmentations=self.augmentations,
        )

    # -- Directions

    def load_or_learn_directions(self, path: Path) -> None:
        """Restore the directions that an earlier run made, or make them and keep them."""
        made_with = origin_of(self.cfg, self.model, self.options)
        if path.is_file():
            try:
                stored = read_state(path)
            except DAMAGE as error:
                raise UserError(
                    f"{path} cannot be read ({error}): delete {path.parent} to score anew."
                ) from error
            different = [key for key in made_with if stored["made_with"].get(key) != made_with[key]]
            if different:
                raise UserError(
                    f"{path} was made with another {', '.join(different)}: score into another "
                    f"folder (--ledger), or delete {path.parent} to score anew."
                )
            require_same_classes(
                *(stored.get("classes"), self.metadata.thing_classes, f"{path}"),
                f"score into another folder (--ledger), or delete {path.parent} to score anew",
            )
            self.scorer.load_state_dict(stored["scorer"])
            logger.info("Directions of the classes: %s.", path)
            return
        self._learn_directions()
        comm.synchronize()  # nobody looks for the file any more
        if comm.is_main_process():
            classes = list(self.metadata.thing_classes)
            state = {"made_with": made_with, "classes": classes, "scorer": self.scorer.state_dict()}
            with replacing(path) as temporary:
                torch.save(state, temporary)
                seal_zip(temporary)

    def _learn_directions(self) -> None:
        options = self.options
        names = list(self.cfg.DATASETS[SPLITS[options.split]])
        dicts = get_detection_dataset_dicts(names, filter_empty=False)
        num_classes = self.scorer.num_classes
        rng = np.random.default_rng(options.seed)
        few = sample_per_category(dicts, num_classes, _FIRST_PASS_REAL, rng)
        sampled = np.concatenate(
            [rng.permutation(self.pool.ids(i))[: options.candidates] for i in self.categories]
        )
        real = self._batches(_RealScenes(self._mapper(), [dicts[i] for i in few]), "real objects")
        for samples in real:
            self._learn(samples)
        groups = self._groups(_keys(sampled, 0))
        for samples in self._batches(
            self.auditioner.images(groups, self.options.seed), "candidates", size=1
        ):
            self._learn(samples)

        wanted = torch.zeros(num_classes, dtype=torch.bool)
        wanted[[self.class_of_category[i] for i in self.categories]] = True
        partners = self.scorer.cache.partners[wanted]
        wanted[partners[partners >= 0]] = True
        chosen = _with_only(dicts, wanted.numpy())
        indices = sample_per_category(chosen, num_classes, options.per_category, rng)
        scenes = _RealScenes(self._mapper(), [dicts[i] for i in indices])
        for samples in self._batches(scenes, "real objects"):
            self._learn(samples)
        unknown = [
            self.metadata.thing_classes[c]
            for c in (self.class_of_category[i] for i in self.categories)
            if self.scorer.cache.num_updates[c] == 0
        ]
        if unknown:
            logger.warning(
                "Data set %s has no object of %s: their cut-outs get no score.",
                names,
                some_of(unknown),
            )

    def _mapper(self) -> CopyPasteMapper:
        return CopyPasteMapper(augmentations=self.augmentations, image_format=self.cfg.INPUT.FORMAT)

    def _learn(self, samples: Sequence[dict]) -> None:
        features, targets = self.auditioner.features(samples)
        # With candidates among the targets it also takes down what these resemble.
        self.scorer.step(features, targets, [sample["image_id"] for sample in samples])

    # -- Scores

    def score(self, folder: Path) -> int:
        """Score what the ledger in ``folder`` has not yet; how many placements that were."""
        done = scored_placements(folder)
        pool_ids = np.concatenate([self.pool.ids(category) for category in self.categories])
        # Cut-outs share images with others each time.
        orders = [
            np.random.default_rng((self.options.seed, number)).permutation(pool_ids)
            for number in range(self.options.placements)
        ]
        left = np.concatenate(
            [
                _keys(ids[~np.isin(ids, done[done[:, 1] == number, 0])], number)
                for number, ids in enumerate(orders)
            ]
        )
        first_step = next_step(folder)
        comm.synchronize()  # all have read the ledger before anybody writes to it
        logger.info(
            "%d placements of %d cut-outs, %d of them scored already.",
            len(pool_ids) * self.options.placements,
            len(pool_ids),
            len(pool_ids) * self.options.placements - len(left),
        )
        rank, world = comm.get_rank(), comm.get_world_size()
        mine = self._groups(left)[rank::world]
        writer = LedgerWriter(
            folder,
            category_ids=sorted(self.class_of_category, key=self.class_of_category.get),
            category_frequency=self.metadata.category_frequency,
            category_names=self.metadata.thing_classes,
            rank=rank,
            num_processes=world,
        )
        vanished = 0
        start = flushed = time.monotonic()
        bar = tqdm(
            total=len(left), unit=" placements", disable=None if comm.is_main_process() else True
        )
        with writer, bar:
            loader = self._loader(self.auditioner.images(mine, self.options.seed), 1)
            for step, samples in enumerate(loader, first_step):
                contribution = self.auditioner.score(samples)
                vanished += sum(
                    int((~sample["instances"].gt_masks.tensor.flatten(1).any(1)).sum())
                    for sample in samples
                )
                accept = torch.ones(len(contribution), dtype=torch.bool)
                writer.append(
                    step,
                    contribution,
                    Decision.uniform(accept, POLICY),
                    [sample["image_id"] for sample in samples],
                    more={"placement": np.concatenate([s["placement"] for s in samples])},
                )
                # The other processes keep about the same pace.
                bar.update(min(len(contribution) * world, len(left) - bar.n))
                if time.monotonic() - flushed >= self.options.flush_seconds:
                    writer.flush()
                    flushed = time.monotonic()
        vanished = sum(comm.all_gather(vanished))
        if vanished:
            logger.warning(
                "%d of %d placements have no score, for nothing of their cut-outs can be pasted; "
                "tools/check_pool.py says why.",
                vanished,
                len(left),
            )
        comm.synchronize()
        seconds = max(time.monotonic() - start, 1e-9)
        if len(left):
            logger.info(
                "Scored %d placements in %.0f s: %.1f a second, with %d process(es).",
                len(left),
                seconds,
                len(left) / seconds,
                world,
            )
        return len(left)

    # -- Common to both

    def _groups(self, keys: np.ndarray) -> list[np.ndarray]:
        """Those of (N, 2) ``keys`` that share images; about as many as fill a batch."""
        size = _PER_IMAGE * self.options.batch_size
        return [keys[start : start + size] for start in range(0, len(keys), size)]

    def _loader(self, dataset: Dataset, size: int) -> Iterable[list[dict]]:
        """Samples of ``size`` items at a time."""
        return DataLoader(
            dataset,
            batch_size=size,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            collate_fn=_flat,
        )

    def _batches(
        self, dataset: Dataset, what: str, size: int | None = None
    ) -> Iterator[list[dict]]:
        """This process's share, batch by batch; every process gets the same number of batches.

        Where a share is short, its last batches are images without objects: learning is collective.
        """
        size = size or self.options.batch_size
        rank, world = comm.get_rank(), comm.get_world_size()
        share = range(rank, len(dataset), world)
        rounds = math.ceil(math.ceil(len(dataset) / world) / size)
        loader = iter(self._loader(torch.utils.data.Subset(dataset, share), size))
        bar = tqdm(
            range(rounds),
            desc=what,
            unit=" steps",
            disable=None if comm.is_main_process() else True,
        )
        for _ in bar:
            yield next(loader, []) or [_without_objects(dataset)]


class _RealScenes(Dataset):
    """Mapped real images; None where one cannot be read."""

    def __init__(self, mapper: CopyPasteMapper, dicts: Sequence[dict]) -> None:
        self.mapper, self.dicts = mapper, dicts

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, index: int) -> dict | None:
        return self.mapper(self.dicts[index])


def _keys(pool_ids: np.ndarray, number: int) -> np.ndarray:
    """(N, 2): the placement ``number`` of each of ``pool_ids`` (N,)."""
    return np.stack([pool_ids, np.full(len(pool_ids), number, np.int64)], axis=1)


def _offline_scorer_config(cfg: CfgNode) -> CfgNode:
    """``GAL.SCORER`` for a model that stands still."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.GAL.SCORER
    node.MOMENTUM = max(node.MOMENTUM, _MOMENTUM)
    node.GRADIENTS = "all"
    return cfg


def _with_only(dicts: Sequence[dict], wanted: np.ndarray) -> list[dict]:
    """The dicts with the annotations of ``wanted`` classes ((C,) bool) alone."""
    return [
        {**record, "annotations": [a for a in record["annotations"] if wanted[a["category_id"]]]}
        for record in dicts
    ]


def _without_objects(dataset: Dataset) -> dict:
    """The first sample that can be read, without its instances."""
    items = (_flat([dataset[index]]) for index in range(len(dataset)))
    sample = next(samples[0] for samples in items if samples)
    return {**sample, "instances": sample["instances"][:0]}


def _flat(items: list[dict | list[dict] | None]) -> list[dict]:
    """The samples of items of which each is one, several, or (an unreadable image) none."""
    return [
        sample
        for item in items
        if item is not None
        for sample in (item if isinstance(item, list) else [item])
    ]
