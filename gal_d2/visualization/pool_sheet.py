"""Pictures of what is in an instance pool, a sheet for each category."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gal_d2.datasets.annotation_file import Category
from gal_d2.files.file_name import as_file_name
from gal_d2.pool.cut_out import CorruptCutOutError, CutOut
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.visualization.contact_sheet import save_png, tile
from gal_d2.visualization.fitted import draw_fitted

_CELL = 128
_LIGHT, _DARK, _SQUARE = 235, 200, 8  # a chequerboard shows what is transparent


def write_pool_sheets(
    root: str | Path, categories: Iterable[Category], folder: str | Path, *, count: int = 48
) -> list[Path]:
    """Write ``ID_NAME.png`` for each category that the pool has, and return the paths.

    Args:
        root: the pool's folder.
        categories: which ones.
        folder: created if it does not exist.
        count: cut-outs of a sheet, spread evenly over the category's ids.
    """
    categories = list(categories)
    pool = InstancePool(root, allow_empty=True, names={c.id: c.name for c in categories})
    paths = []
    for category in categories:
        ids = pool.ids(category.id)
        if not len(ids):
            continue
        chosen = ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]
        pictures, captions = [], []
        for pool_id in chosen:
            try:
                cut_out = pool.get(int(pool_id))
            except CorruptCutOutError:  # the pool has logged it
                continue
            pictures.append(on_chequers(cut_out.rgba, _CELL))
            captions.append(_caption(cut_out))
        if not pictures:
            continue
        title = f"{category.name}: {len(pictures)} of {len(ids):,} cut-outs"
        sheet = tile(pictures, columns=8, title=title, captions=captions)
        file_name = f"{category.id:04d}_{as_file_name(category.name)}.png"
        paths.append(save_png(sheet, Path(folder) / file_name))
    return paths


def on_chequers(rgba: np.ndarray, side: int) -> np.ndarray:
    """A cut-out (H, W, 4) uint8, fitted into (side, side, 3) uint8 RGB over a chequerboard."""
    rows, columns = np.indices((side, side)) // _SQUARE
    grey = np.where((rows + columns) % 2, _LIGHT, _DARK).astype(np.uint8)
    canvas = np.repeat(grey[..., None], 3, axis=2)
    draw_fitted(canvas, rgba)
    return canvas


def _caption(cut_out: CutOut) -> str:
    score = cut_out.scores.get("clip_text")
    return f"{cut_out.pool_id % 10**6:06d}" + (f"  {score:.2f}" if score is not None else "")
