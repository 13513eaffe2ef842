"""The miniature's pool: candidates of each category, good and bad as the config says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.writer import PoolWriter
from gal_d2.testbeds.miniature.categories import CATEGORIES
from gal_d2.testbeds.miniature.faults import (
    KINDS,
    blur,
    cut_off,
    false_colours,
    kind_counts,
    put_together,
)
from gal_d2.testbeds.miniature.identities import Deck
from gal_d2.testbeds.miniature.objects import (
    add_noise,
    draw_object,
    misplace_mask,
)
from gal_d2.testbeds.miniature.scenes import ID_OF_NAME, random_background
from gal_d2.testbeds.miniature.settings import MiniatureConfig
from gal_d2.testbeds.miniature.sources import Photograph

_POOL_SIDE = (48.0, 60.0)
_NOISE_SIGMA = (40.0, 80.0)
_BLUR_SIGMA = (3.0, 6.0)


def make_pool(
    folder: Path,
    deck: Deck,
    photographs: list[Photograph],
    config: MiniatureConfig,
    *,
    model: str,
) -> None:
    """Write the candidates of the generator ``model`` and, beside them, the truth."""
    truth: dict[str, list] = {
        key: []
        for key in ("pool_id", "category_id", "kind", "true_category_id", "ambiguous", "identity")
    }
    total = len(CATEGORIES) * config.pool_per_category
    shares = config.fault_shares()
    with (
        PoolWriter(
            folder / "pool", names={i: c.name for i, c in enumerate(CATEGORIES, start=1)}
        ) as writer,
        tqdm(total=total, desc="pool", disable=None) as progress,
    ):
        for category_id, category in enumerate(CATEGORIES, start=1):
            counts = kind_counts(shares[category_id - 1], config.pool_per_category)
            kinds = np.repeat(KINDS, counts)
            kinds = np.random.default_rng([config.seed, 3, category_id]).permutation(kinds)
            partner_id = ID_OF_NAME[category.partner]
            for index, kind in enumerate(kinds):
                rng = np.random.default_rng([config.seed, 3, category_id, index])
                true_id = partner_id if kind == "wrong_object" else category_id
                identity, grey = deck.draw(true_id)
                rgba = _draw_candidate(
                    grey, str(kind), photographs, lambda i=true_id: deck.draw(i)[1], rng
                )
                source = CutOutSource(
                    generator="imitation",
                    model=model,
                    prompt=f"a photo of a single {category.name.replace('_', ' ')}",
                    seed=index,
                )
                truth["pool_id"].append(writer.add(category_id, rgba, source=source, scores={}))
                truth["category_id"].append(category_id)
                truth["kind"].append(str(kind))
                truth["true_category_id"].append(true_id)
                truth["ambiguous"].append(category.ambiguous)
                truth["identity"].append(identity)
                progress.update()
    # The writer names shards by the clock. No one reads here yet, and equal seeds are to give equal
    # folders.
    for index, shard in enumerate(sorted((folder / "pool").glob("*.arrow"))):
        shard.rename(shard.with_name(f"{index:06d}.arrow"))
    pa.parquet.write_table(pa.table(truth), folder / "pool_truth.parquet")


def _draw_candidate(
    grey: np.ndarray,
    kind: str,
    photographs: list[Photograph],
    draw_another: Callable[[], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """(H, W, 4) uint8 RGBA of one candidate; ``draw_another`` gives one more grey image like it."""
    rgba = draw_object(grey, rng.uniform(*_POOL_SIDE), rng)
    if kind == "noise":
        return add_noise(rgba, rng.uniform(*_NOISE_SIGMA), rng)
    if kind == "misplaced_mask":
        size = 2 * max(rgba.shape[:2]) + 8
        background, _ = random_background(photographs, "train", rng, size)
        return misplace_mask(rgba, background, rng)
    if kind == "blur":
        return blur(rgba, rng.uniform(*_BLUR_SIGMA))
    if kind == "colour":
        return false_colours(rgba, rng)
    if kind == "cut_off":
        return cut_off(rgba, rng)
    if kind == "two_objects":
        return put_together(rgba, draw_object(draw_another(), rng.uniform(*_POOL_SIDE), rng), rng)
    return rgba
