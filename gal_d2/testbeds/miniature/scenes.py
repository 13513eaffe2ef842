"""The scenes of the miniature: photographs with objects on them, annotated in the LVIS format."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from tqdm import tqdm

from gal_d2.datasets.annotation_file import frequency_of
from gal_d2.testbeds.miniature.categories import CATEGORIES
from gal_d2.testbeds.miniature.identities import Deck
from gal_d2.testbeds.miniature.objects import (
    draw_object,
    mask_to_polygons,
    paste,
    place_mask,
)
from gal_d2.testbeds.miniature.settings import MiniatureConfig
from gal_d2.testbeds.miniature.sources import Photograph

IMAGE_SIZE = 128
_OBJECTS_PER_SCENE = (3, 6)
_OBJECT_SIDE = (28.0, 60.0)
# The most of the smaller of two objects that they may share.
_MAX_OVERLAP = 0.3
_MAX_OUTSIDE = 0.12
_PLACING_TRIES = 30
_TRAIN_PART_OF_PHOTOGRAPH = 0.65
_CROP_SIDE = (96, 256)
ID_OF_NAME = {category.name: index + 1 for index, category in enumerate(CATEGORIES)}


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


def make_scenes(
    folder: Path,
    split: str,
    deck: Deck,
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
        picture, background = random_background(photographs, split, rng, IMAGE_SIZE)
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


def random_background(
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


def category_records(annotations: list[dict]) -> list[dict]:
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
