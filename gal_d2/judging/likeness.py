"""Which cut-outs look like what they claim to be, told before any of them is pasted.

A detector learns rare classes late, and says little about their cut-outs until then. A network that
was trained on other pictures (ImageNet's, or CLIP's) needs a few real objects of each category to
tell categories apart: :class:`Likeness` fits a linear classifier to its vectors of them. To be like
the category's real objects says less than to be more like them than like those of others:
``benchmarks/likeness.py`` measures both.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm

from gal_d2.errors import UserError
from gal_d2.files.checksum import crc32_of
from gal_d2.files.sealed_arrays import DAMAGE, read_arrays, write_arrays
from gal_d2.generation.clip import ClipScorer
from gal_d2.generation.cutting import on_white
from gal_d2.generation.model_filters import ImageEmbedder, RealCrops, RealReference
from gal_d2.modeling.timm_embedder import TimmEmbedder
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.likeness_evidence import NOTHING_COMPARED, Likenesses
from gal_d2.selection.posterior import Posterior

logger = logging.getLogger(__name__)

LIKENESS_FILE = "likeness.npz"  # in OUTPUT_DIR
REAL_OBJECTS = 30  # of each category, the largest
_KEYS = ("GAL.LIKENESS.WEIGHTS", "GAL.LIKENESS.TIMM")
_GROUP = 64  # cut-outs that are in memory at a time
_KEPT_EVERY = 4096  # cut-outs of each process, or more: all are in this many parts at most
_MAX_PARTS = 64
_PENALTY = 0.5  # half the sum of squared weights, against the mean loss of the real objects
_MAX_ITERATIONS = 200
_DAMAGE = (*DAMAGE, KeyError)


class Likeness:
    """Log-probabilities that cut-outs show their categories.

    Args:
        embedder: the network.
        reference: gives real objects.
        category_ids: of the data set; those without a real object cannot be told from others.
        device: fits the classifier.

    Raises:
        UserError: there is no real object of any of them.
    """

    def __init__(
        self,
        embedder: ImageEmbedder,
        reference: RealReference,
        category_ids: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.embedder = embedder
        vectors, labels = [], []
        self._column: dict[int, int] = {}
        for category in tqdm(category_ids, desc="real objects", unit=" categories", disable=None):
            pictures = reference.pictures(category)
            if pictures:
                vectors.append(embedder.embed_images(pictures))
                labels += [len(self._column)] * len(pictures)
                self._column[category] = len(self._column)
        if not vectors:
            raise UserError(
                "GAL.LIKENESS compares cut-outs with real objects, but the training set has none "
                "that can be cut out: set GAL.LIKENESS.TIMM and GAL.LIKENESS.CLIP to ''."
            )
        self._weight, self._bias = fit_softmax(
            torch.from_numpy(np.concatenate(vectors)).to(device), torch.tensor(labels)
        )

    def of(self, category_id: int, cut_outs: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) float32 of cut-outs (h, w, 4) uint8 RGBA; NaN for a category without real objects.

        The probability is that among all categories with real objects, taken as equally frequent.
        """
        if category_id not in self._column or not cut_outs:
            return np.full(len(cut_outs), np.nan, np.float32)
        vectors = self.embedder.embed_images([on_white(rgba) for rgba in cut_outs])
        logits = torch.from_numpy(vectors) @ self._weight.T + self._bias
        return F.log_softmax(logits, dim=1)[:, self._column[category_id]].numpy()


def fit_softmax(vectors: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression in which each class counts the same.

    Minimises n/K sum_k mean over class k of the cross entropy, plus 1/2 the squared weights: of
    unit vectors in some hundred dimensions a few each class tell apart all, so that the penalty
    decides. It is convex; L-BFGS ends at its minimum.

    Args:
        vectors: (n, D) float32, of length 1.
        labels: (n,) int64 on the CPU, from 0, none left out.

    Returns:
        Weights (K, D) and biases (K,), float32 on the CPU.
    """
    count = torch.bincount(labels)
    balance = (len(labels) / (len(count) * count.float()))[labels].to(vectors.device)
    labels = labels.to(vectors.device)
    weight = torch.zeros(len(count), vectors.shape[1], device=vectors.device, requires_grad=True)
    bias = torch.zeros(len(count), device=vectors.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(vectors @ weight.T + bias, labels, reduction="none")
        loss = (balance * losses).sum() + _PENALTY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach().cpu(), bias.detach().cpu()


def build_likeness(cfg: CfgNode, dataset_dicts: Sequence[dict], class_of: dict) -> Likeness:
    """The one that ``GAL.LIKENESS`` describes.

    Args:
        cfg: the whole config.
        dataset_dicts: of the training set.
        class_of: category id (as in the JSON) -> class index.

    Raises:
        UserError: the network cannot be loaded, or there are no real objects.
    """
    categories = sorted(class_of, key=class_of.get)
    reference = RealCrops(dataset_dicts, categories, count=REAL_OBJECTS)
    return Likeness(load_embedder(cfg), reference, categories, cfg.MODEL.DEVICE)


def load_embedder(cfg: CfgNode) -> ImageEmbedder:
    """The network that ``GAL.LIKENESS`` names.

    Raises:
        UserError: it cannot be loaded.
    """
    node, device = cfg.GAL.LIKENESS, torch.device(cfg.MODEL.DEVICE)
    if node.TIMM:
        return TimmEmbedder(node.TIMM, node.WEIGHTS, device, _KEYS)
    return ClipScorer.load(node.CLIP, device=device, dtype=torch.float32, key="GAL.LIKENESS.CLIP")


def made_with(cfg: CfgNode, class_of: dict) -> str:
    """What likenesses depend on besides the cut-outs, whose ids are made of their pixels."""
    node = cfg.GAL.LIKENESS
    weights = crc32_of(node.WEIGHTS) if node.WEIGHTS and Path(node.WEIGHTS).is_file() else None
    return json.dumps([node.TIMM, node.CLIP, weights, list(cfg.DATASETS.TRAIN), sorted(class_of)])


class LikenessFile:
    """What was compared already, in a file of the run's folder: a network looks at each once.

    Args:
        path: of the file.
        made_with: what the values depend on, in words; those of others are not taken.
    """

    def __init__(self, path: Path, made_with: str) -> None:
        self.path, self.made_with = path, made_with

    def read(self) -> Likenesses:
        """What is there; a file that cannot be read is made anew, with a warning."""
        if not self.path.is_file():
            return NOTHING_COMPARED
        try:
            made_with, likeness = _read(self.path)
        except _DAMAGE as error:
            logger.warning("%s cannot be read (%s): it is made anew.", self.path, error)
            return NOTHING_COMPARED
        if made_with != self.made_with:
            logger.warning("%s was made with another network: it is made anew.", self.path)
            return NOTHING_COMPARED
        return likeness

    def write(self, likeness: Likenesses) -> None:
        """Keep all that is known.

        Raises:
            UserError: it cannot be written.
        """
        try:
            arrays = {"pool_ids": likeness[0], "values": likeness[1]}
            write_arrays(self.path, arrays | {"made_with": np.array(self.made_with)})
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror or error}): free some space or "
                "set OUTPUT_DIR to a place that you can write to."
            ) from error


def stored_likeness(output_dir: Path) -> Likenesses:
    """What a run has kept; nothing where it compared nothing.

    Raises:
        UserError: its file cannot be read.
    """
    path = output_dir / LIKENESS_FILE
    if not path.is_file():
        return NOTHING_COMPARED
    try:
        return _read(path)[1]
    except _DAMAGE as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete it, and do without what it says."
        ) from error


def _read(path: Path) -> tuple[str, Likenesses]:
    arrays = read_arrays(path)
    return str(arrays["made_with"]), (arrays["pool_ids"], arrays["values"])


class LikenessHook(HookBase):
    """Compares cut-outs with real objects before any sample may draw them.

    It stands after what lets the pool grow and before what takes snapshots, with their period.

    Args:
        posterior: that learns of it, the same on all processes.
        pool: of what samples may draw from, on the main process.
        reader: the same pool, opened for this.
        build: loads the network and shows it real objects; called if there is anything to compare.
        kept: file of what was compared.
        period: steps.
    """

    def __init__(
        self,
        posterior: Posterior,
        pool: Callable[[], InstancePool],
        reader: InstancePool,
        build: Callable[[], Likeness],
        kept: LikenessFile,
        *,
        period: int,
    ) -> None:
        self.posterior, self.pool, self.reader = posterior, pool, reader
        self.build, self.kept, self.period = build, kept, period
        self._likeness: Likeness | None = None
        self._shards: frozenset[str] = frozenset()

    def before_train(self) -> None:
        is_main = comm.is_main_process()
        self.posterior.add_likeness(comm.all_gather(self.kept.read() if is_main else None)[0])
        self._compare()

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            self._compare()

    def _compare(self) -> None:
        """Look at what is new in the pool. A collective call."""
        new = comm.all_gather(self._new_ids() if comm.is_main_process() else None)[0]
        if not len(new):
            return
        self.reader.refresh()
        if self._likeness is None:
            self._likeness = self.build()
        rank, world = comm.get_rank(), comm.get_world_size()
        is_main = comm.is_main_process()
        # What is interrupted loses the last part only; all that is known is stored with each part.
        size = max(_KEPT_EVERY * world, len(new) // _MAX_PARTS)
        with tqdm(total=len(new), desc="comparing", unit=" cut-outs", disable=None) as bar:
            for start in range(0, len(new), size):
                part = new[start : start + size]
                found = comm.all_gather(self._values(part[rank::world]))
                self.posterior.add_likeness(tuple(map(np.concatenate, zip(*found, strict=True))))
                if is_main:
                    self.kept.write(self.posterior.likeness)
                bar.update(len(part))
        logger.info("%d cut-outs were compared with real objects.", len(new))

    def _new_ids(self) -> np.ndarray:
        pool = self.pool()
        shards = frozenset(pool.shards)
        ids = pool.ids_in(shards - self._shards)
        self._shards = shards
        return np.setdiff1d(ids, self.posterior.likeness[0], assume_unique=True)

    def _values(self, pool_ids: np.ndarray) -> Likenesses:
        values = np.full(len(pool_ids), np.nan, np.float32)
        categories = self.reader.category_of(pool_ids)
        for category in np.unique(categories).tolist():
            mine = np.flatnonzero(categories == category)
            for rows in np.split(mine, range(_GROUP, len(mine), _GROUP)):
                cut_outs = [self.reader.get_rgba(pool_id) for pool_id in pool_ids[rows].tolist()]
                readable = rows[[rgba is not None for rgba in cut_outs]]
                there = [rgba for rgba in cut_outs if rgba is not None]
                values[readable] = self._likeness.of(category, there)
        return pool_ids, values
