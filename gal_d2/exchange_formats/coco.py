"""A pool as a COCO data set, and the objects of a COCO or LVIS data set as a pool."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.data import transforms as T
from PIL import Image
from pycocotools import mask as mask_utils

from gal_d2.copy_paste.masks import Box, transform_segmentations
from gal_d2.copy_paste.real_instances import can_be_cut_out
from gal_d2.datasets.registration import load_instances, load_metadata
from gal_d2.errors import UserError
from gal_d2.files.atomic_file import replacing
from gal_d2.files.image_file import UnreadableImageError, read_training_image
from gal_d2.pool.cut_out import CorruptCutOutError, CutOut, CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.usable import foreground_threshold
from gal_d2.pool.verdicts import BAD, GOOD, PoolVerdicts, signs_of
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.ledger import Ledger

logger = logging.getLogger(__name__)

ANNOTATIONS, IMAGES = "annotations.json", "images"
_WORDS = {1: GOOD, -1: BAD, 0: ""}
_FROM_LEDGER = ("count", "score_mean", "score_std", "phi_mean", "acceptance_rate")


def pool_to_coco(
    pool: InstancePool,
    folder: str | os.PathLike,
    *,
    ledger: Ledger | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Path:
    """Write a pool as a data set in COCO's format, an image with one object for each cut-out.

    ``images/<pool id>.png`` has alpha; the object's mask is where the cut-out would be pasted. An
    image also has the cut-out's ``pool_id`` (as text), ``generator``, ``model``, ``prompt``,
    ``seed``, ``origin`` and ``filter_scores``; an annotation has the ``verdict`` of people, and
    what the ledger has of it.

    Args:
        pool: all of it is written, but for what is corrupt or cannot be pasted.
        folder: created if it does not exist.
        ledger: of a training or a scoring of this pool.
        progress: wraps the iterator over pool ids (tqdm).

    Returns:
        The path of the annotation file.

    Raises:
        UserError: the pool's categories have no names.
    """
    names = pool.category_names
    if names is None:
        raise UserError(
            f"the pool {pool.root} does not know what its categories are called: open it with the "
            "annotations that it was made for (--annotations)."
        )
    folder = Path(folder)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    scores = {} if ledger is None else _scores(ledger)
    judged = PoolVerdicts(pool)()
    images, annotations = [], []
    for pool_id in progress(pool.all_ids().tolist()):
        try:
            cut_out = pool.get(pool_id)
        except CorruptCutOutError:
            continue  # the pool has said so
        number = len(images) + 1
        annotation = _annotation(cut_out, number)
        if annotation is None:
            continue
        annotation["verdict"] = _WORDS[int(signs_of(np.array([pool_id]), judged)[0])]
        annotations.append(annotation | scores.get(pool_id, {}))
        images.append(_image(cut_out, number))
        with replacing(folder / images[-1]["file_name"]) as temporary:
            Image.fromarray(cut_out.rgba).save(temporary, "PNG")
    content = {
        "info": {"description": f"cut-outs of the instance pool {pool.root.name}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": names[i]} for i in sorted(names)],
    }
    path = folder / ANNOTATIONS
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    return path


def _scores(ledger: Ledger) -> dict[int, dict]:
    table = ledger.by_instance()
    columns = [name for name in _FROM_LEDGER if name in table.column_names]
    rows = table.select(["pool_id", *columns]).to_pylist()
    return {row.pop("pool_id"): row for row in rows}


def _annotation(cut_out: CutOut, number: int) -> dict | None:
    """The one object of an image; None if it could not be pasted."""
    alpha = np.ascontiguousarray(cut_out.rgba[..., 3])
    mask = (alpha >= foreground_threshold(alpha)).astype(np.uint8)
    if not mask.any():
        return None
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {
        "id": number,
        "image_id": number,
        "category_id": cut_out.category_id,
        "bbox": mask_utils.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


def _image(cut_out: CutOut, number: int) -> dict:
    source = cut_out.source
    return {
        "id": number,
        "file_name": f"{IMAGES}/{cut_out.pool_id}.png",
        "height": cut_out.rgba.shape[0],
        "width": cut_out.rgba.shape[1],
        "pool_id": str(cut_out.pool_id),
        "generator": source.generator,
        "model": source.model,
        "prompt": source.prompt,
        "seed": source.seed,
        "origin": source.origin,
        "filter_scores": cut_out.scores,
    }


@dataclass
class CutReport:
    """How a data set's objects became a pool.

    Attributes:
        added: number of cut-outs stored, by category id.
        already_stored: objects that were in the pool before.
        left_out: crowds, objects without a mask and small ones.
        unreadable: path of each image that could not be read, and why.
    """

    added: Counter = field(default_factory=Counter)
    already_stored: int = 0
    left_out: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def pool_from_coco(
    dataset: str,
    root: str | os.PathLike,
    *,
    min_size: float = 32.0,
    only: Collection[int] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> CutReport:
    """Cut a data set's own objects out, into a pool; what is in it already is skipped.

    Args:
        dataset: name of a registered data set in COCO's or LVIS's format
            (:func:`gal_d2.datasets.registration.register_instances`).
        root: the pool's folder; created if it does not exist.
        min_size: smaller objects, by sqrt(width * height) of their box in pixels, are left out.
        only: category ids to cut out; all by default.
        progress: wraps the iterator over images (tqdm).

    Raises:
        UserError: the data set is not there or broken, or the pool's ids mean other categories.
    """
    metadata = load_metadata(dataset)
    class_of = metadata.thing_dataset_id_to_contiguous_id
    category_of = {index: category for category, index in class_of.items()}
    names = {category: metadata.thing_classes[index] for category, index in class_of.items()}
    report = CutReport()
    known = InstancePool(root, allow_empty=True)
    with PoolWriter(root, known=known, names=names) as writer:
        for record in progress(load_instances(dataset)):
            wanted = [
                annotation
                for annotation in record["annotations"]
                if only is None or category_of[annotation["category_id"]] in only
            ]
            objects = [a for a in wanted if can_be_cut_out(a, min_size)]
            report.left_out += len(wanted) - len(objects)
            if not objects:
                continue
            try:
                image = read_training_image(record, "RGB")
            except UnreadableImageError as error:
                report.unreadable[record["file_name"]] = str(error)
                continue
            canvas = Box(0, 0, image.shape[1], image.shape[0])
            segmentations = [annotation["segmentation"] for annotation in objects]
            masks = transform_segmentations(segmentations, T.NoOpTransform(), canvas)
            for number, (annotation, mask) in enumerate(zip(objects, masks, strict=True)):
                if mask is None:
                    report.left_out += 1
                    continue
                alpha = mask.bitmap.view(np.uint8) * np.uint8(255)
                category_id = category_of[annotation["category_id"]]
                origin = f"{Path(record['file_name']).name}#{number}"
                before = writer.added
                writer.add(
                    category_id,
                    np.dstack((image[mask.box.slices], alpha)),
                    source=CutOutSource("real", dataset, origin=origin),
                )
                report.added[category_id] += writer.added - before
                report.already_stored += 1 - (writer.added - before)
    report.added = +report.added
    return report
