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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from pycocotools import mask as mask_utils
from tqdm import tqdm

from gal_d2.datasets.annotation_file import frequency_of
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.writer import PoolWriter
from gal_d2.testbeds.miniature.categories import CATEGORIES
from gal_d2.testbeds.miniature.faults import (
    FAULTS,
    KINDS,
    blur,
    cut_off,
    false_colours,
    fault_shares,
    kind_counts,
    put_together,
)
from gal_d2.testbeds.miniature.objects import (
    add_noise,
    draw_object,
    mask_to_polygons,
    misplace_mask,
    paste,
    place_mask,
)
from gal_d2.testbeds.miniature.sources import (
    OBJECT_SOURCES,
    Fetch,
    ObjectImages,
    Photograph,
    has_fashion_mnist,
    load_objects,
    load_photographs,
)

__all__ = ["CATEGORIES", "KINDS", "MiniatureConfig", "prepare_miniature"]

logger = logging.getLogger(__name__)

# Raise it with any change to what is drawn: prepared miniatures of an older version are made anew.
VERSION = 1
STAMP = "miniature.json"
IMAGE_SIZE = 128

_OBJECTS_PER_SCENE = (3, 6)
_OBJECT_SIDE = (28.0, 60.0)
_POOL_SIDE = (48.0, 60.0)
_NOISE_SIGMA = (40.0, 80.0)
_BLUR_SIGMA = (3.0, 6.0)
# The most of the smaller of two objects that they may share.
_MAX_OVERLAP = 0.3
_MAX_OUTSIDE = 0.12
_PLACING_TRIES = 30
_TRAIN_PART_OF_PHOTOGRAPH = 0.65
_TRAIN_PART_OF_IDENTITIES = 0.6
_CROP_SIDE = (96, 256)
# An item with less cloth than this (of its picture's area) is a faulty one of Fashion-MNIST.
_MIN_OCCUPIED = 0.04


_ID_OF_NAME = {category.name: index + 1 for index, category in enumerate(CATEGORIES)}


@dataclass(frozen=True)
class MiniatureConfig:
    """What to prepare. Equal configs give equal files.

    Attributes:
        seed: of everything.
        train_images, val_images: number of scenes. Below about 260 training scenes no category
            has the more than 100 images that make it frequent.
        pool_per_category: number of candidates.
        wrong, noise, misplaced: shares of the candidates that show the partner, are noisy, have a
            misplaced mask; the rest is good.
        blur, colour, cut_off, two_objects: shares of those that are blurred, have false colours,
            lack a part at one side, show two objects of the category.
        ambiguous_wrong: share of wrong objects in ambiguous categories, where it is above
            ``wrong``; the other faults keep their proportion among the others.
        bad: share of bad candidates over all categories, to which the shares above are scaled
            (see :func:`gal_d2.testbeds.miniature.faults.fault_shares`); None: they are as they are.
        object_source: "auto", "fashion-mnist" or "digits" (see ``miniature_sources``).
    """

    seed: int = 0
    train_images: int = 600
    val_images: int = 200
    pool_per_category: int = 300
    wrong: float = 0.3
    noise: float = 0.1
    misplaced: float = 0.1
    ambiguous_wrong: float = 0.65
    object_source: str = "auto"
    blur: float = 0.0
    colour: float = 0.0
    cut_off: float = 0.0
    two_objects: float = 0.0
    bad: float | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: choose one from 0 on.")
        for field in ("train_images", "val_images", "pool_per_category"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}: it must be at least 1.")
        for field in (*FAULTS.values(), "ambiguous_wrong", "bad"):
            share = getattr(self, field)
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"{field} is {share}: it must lie in [0, 1].")
        faults = {field: getattr(self, field) for field in FAULTS.values()}
        if sum(faults.values()) > 1 + 1e-9:
            named = " + ".join(field for field, share in faults.items() if share)
            raise UserError(
                f"{named} is {sum(faults.values()):g}, more than 1: lower one of these shares."
            )
        self.fault_shares()
        if self.object_source not in OBJECT_SOURCES:
            raise UserError(
                f"object_source is '{self.object_source}': "
                f"choose one of {', '.join(OBJECT_SOURCES)}."
            )

    def fault_shares(self) -> np.ndarray:
        """(categories, faults): shares of the candidates, in the order of ``FAULTS``."""
        shares = {field: getattr(self, field) for field in FAULTS.values()}
        ambiguous = [category.ambiguous for category in CATEGORIES]
        return fault_shares(shares, ambiguous, self.ambiguous_wrong, self.bad)


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


# ------------------------------------------------------------------ the output folder as a whole


def _build(
    folder: Path, objects: ObjectImages, photographs: list[Photograph], config: MiniatureConfig
) -> None:
    decks = _deal_identities(objects, config.seed)
    splits = {
        split: _make_scenes(folder / "images" / split, split, decks[split], photographs, config)
        for split in ("train", "val")
    }
    categories = _category_records(splits["train"].annotations)
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
    _make_pool(folder, decks["pool"], photographs, config, model=objects.name)
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


# ---------------------------------------------------------------------------------- identities


class _Deck:
    """Individuals of each category, drawn in turn; begins again when all were drawn."""

    def __init__(self, split: str, images: np.ndarray, indices: dict[int, np.ndarray]) -> None:
        """
        Args:
            split: of the object images.
            images: of that split.
            indices: category id -> (N,) indices into ``images``, shuffled.
        """
        self._split, self._images, self._indices = split, images, indices
        self._drawn = dict.fromkeys(indices, 0)

    def draw(self, category_id: int) -> tuple[str, np.ndarray]:
        """The next individual: its identity ("train/123") and its grey image."""
        indices = self._indices[category_id]
        index = indices[self._drawn[category_id] % len(indices)]
        self._drawn[category_id] += 1
        return f"{self._split}/{index}", self._images[index]


def _deal_identities(objects: ObjectImages, seed: int) -> dict[str, _Deck]:
    """Three decks of disjoint individuals: for the training scenes, the validation, the pool."""
    dealt: dict[str, dict[int, np.ndarray]] = {"train": {}, "val": {}, "pool": {}}
    for category_id, category in enumerate(CATEGORIES, start=1):
        rng = np.random.default_rng([seed, 0, category_id])
        usable = {}
        for split, images in objects.images.items():
            occupied = (images > 8).mean(axis=(1, 2)) >= _MIN_OCCUPIED
            usable[split] = rng.permutation(
                np.flatnonzero(occupied & (objects.labels[split] == category.label))
            )
        cut = round(_TRAIN_PART_OF_IDENTITIES * len(usable["train"]))
        dealt["train"][category_id] = usable["train"][:cut]
        dealt["pool"][category_id] = usable["train"][cut:]
        dealt["val"][category_id] = usable["test"]
    return {
        use: _Deck(split, objects.images[split], dealt[use])
        for use, split in (("train", "train"), ("val", "test"), ("pool", "train"))
    }


# -------------------------------------------------------------------------------------- scenes


@dataclass
class _Scenes:
    """The JSON records of a split."""

    images: list[dict] = dataclasses.field(default_factory=list)
    annotations: list[dict] = dataclasses.field(default_factory=list)
    unannotated: list[dict] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class _PlacedObject:
    category_id: int
    identity: str
    visible: np.ndarray  # (H, W) bool


@dataclass(frozen=True)
class _Federation:
    """How completely a split is annotated."""

    # Of the scenes with several instances of a category, in how many one of them is left out, and
    # the image says so.
    not_exhaustive: float
    # Of the other scenes, in how many a category that is there is left out altogether, and nothing
    # is said about it.
    unlisted: float
    # Of the absent categories, how many are known to be absent.
    negative: float
    # Rare categories are spared: each of their few training images counts.
    spare_rare: bool


_FEDERATION = {
    "train": _Federation(not_exhaustive=0.1, unlisted=0.05, negative=0.4, spare_rare=True),
    "val": _Federation(not_exhaustive=0.25, unlisted=0.15, negative=0.6, spare_rare=False),
}


def _make_scenes(
    folder: Path,
    split: str,
    deck: _Deck,
    photographs: list[Photograph],
    config: MiniatureConfig,
) -> _Scenes:
    """Draw and save the images of a split, and annotate them."""
    folder.mkdir(parents=True)
    stream = 1 if split == "train" else 2
    rng = np.random.default_rng([config.seed, stream])
    count = config.train_images if split == "train" else config.val_images
    plan = _plan_train(count, rng) if split == "train" else _plan_val(count, rng)
    scenes = _Scenes()
    for index, category_ids in enumerate(tqdm(plan, desc=f"{split} scenes", disable=None)):
        rng = np.random.default_rng([config.seed, stream, index])
        drawn = [(category_id, *deck.draw(category_id)) for category_id in category_ids]
        picture, background = _random_background(photographs, split, rng, IMAGE_SIZE)
        placed = _compose(picture, drawn, rng)
        name = f"{index + 1:06d}.png"
        _write_png(folder / name, picture)
        scenes.images.append(
            {
                "id": index + 1,
                "file_name": name,
                "coco_url": f"miniature/images/{split}/{name}",
                "flickr_url": "",
                "width": IMAGE_SIZE,
                "height": IMAGE_SIZE,
                "license": 1,
                "date_captured": "",
                "background": background,
            }
        )
        _annotate(scenes, placed, _FEDERATION[split], rng)
    return scenes


def _plan_train(count: int, rng: np.random.Generator) -> list[list[int]]:
    """The category ids of each scene's objects, with the long tail of ``image_share``."""
    members: list[list[int]] = [[] for _ in range(count)]
    # Rare categories first: a full scene turns away what comes late.
    by_share = sorted(enumerate(CATEGORIES, start=1), key=lambda item: item[1].image_share)
    for category_id, category in by_share:
        images = min(max(2, round(category.image_share * count)), category.max_images or count)
        for scene in rng.choice(count, size=min(images, count), replace=False):
            if len(members[scene]) < _OBJECTS_PER_SCENE[1]:
                members[scene].append(category_id)
    frequent = [i for i, category in by_share if category.max_images is None]
    for scene in members:
        if not scene:
            scene.append(int(rng.choice(frequent)))
        # Mostly the rarest once more: few images, but enough instances to tell what it looks like.
        weights = np.array([3.0 if _is_rare(category_id) else 1.0 for category_id in scene])
        missing = max(_random_size(rng) - len(scene), 0)
        scene.extend(rng.choice(scene, size=missing, p=weights / weights.sum()).tolist())
    return members


def _plan_val(count: int, rng: np.random.Generator) -> list[list[int]]:
    """As :func:`_plan_train`, with every category about equally often."""
    stack: list[int] = []
    plan = []
    for _ in range(count):
        scene: list[int] = []
        for _ in range(_random_size(rng)):
            # Now and then the same once more, as things come in groups.
            if scene and rng.random() < 0.3:
                scene.append(scene[-1])
                continue
            if not stack:
                stack = (rng.permutation(len(CATEGORIES)) + 1).tolist()
            scene.append(stack.pop())
        plan.append(scene)
    return plan


def _is_rare(category_id: int) -> bool:
    """Whether a category is meant to be rare, however small the set."""
    most = CATEGORIES[category_id - 1].max_images
    return most is not None and frequency_of(most) == "r"


def _random_size(rng: np.random.Generator) -> int:
    return int(rng.integers(_OBJECTS_PER_SCENE[0], _OBJECTS_PER_SCENE[1] + 1))


def _random_background(
    photographs: list[Photograph], split: str, rng: np.random.Generator, size: int
) -> tuple[np.ndarray, dict]:
    """A random square crop of a random photograph's part for this split, and where it is from.

    Returns:
        (size, size, 3) uint8 RGB; {"photograph", "crop": [x, y, side], "flipped"}.
    """
    photograph = photographs[rng.integers(len(photographs))]
    height, width = photograph.rgb.shape[:2]
    border = round(_TRAIN_PART_OF_PHOTOGRAPH * width)
    x0, x1 = (border, width) if split == "val" else (0, border)
    largest = min(_CROP_SIDE[1], height, x1 - x0)
    side = int(rng.integers(min(_CROP_SIDE[0], largest), largest + 1))
    x, y = int(rng.integers(x0, x1 - side + 1)), int(rng.integers(height - side + 1))
    crop = photograph.rgb[y : y + side, x : x + side]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    flipped = bool(rng.random() < 0.5)
    if flipped:
        crop = crop[:, ::-1]
    gain, offset = rng.uniform(0.75, 1.15), rng.uniform(-15, 15)
    crop = np.clip(crop * gain + offset, 0, 255).round().astype(np.uint8)
    return crop, {"photograph": photograph.name, "crop": [x, y, side], "flipped": flipped}


def _compose(
    picture: np.ndarray,
    drawn: list[tuple[int, str, np.ndarray]],
    rng: np.random.Generator,
) -> list[_PlacedObject]:
    """Put objects on ``picture`` (in place), in a random order of depth.

    Two objects share at most ``_MAX_OVERLAP`` of the smaller one; what finds no room is left out.

    Args:
        picture: (H, W, 3) uint8.
        drawn: category id, identity and grey image of each object.
        rng: gives sizes, colours, places and depth.
    """
    found: list[tuple[int, str, np.ndarray, int, int]] = []
    masks: list[np.ndarray] = []
    for category_id, identity, grey in drawn:
        rgba = draw_object(grey, rng.uniform(*_OBJECT_SIDE), rng)
        room = np.array(picture.shape[:2])
        margin = np.floor(_MAX_OUTSIDE * np.array(rgba.shape[:2])).astype(int)
        for _ in range(_PLACING_TRIES):
            top, left = rng.integers(-margin, np.maximum(room - rgba.shape[:2] + margin, 0) + 1)
            mask = place_mask(rgba[..., 3], picture.shape[:2], top, left)
            if all(
                np.sum(mask & other) <= _MAX_OVERLAP * min(mask.sum(), other.sum())
                for other in masks
            ):
                found.append((category_id, identity, rgba, top, left))
                masks.append(mask)
                break
    placed = []
    hidden = np.zeros(picture.shape[:2], bool)
    depth = rng.permutation(len(found))
    for index in depth:
        _, _, rgba, top, left = found[index]
        paste(picture, rgba, top, left)
    for index in depth[::-1]:
        category_id, identity, *_ = found[index]
        placed.append(_PlacedObject(category_id, identity, masks[index] & ~hidden))
        hidden |= masks[index]
    return placed


def _annotate(
    scenes: _Scenes, placed: list[_PlacedObject], rule: _Federation, rng: np.random.Generator
) -> None:
    """Annotate the last image of ``scenes``, leaving out what a federated data set leaves out."""
    image = scenes.images[-1]
    outlined = [(item, mask_to_polygons(item.visible)) for item in placed]
    # What others cover but for a few pixels is not there.
    placed = [item for item, outlines in outlined if outlines]
    polygons = [outlines for _, outlines in outlined if outlines]
    present = [item.category_id for item in placed]
    spared = {i for i in present if rule.spare_rare and _is_rare(i)}
    left_out: set[int] = set()
    several = sorted({i for i in present if present.count(i) > 1} - spared)
    others = sorted(set(present) - spared)
    image["not_exhaustive_category_ids"] = []
    if several and rng.random() < rule.not_exhaustive:
        category_id = int(rng.choice(several))
        left_out.add(present.index(category_id))
        image["not_exhaustive_category_ids"] = [category_id]
    elif len(set(present)) > 1 and others and rng.random() < rule.unlisted:
        unlisted = int(rng.choice(others))
        left_out.update(index for index, i in enumerate(present) if i == unlisted)
    absent = [i for i in range(1, len(CATEGORIES) + 1) if i not in present]
    image["neg_category_ids"] = [i for i in absent if rng.random() < rule.negative]

    for index, (item, outlines) in enumerate(zip(placed, polygons, strict=True)):
        # Box and area are those of the pixels that the polygons cover, for every reader the same.
        rle = mask_utils.merge(mask_utils.frPyObjects(outlines, image["height"], image["width"]))
        record = {
            "image_id": image["id"],
            "category_id": item.category_id,
            "bbox": mask_utils.toBbox(rle).tolist(),
            "identity": item.identity,
        }
        if index in left_out:
            scenes.unannotated.append(record)
            continue
        scenes.annotations.append(
            {
                "id": len(scenes.annotations) + 1,
                **record,
                "segmentation": outlines,
                "area": float(mask_utils.area(rle)),
            }
        )


def _category_records(annotations: list[dict]) -> list[dict]:
    """LVIS v1 category records; like LVIS, both splits carry the counts of the training set."""
    records = []
    for category_id, category in enumerate(CATEGORIES, start=1):
        own = [a["image_id"] for a in annotations if a["category_id"] == category_id]
        records.append(
            {
                "id": category_id,
                "name": category.name,
                "synset": category.synset,
                "synonyms": list(category.synonyms),
                "def": category.definition,
                "frequency": frequency_of(len(set(own))),
                "image_count": len(set(own)),
                "instance_count": len(own),
            }
        )
    return records


def _write_png(path: Path, rgb: np.ndarray) -> None:
    encoded, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise OSError(f"OpenCV cannot encode {path}")
    path.write_bytes(data)


# ---------------------------------------------------------------------------------------- pool


def _make_pool(
    folder: Path,
    deck: _Deck,
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
            partner_id = _ID_OF_NAME[category.partner]
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
        background, _ = _random_background(photographs, "train", rng, size)
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
