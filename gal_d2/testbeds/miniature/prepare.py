"""The miniature LVIS: a long-tailed set of small scenes and a pool of which half is bad.

Scenes are Fashion-MNIST items, enlarged and tinted, on crops of photographs; the annotations have
every field of LVIS v1. The pool imitates a text-to-image generator whose mistakes are known: each
category has one partner that is drawn in its place, and for *ambiguous* categories most of what
is drawn is the partner. The truth about the pool lies in a file of its own, which only
benchmarks read.

Individuals never meet: those of the validation scenes come from Fashion-MNIST's test split, those
of the training scenes and of the pool from disjoint parts of its training split. Backgrounds are
cut from the left part of a photograph for training and for the pool, from the right part for
validation.

Layout of the output folder::

    annotations/miniature_{train,val}.json
    images/{train,val}/000001.png ...
    pool/                 an InstancePool
    pool_truth.parquet    pool_id, category_id, kind, true_category_id, ambiguous, identity
    miniature.json        what it was made with: the stamp by which a second run knows it
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from gal_d2.errors import UserError
from gal_d2.testbeds.miniature.candidates import make_pool
from gal_d2.testbeds.miniature.identities import deal_identities
from gal_d2.testbeds.miniature.scenes import category_records, make_scenes
from gal_d2.testbeds.miniature.settings import MiniatureConfig
from gal_d2.testbeds.miniature.sources import (
    Fetch,
    ObjectImages,
    Photograph,
    has_fashion_mnist,
    load_objects,
    load_photographs,
)

# Raise it with any change to what is drawn: prepared miniatures of an older version are made anew.
logger = logging.getLogger(__name__)
VERSION = 1
STAMP = "miniature.json"


def prepare_miniature(
    output: Path | str,
    sources: Path | str,
    config: MiniatureConfig | None = None,
    *,
    force: bool = False,
    fetch: Fetch | None = None,
) -> Path:
    """Make the miniature, or find it made.

    It is built in a hidden folder beside ``output`` and renamed when complete: an interrupted run
    leaves nothing under the final name, and the next run tidies up after it.

    Args:
        output: folder of the miniature; what an earlier run left there is replaced.
        sources: folder that caches fetched source images.
        config: defaults to ``MiniatureConfig()``.
        force: make it even if it is there with this config.
        fetch: fetches objects that are missing into ``sources``; None: they are not fetched.

    Returns:
        ``output``.

    Raises:
        UserError: ``output`` holds something else, or the source images cannot be had.
    """
    output, sources, config = Path(output), Path(sources), config or MiniatureConfig()
    if not force and _is_current(output, sources, config):
        logger.info("The miniature in %s is up to date.", output)
        return output
    _check_replaceable(output)
    with _exclusive(output):
        # Another process may have made it while this one waited for the lock.
        if not force and _is_current(output, sources, config):
            return output
        start = time.perf_counter()
        objects = load_objects(sources, config.object_source, fetch)
        photographs = load_photographs()
        with _renamed_when_complete(output) as folder:
            _build(folder, objects, photographs, config)
        logger.info("Prepared %s in %.1f s.", output, time.perf_counter() - start)
    return output


def _build(
    folder: Path, objects: ObjectImages, photographs: list[Photograph], config: MiniatureConfig
) -> None:
    decks = deal_identities(objects, config.seed)
    splits = {
        split: make_scenes(folder / "images" / split, split, decks[split], photographs, config)
        for split in ("train", "val")
    }
    categories = category_records(splits["train"].annotations)
    (folder / "annotations").mkdir()
    for split, scenes in splits.items():
        _write_json(
            folder / "annotations" / f"miniature_{split}.json",
            {
                "info": {
                    "description": f"miniature LVIS, {split}",
                    "version": str(VERSION),
                    "objects": objects.name,
                },
                "licenses": [{"id": 1, "name": "see the sources", "url": ""}],
                "images": scenes.images,
                "annotations": scenes.annotations,
                # Objects that are in the picture and, as in LVIS, not in the annotations: the
                # reason why an image has non-exhaustive or unlisted categories.
                "unannotated": scenes.unannotated,
                "categories": categories,
            },
        )
    make_pool(folder, decks["pool"], photographs, config, model=objects.name)
    _write_json(
        folder / STAMP,
        {
            **_stamp(config),
            "objects": objects.name,
            "photographs": [photograph.name for photograph in photographs],
        },
    )


def _stamp(config: MiniatureConfig) -> dict:
    fields = dataclasses.asdict(config)
    # Options that came later are named only where they are given: what was made stays valid.
    default = MiniatureConfig()
    for name in ("blur", "colour", "cut_off", "two_objects", "bad"):
        if fields[name] == getattr(default, name):
            del fields[name]
    return {"version": VERSION, "config": fields}


def _is_current(output: Path, sources: Path, config: MiniatureConfig) -> bool:
    try:
        found = json.loads((output / STAMP).read_text())
        if any(found.get(key) != value for key, value in _stamp(config).items()):
            return False
    except (OSError, ValueError, AttributeError):
        return False
    # Digits were the last resort: make it anew once the real objects are at hand.
    makeshift = config.object_source == "auto" and found.get("objects") == "digits"
    if makeshift and has_fashion_mnist(sources):
        return False
    parts = ("annotations", "images/train", "images/val", "pool", "pool_truth.parquet")
    return all((output / part).exists() for part in parts)


def _check_replaceable(output: Path) -> None:
    if output.is_dir():
        if (output / STAMP).is_file() or not any(output.iterdir()):
            return
    elif not output.exists():
        return
    raise UserError(
        f"{output} exists and is no prepared miniature ({STAMP} is not in it): "
        "choose another --output, or remove it yourself."
    )


@contextlib.contextmanager
def _exclusive(output: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        file = (output.parent / f".{output.name}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"{output.parent} cannot be written to ({error.strerror}): choose another --output."
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _renamed_when_complete(output: Path) -> Iterator[Path]:
    """Give a folder to build in, which takes the place of ``output`` at the end."""
    for leftover in output.parent.glob(f".{output.name}.partial*"):
        shutil.rmtree(leftover)
    folder = output.parent / f".{output.name}.partial"
    folder.mkdir()
    try:
        yield folder
        if output.exists():
            output.rename(output.parent / f".{output.name}.partial-old")
        folder.rename(output)
    finally:
        for leftover in output.parent.glob(f".{output.name}.partial*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))
