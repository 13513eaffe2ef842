"""A pool in the form that X-Paste and its successors read: PNG files and a JSON list of them.

:func:`gal_d2.pool.importer.list_xpaste` reads it (``tools/import_cutouts.py --xpaste``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from gal_d2.errors import UserError
from gal_d2.files.atomic_file import replacing
from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.pool.instance_pool import InstancePool

LIST = "pool.json"


def pool_to_xpaste(
    pool: InstancePool,
    folder: str | os.PathLike,
    category_ids: Iterable[int],
    *,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Path:
    """Write a pool as RGBA images and ``pool.json``: 0-based class index -> list of paths.

    A path begins with ``*``: the image is cropped already, as X-Paste's own cleaned pools have it.
    Paths start from the folder, so that it can be moved; X-Paste itself reads them from its working
    folder.

    Args:
        pool: all of it is written, but for what is corrupt.
        folder: created if it does not exist.
        category_ids: of all categories of the data set: class k is the (k + 1)-th smallest.
        progress: wraps the iterator over pool ids (tqdm).

    Returns:
        The path of the list.

    Raises:
        UserError: the pool has cut-outs of a category that is not among these.
    """
    class_of = {category: index for index, category in enumerate(sorted(category_ids))}
    unknown = [i for i in pool.category_ids.tolist() if i not in class_of]
    if unknown:
        raise UserError(
            f"the pool {pool.root} has cut-outs of category {unknown[0]}, which the annotations do "
            "not have: give those that it was made for (--annotations)."
        )
    folder = Path(folder)
    paths: dict[str, list[str]] = {}
    for category_id in pool.category_ids.tolist():
        index = str(class_of[category_id])
        (folder / "images" / index).mkdir(parents=True, exist_ok=True)
        paths[index] = []
    for pool_id in progress(pool.all_ids().tolist()):
        try:
            cut_out = pool.get(pool_id)
        except CorruptCutOutError:
            continue  # the pool has said so
        index = str(class_of[cut_out.category_id])
        name = f"images/{index}/{pool_id}.png"
        with replacing(folder / name) as temporary:
            Image.fromarray(cut_out.rgba).save(temporary, "PNG")
        paths[index].append(f"*{name}")
    with replacing(folder / LIST) as temporary:
        temporary.write_text(json.dumps(paths), encoding="utf-8")
    return folder / LIST
