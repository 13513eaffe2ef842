"""Auditions: cut-outs are scored alone and uncovered, several on one real image, without training.

An audition tells more than an exposure in training, where a cut-out is covered by others and stands
in clutter, and costs a fraction of it: no backward pass through the detector, and several cut-outs
share an image. :class:`Auditioner` scores; :class:`AuditionHook` decides what and when while a
detector trains; :mod:`gal_d2.commands.score_pool` has a trained model score a whole pool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.placements import AuditionImages
from gal_d2.copy_paste.scale import class_scales
from gal_d2.datasets.statistics import category_statistics
from gal_d2.engine.precision import autocast_dtype
from gal_d2.errors import UserError
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.modeling.frozen import frozen_model
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.scoring.contribution import Contribution
from gal_d2.scoring.scorer import ContributionScorer
from gal_d2.selection.decision import Decision
from gal_d2.selection.policies import AlwaysAccept
from gal_d2.selection.posterior import AUDITION, Posterior

logger = logging.getLogger(__name__)

FOLDER = "auditions"  # of their ledger, in OUTPUT_DIR
POLICY = "audition"  # in the ledger's column "policy"
_GROUP = 64  # cut-outs that share a forward pass
_CANDIDATES = 8  # cut-outs of a category that one is taken of
_SPARE = 2  # times as many are taken as there is room for: the most uncertain audition
_STREAM = 2  # of random numbers, beside those of the samples


class Auditioner:
    """Puts cut-outs on real images and has a scorer score them.

    Args:
        cfg: how to paste, and the images' format and precision.
        model: the detector, not wrapped; left as it is.
        scorer: scores without learning.
        scenes: dataset dicts of the real images.
        pool: where the cut-outs are.
        class_of_category: category id (as in the JSON) -> class index.
        augmentations: deterministic ones, of the real images.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        scorer: ContributionScorer,
        *,
        scenes: Sequence[dict],
        pool: InstancePool,
        class_of_category: Mapping[int, int],
        augmentations: Sequence[T.Augmentation],
    ) -> None:
        scale_mean, scale_std = class_scales(
            [category_statistics(name) for name in cfg.DATASETS.TRAIN]
        )
        self.model, self.scorer, self.pool = model, scorer, pool
        self.class_of_category = class_of_category
        self._dtype = autocast_dtype(cfg)
        self._images = {
            "scenes": scenes,
            "pool": pool,
            "class_of_category": class_of_category,
            "scale_mean": scale_mean,
            "scale_std": scale_std,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "options": PasteOptions.from_config(cfg),
        }

    def images(self, groups: Sequence[np.ndarray], seed: int) -> AuditionImages:
        """The images of groups of (pool id, number of the placement), arrays (n, 2) each.

        Args:
            groups: those that share images.
            seed: of the placements.
        """
        return AuditionImages(groups, seed=seed, **self._images)

    @torch.no_grad()
    def features(self, samples: Sequence[dict]) -> tuple[dict[str, Tensor], list]:
        """Feature maps as the ROI heads get them, on the model's device, and the targets."""
        device = next(self.model.parameters()).device
        images = self.model.preprocess_image(samples)
        enabled = self._dtype is not None
        with (
            frozen_model(self.model),
            torch.autocast(device.type, dtype=self._dtype, enabled=enabled),
        ):
            features = self.model.backbone(images.tensor)
        features = {name: feature.float() for name, feature in features.items()}
        return features, [sample["instances"] for sample in samples]

    def score(self, samples: Sequence[dict]) -> Contribution:
        """The N cut-outs on these images, image by image."""
        features, targets = self.features(samples)
        return self.scorer.score(features, targets, [sample["image_id"] for sample in samples])


def choose_for_audition(
    candidates: np.ndarray, posterior: Posterior, rng: np.random.Generator, number: int
) -> np.ndarray:
    """Cut-outs that matter and of which little is known.

    Of each row's better half, by expected value, the one whose qualities are most uncertain; of
    these the most uncertain ones. One never scored is as uncertain as can be and of middling value,
    so a class that becomes known late catches up; what is poor for sure is not asked again.

    Args:
        candidates: (N, K) int64 pool ids, a row's all of one category.
        posterior: what is known.
        rng: breaks ties.
        number: how many are wanted.

    Returns:
        (M,) int64, M <= number: ascending, without repeats.
    """
    rows, columns = candidates.shape
    flat = candidates.reshape(-1)
    belief = posterior.get(flat)
    tie = rng.random((rows, columns)) * 1e-9
    value = posterior.value_of(belief).reshape(rows, columns) - tie
    uncertain = (belief.std * posterior.weights).sum(-1).reshape(rows, columns) + tie
    better = np.argsort(-value, axis=1)[:, : (columns + 1) // 2]
    row = np.arange(rows)
    most = better[row, np.argmax(uncertain[row[:, None], better], axis=1)]
    # Once each, the most uncertain first.
    order = np.argsort(-uncertain[row, most], kind="stable")
    chosen, first = np.unique(candidates[row, most][order], return_index=True)
    return np.sort(chosen[np.argsort(first)][:number])


class Waiting:
    """Finds what had no audition yet in a pool that grows, without looking at all of it again.

    Args:
        posterior: counts auditions.
    """

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior
        self._shards: frozenset[str] = frozenset()
        self._ids = np.empty(0, np.int64)

    def of(self, pool: InstancePool) -> np.ndarray:
        """(N,) int64, ascending: the cut-outs of ``pool`` that had none."""
        shards = frozenset(pool.shards)
        ids = np.union1d(self._ids, pool.ids_in(shards - self._shards))
        has_none = self.posterior.auditions(ids) == 0
        self._shards, self._ids = shards, ids[has_none & pool.contains(ids)]
        return self._ids


class AuditionHook(HookBase):
    """Has cut-outs audition between training steps, and the posterior learn from it.

    It stands after what lets the pool grow and before what takes snapshots: a new cut-out is
    auditioned before a sample may draw it.

    Args:
        auditioner: of the trainer's model, with the judge's scorer.
        judge: whose posterior learns.
        pool: of what samples may draw from, on the main process.
        period: steps between two rounds.
        images: images with auditions for each training image, about, on average over the training:
            twice as many at its start, none at its end.
        batch_size: training images in a step, of all processes.
        weight: of each category, by its id: how often its cut-outs are pasted; None: all alike.
        is_growing: the pool is filled while training.
        checkpoint_period: steps between two checkpoints; the ledger, in the output's folder
            ``auditions``, is stored with each.

    Attributes:
        on_audition: told of each round's cut-outs of this process; None: nobody.
        last_images: samples of the last round, some of this process's.

    Raises:
        UserError: ``images`` is negative or ``period`` below 1.
    """

    def __init__(
        self,
        auditioner: Auditioner,
        judge: InstanceJudge,
        pool: Callable[[], InstancePool],
        *,
        period: int,
        images: float,
        batch_size: int,
        weight: Mapping[int, float] | None,
        is_growing: bool,
        checkpoint_period: int,
    ) -> None:
        if images < 0:
            raise UserError(f"GAL.AUDITION.IMAGES is {images}: set it to 0 (off) or more.")
        if period < 1:
            raise UserError(f"GAL.AUDITION.PERIOD is {period}: set it to 1 or more.")
        self.auditioner, self.judge, self.pool = auditioner, judge, pool
        self.period, self.images, self.batch_size = period, images, batch_size
        self.weight, self.is_growing = weight, is_growing
        self.checkpoint_period = checkpoint_period
        self.ledger = judge.open_ledger(FOLDER)
        self.on_audition: Callable[[Contribution, Decision], None] | None = None
        self.last_images: list[dict] = []
        self._per_image = 4.0  # cut-outs that an image takes; found out
        self._owed = 0.0  # images of the budget that were not used yet
        self._pool_size = 0
        self._waiting = Waiting(judge.posterior)

    def before_train(self) -> None:
        self.ledger.resume(self.trainer.start_iter)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done < self.trainer.max_iter:
            start = time.perf_counter()
            count = self._audition(done)
            if comm.is_main_process():
                get_event_storage().put_scalars(
                    smoothing_hint=False,
                    **{
                        "gal/auditions": float(count),
                        "gal/audition_seconds": time.perf_counter() - start,
                    },
                )
        if done % self.checkpoint_period == 0 or done == self.trainer.max_iter:
            self.ledger.flush()

    def after_train(self) -> None:
        self.ledger.flush()

    def state_dict(self) -> dict:
        return {"per_image": self._per_image, "owed": self._owed, "pool_size": self._pool_size}

    def load_state_dict(self, state: dict) -> None:
        self._per_image, self._owed = state["per_image"], state["owed"]
        self._pool_size = state["pool_size"]

    def _audition(self, done: int) -> int:
        """One round; how many cut-outs auditioned. A collective call."""
        rank, world = comm.get_rank(), comm.get_world_size()
        chosen = comm.all_gather(self._choose(done) if comm.is_main_process() else None)[0]
        mine = chosen[rank::world]
        keys = np.stack([mine, np.full(len(mine), done, np.int64)], axis=1)
        groups = [keys[start : start + _GROUP] for start in range(0, len(keys), _GROUP)]
        self.auditioner.pool.refresh()
        parts, image_ids = [Contribution.empty(self.judge.scorer.heads)], []
        for samples in self.auditioner.images(groups, self.judge.seed):
            self.last_images = samples
            part = self.auditioner.score(samples)
            part.image_index += len(image_ids)
            image_ids += [sample["image_id"] for sample in samples]
            parts.append(part)
        contribution = Contribution.cat(parts)
        # The model has taken the step that it is judged after.
        step = done - 1
        self.judge.posterior.update(
            contribution, step, source=AUDITION, leave_out=self.judge.is_young(contribution)
        )
        accept = torch.ones(len(contribution), dtype=torch.bool)
        # By the policy that has no say: what is thought of them is the posterior's.
        decision = Decision.uniform(accept, AlwaysAccept.name)
        if self.on_audition is not None:
            self.on_audition(contribution, decision)
        self.ledger.append(step, contribution, replace(decision, policy=POLICY), image_ids)
        used = sum(comm.all_gather(len(image_ids)))
        self._owed -= used
        if used:
            self._per_image += 0.5 * (len(chosen) / used - self._per_image)
        return len(chosen)

    def _choose(self, done: int) -> np.ndarray:
        """(N,) int64 pool ids: what is new, and what is worth asking again, within the budget."""
        pool = self.pool()
        # What is found out serves the steps that are left: the budget falls to 0 linearly.
        left = 1 - done / self.trainer.max_iter
        self._owed += 2 * left * self.images * self.batch_size * self.period
        class_of = self.auditioner.class_of_category
        age, least = self.judge.scorer.cache.num_updates, self.judge.min_age
        categories = np.array(
            [
                category
                for category in pool.category_ids.tolist()
                if category in class_of and age[class_of[category]] >= least
            ],
            dtype=np.int64,
        )
        if len(categories) == 0:
            self._owed = 0.0  # nothing can be judged yet: what was saved is not spent at once
            return np.empty(0, np.int64)
        rng = np.random.default_rng((self.judge.seed, _STREAM, done))
        chosen = np.empty(0, np.int64)
        if self.is_growing and len(pool) != self._pool_size:
            self._pool_size = len(pool)
            chosen = self._waiting.of(pool)
            chosen = chosen[np.isin(pool.category_of(chosen), categories)]
        room = int(self._owed * self._per_image) - len(chosen)
        if room > 0:
            # What is pasted more often is asked more often.
            weight = np.array([self.weight[c] if self.weight else 1.0 for c in categories.tolist()])
            rows = rng.choice(categories, size=_SPARE * room, p=weight / weight.sum())
            candidates = np.stack([rng.choice(pool.ids(int(c)), size=_CANDIDATES) for c in rows])
            asked = choose_for_audition(candidates, self.judge.posterior, rng, room)
            chosen = np.union1d(chosen, asked)
        return rng.permutation(chosen)
