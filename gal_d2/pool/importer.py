"""Imports cut-outs that lie on disk as images into an instance pool.

Two layouts are known: a folder with a folder of RGBA images for each category, and the JSON list of
X-Paste (class index -> paths).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gal_d2.datasets.category_names import CategoryNames, read_json
from gal_d2.datasets.image_paths import leaves_folder
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import ALPHA_MODES, CutOutSource, crop_to_alpha, encode_rgba
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.usable import PROBLEMS, is_sliver, problem_of
from gal_d2.pool.writer import PoolWriter

logger = logging.getLogger(__name__)

# JPEG and BMP are taken up to be refused by name: a folder of them is a likely mistake.
IMAGE_SUFFIXES = frozenset({".png", ".webp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg", ".bmp"})
_PRECROPPED = "*"
# What desktops, archivers and network drives leave between a user's folders.
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


@dataclass(frozen=True)
class ImageFile:
    """One image to import.

    Attributes:
        path: where it is.
        label: its name in the pool's ``origin`` column, e.g. the path as the list has it.
        category_id: the category's id as in the annotation JSON.
        crop: cut it to the box of its alpha channel; else it is stored as it is.
    """

    path: Path
    label: str
    category_id: int
    crop: bool = True


@dataclass
class ImportList:
    """What an importer found: the images, and category names that mean nothing.

    Attributes:
        files: the images to import.
        unknown: for each unknown category name, its number of images and the nearest known names.
    """

    files: list[ImageFile] = field(default_factory=list)
    unknown: dict[str, tuple[int, list[str]]] = field(default_factory=dict)


@dataclass
class ImportReport:
    """How an import went.

    Attributes:
        added: number of cut-outs stored, by category id.
        already_stored: number of images that were in the pool before, or occur twice.
        failed: path of each image that could not be imported, and why.
        problems: how many of these were read but cannot be pasted, by key of
            :data:`gal_d2.pool.usable.PROBLEMS`.
        slivers: paths of images, stored now, of which most is more than half transparent.
    """

    added: Counter = field(default_factory=Counter)
    already_stored: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    problems: Counter = field(default_factory=Counter)
    slivers: list[str] = field(default_factory=list)


def list_folder(
    root: str | os.PathLike, names: CategoryNames, only: Collection[int] | None = None
) -> ImportList:
    """The images of a folder of category folders, at any depth below these.

    Args:
        root: its folders are called by category name, synonym or id.
        names: the categories.
        only: category ids to import; all by default.

    Raises:
        UserError: ``root`` is no folder, or has no folders in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the category folders")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))
    if not folders:
        raise UserError(
            f"{root} has no category folders in it; put the images of each category into a folder "
            "of its name"
        )
    result = ImportList()
    for folder in folders:
        category_id = names.resolve(folder.name)
        if category_id is not None and folder.name == str(category_id):
            logger.warning(
                "%s has only an id for a name: it is taken as '%s', which has this id in the "
                "annotations; exporters number differently, so look whether it is.",
                folder,
                names.names[category_id],
            )
        if category_id is not None and only is not None and category_id not in only:
            continue
        images = sorted(
            p
            for p in folder.rglob("*")
            if p.suffix.lower() in IMAGE_SUFFIXES
            and not any(is_hidden(part) for part in p.relative_to(root).parts)
            and not p.is_dir()
        )
        if category_id is None:
            result.unknown[folder.name] = (len(images), names.nearest(folder.name))
            continue
        result.files += [ImageFile(p, p.relative_to(root).as_posix(), category_id) for p in images]
    return result


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not the user's: hidden, or made by a desktop or an archiver.

    macOS puts a "._name.png" beside a "name.png" in archives and on foreign drives; it ends like an
    image and is none.
    """
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def list_xpaste(
    json_file: str | os.PathLike,
    names: CategoryNames,
    only: Collection[int] | None = None,
    image_root: str | os.PathLike | None = None,
) -> ImportList:
    """The images of an X-Paste pool: a JSON object, 0-based class index -> list of paths.

    A path that begins with ``*`` is an RGBA image that is cropped already and is stored as it is;
    any other is cropped to the box of its alpha channel.

    Args:
        json_file: the list.
        names: the categories; class index k is the one with the (k + 1)-th smallest id.
        only: category ids to import; all by default.
        image_root: folder that relative paths start from; by default that of ``json_file``.

    Raises:
        UserError: the file is missing or of another form, or names images outside of the folder.
    """
    remedy = "give a JSON object that maps class indices to lists of paths"
    content = read_json(json_file, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{json_file} holds a {type(content).__name__}; {remedy}")
    base = Path(json_file).parent if image_root is None else Path(image_root)
    result = ImportList()
    for key, paths in content.items():
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise UserError(f"{json_file}: '{key}' is not a list of paths; {remedy}")
        index = int(key) if key.isascii() and key.isdigit() else -1
        if not 0 <= index < len(names.ids):
            result.unknown[key] = (len(paths), [] if key.isdigit() else names.nearest(key))
            continue
        category_id = names.ids[index]
        if only is not None and category_id not in only:
            continue
        for path in paths:
            label = path.removeprefix(_PRECROPPED)
            if leaves_folder(base, label):
                raise UserError(
                    f"{json_file} names '{label}', which lies outside of {base}: give the folder "
                    "that holds all images (--image-root)"
                )
            crop = not path.startswith(_PRECROPPED)
            result.files.append(ImageFile(base / label, label, category_id, crop))
    return result


def import_files(
    files: Iterable[ImageFile],
    root: str | os.PathLike,
    source: CutOutSource,
    *,
    names: CategoryNames | None = None,
    workers: int = 4,
    allow_opaque: bool = False,
    progress: Callable[[Iterator], Iterable] = iter,
) -> ImportReport:
    """Append images to the pool in ``root``; those that are in it already are skipped.

    An interrupted import can be run again: images that are stored are recognised by their bytes,
    without being decoded. An image that cannot be read, or not be pasted
    (:func:`gal_d2.pool.usable.problem_of`), is named in the report and skipped.

    Args:
        files: the images.
        root: the pool's folder; created if it does not exist.
        source: what to record of each (its ``origin`` is filled in).
        names: the categories, which are recorded too.
        workers: threads that read, decode and encode.
        allow_opaque: take images that are opaque from corner to corner, too. Those that are cropped
            already are taken in any case, for an object may fill its box.
        progress: wraps the iterator over the images (tqdm).

    Raises:
        UserError: the pool cannot be written to, or its ids mean other categories.
    """
    pool = InstancePool(root, allow_empty=True)
    stored = _stored_fingerprints(pool)
    report = ImportReport()

    def prepare(file: ImageFile) -> tuple[ImageFile, _Prepared | str | None]:
        try:
            return file, _prepare(file, source, stored, allow_opaque)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow raises SyntaxError for a broken PNG.
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            return file, reason or type(error).__name__

    kept = None if names is None else names.names
    with (
        PoolWriter(root, known=pool, names=kept) as writer,
        ThreadPoolExecutor(workers) as threads,
    ):
        for file, result in progress(_map_in_windows(threads, prepare, files, 32 * workers)):
            if isinstance(result, str):
                report.failed[str(file.path)] = PROBLEMS.get(result, result)
                if result in PROBLEMS:
                    report.problems[result] += 1
            elif result is None:
                report.already_stored += 1
            else:
                before = writer.added
                writer.add_encoded(
                    file.category_id,
                    result.encoded,
                    result.height,
                    result.width,
                    source=result.source,
                )
                report.added[file.category_id] += writer.added - before
                report.already_stored += 1 - (writer.added - before)
                if result.is_sliver and writer.added > before:
                    report.slivers.append(str(file.path))
    report.added = +report.added
    return report


@dataclass(frozen=True)
class _Prepared:
    encoded: bytes
    height: int
    width: int
    source: CutOutSource
    is_sliver: bool


def _prepare(
    file: ImageFile, source: CutOutSource, stored: Collection[str], allow_opaque: bool
) -> _Prepared | str | None:
    """Read one image; None if the pool has it, a key of ``PROBLEMS`` if it cannot be used.

    Raises what Pillow raises, and ValueError.
    """
    content = file.path.read_bytes()
    fingerprint = _fingerprint(file, source, content)
    if fingerprint in stored:
        return None
    # Pillow and not OpenCV, which takes a truncated image for a whole one.
    with Image.open(io.BytesIO(content)) as image:
        if not has_alpha(image):
            raise ValueError(
                f"no alpha channel (its mode is {image.mode}): cut the object out first, e.g. with "
                "rembg, and save it as PNG"
            )
        rgba = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    problem = problem_of(rgba, is_picture=file.crop, allow_opaque=allow_opaque)
    if problem is not None:
        return problem
    if file.crop:
        rgba = crop_to_alpha(rgba)
    origin = f"{file.label}#{fingerprint}"
    return _Prepared(
        encode_rgba(rgba), *rgba.shape[:2], replace(source, origin=origin), is_sliver(rgba)
    )


def has_alpha(image: Image.Image) -> bool:
    """Whether an opened image says of its pixels how opaque they are.

    By an alpha channel, by one colour that is transparent (PNG's tRNS, GIF), or by a palette with
    alpha values.
    """
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        return True
    palette = getattr(image, "palette", None)
    return image.mode == "P" and palette is not None and palette.mode in ("RGBA", "RGBAX", "LA")


def _fingerprint(file: ImageFile, source: CutOutSource, content: bytes) -> str:
    """Names an image file and what is made of it, so that an import can go on where it stopped."""
    use = [file.category_id, file.crop, source.generator, source.model, source.prompt, source.seed]
    digest = hashlib.blake2b(repr(use).encode(), digest_size=12)
    digest.update(content)
    return digest.hexdigest()


def _stored_fingerprints(pool: InstancePool) -> set[str]:
    origins = pool.metadata(["origin"]).column("origin").to_pylist()
    return {origin.rpartition("#")[2] for origin in origins}


def _map_in_windows(
    threads: ThreadPoolExecutor, function: Callable, items: Iterable, size: int
) -> Iterator:
    """``threads.map`` that runs at most ``size`` items ahead, so that memory stays bounded."""
    window: list = []
    for item in items:
        window.append(item)
        if len(window) == size:
            yield from threads.map(function, window)
            window = []
    yield from threads.map(function, window)
