"""A generator that draws from candidates that are there: a pool, or a folder of images.

It stands in for a text-to-image model where there is none (the miniature's imitation generator is
the pool of candidates beside it), and feeds a user's own pictures through segmenters and filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.generation.generator import NO_CANDIDATE, GeneratedImage, GenerationRequest
from gal_d2.pool.cut_out import CorruptCutOutError, CutOutSource
from gal_d2.pool.importer import ImageFile, has_alpha, list_folder
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import shard_names
from gal_d2.pool.usable import OPAQUE, problem_of

UNREADABLE = "unreadable"  # the candidate's file or row is damaged


class Candidates(Protocol):
    """Pictures by category, in a fixed order.

    Attributes:
        draws_alpha: whether all of them are cut out.
    """

    draws_alpha: bool

    def count(self, category_id: int) -> int:
        """How many there are of a category."""
        ...

    def read(self, category_id: int, position: int, request: GenerationRequest) -> GeneratedImage:
        """The one at ``position`` of its category, as the answer to ``request``."""
        ...


class PoolCandidates:
    """The cut-outs of a pool. They keep their source, and so their pool id.

    Args:
        pool: read from.
    """

    draws_alpha = True

    def __init__(self, pool: InstancePool) -> None:
        self.pool = pool

    def count(self, category_id: int) -> int:
        return len(self.pool.ids(category_id))

    def read(self, category_id: int, position: int, request: GenerationRequest) -> GeneratedImage:
        pool_id = int(self.pool.ids(category_id)[position])
        try:
            cut_out = self.pool.get(pool_id)
        except CorruptCutOutError:  # the pool has logged it
            source = CutOutSource("pool", str(self.pool.root))
            return GeneratedImage(request, None, source, reason=UNREADABLE)
        rgba = cut_out.rgba
        return GeneratedImage(request, rgba[..., :3], cut_out.source, rgba[..., 3], finished=True)


class FolderCandidates:
    """Image files in a folder for each category. Those without transparency are yet to be cut out.

    Args:
        root: its folders are called by category name, synonym or id.
        names: the categories.

    Raises:
        UserError: there is no such folder, or nothing of these categories in it.
    """

    draws_alpha = False

    def __init__(self, root: str | Path, names: CategoryNames) -> None:
        self._files: dict[int, list[ImageFile]] = {}
        for file in list_folder(root, names).files:
            self._files.setdefault(file.category_id, []).append(file)
        if not self._files:
            raise UserError(
                f"{root} (GAL.GENERATOR.CANDIDATES) has no image in a folder that is called by a "
                "category's name, synonym or id; rename its folders"
            )

    def count(self, category_id: int) -> int:
        return len(self._files.get(category_id, ()))

    def read(self, category_id: int, position: int, request: GenerationRequest) -> GeneratedImage:
        file = self._files[category_id][position]
        source = CutOutSource("folder", origin=file.label)
        try:
            with Image.open(file.path) as image:
                transparent = has_alpha(image)
                pixels = np.asarray(
                    ImageOps.exif_transpose(image).convert("RGBA" if transparent else "RGB")
                )
        # Pillow raises SyntaxError for a broken PNG.
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return GeneratedImage(request, None, source, reason=UNREADABLE)
        # An alpha channel that hides nothing: the object is yet to be cut out.
        transparent = transparent and problem_of(pixels, is_picture=True) != OPAQUE
        return GeneratedImage(
            request,
            np.ascontiguousarray(pixels[..., :3]),
            source,
            pixels[..., 3] if transparent else None,
            finished=transparent,
        )


class CutoutGenerator:
    """Draws each candidate of a category once, in a random order.

    Image ``index`` of a category is the ``index``-th in that order, which depends on ``seed`` and
    the category only. A request beyond the last one gets :data:`NO_CANDIDATE`.

    Args:
        candidates: drawn from.
        seed: of the orders.
    """

    def __init__(self, candidates: Candidates, seed: int = 0) -> None:
        self.candidates = candidates
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    @property
    def draws_alpha(self) -> bool:
        """Whether every image comes cut out, so that no segmenter is needed."""
        return self.candidates.draws_alpha

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GeneratedImage]:
        """See :class:`gal_d2.generation.generator.InstanceGenerator`."""
        return [self._draw(request) for request in requests]

    def _draw(self, request: GenerationRequest) -> GeneratedImage:
        order = self._order(request.category_id)
        if request.index >= len(order):
            return GeneratedImage(request, None, CutOutSource("candidates"), reason=NO_CANDIDATE)
        return self.candidates.read(request.category_id, int(order[request.index]), request)

    def _order(self, category_id: int) -> np.ndarray:
        if category_id not in self._orders:
            rng = np.random.default_rng([4, self.seed, category_id])
            self._orders[category_id] = rng.permutation(self.candidates.count(category_id))
        return self._orders[category_id]


def open_candidates(path: str | Path, names: CategoryNames) -> Candidates:
    """The candidates in a folder: a pool if it has shards, else category folders with images.

    Raises:
        UserError: it is neither.
    """
    if not path or not Path(path).is_dir():
        raise UserError(
            f"GAL.GENERATOR.CANDIDATES is '{path}', which is no folder: name a pool, or a folder "
            "that holds a folder of images for each category"
        )
    if shard_names(Path(path)):
        return PoolCandidates(InstancePool(path, names=names.names))
    return FolderCandidates(path, names)
