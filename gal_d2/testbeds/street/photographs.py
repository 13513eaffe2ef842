"""Street photographs with a label for every pixel, as LVIS-style data."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from pycocotools import mask as mask_utils
from tqdm import tqdm

from gal_d2.datasets.annotation_file import frequency_of
from gal_d2.errors import UserError
from gal_d2.testbeds.street.categories import StreetCategory
from gal_d2.testbeds.street.settings import PHOTO_SIDE, SPLITS, StreetConfig, street_categories

# Of a photograph's area: what is smaller is no instance. At 448 px some 10 x 10 pixels.
MIN_AREA = 8e-4
# Of the largest component's area: smaller ones are slips of the brush.
MIN_COMPONENT = 0.02


@dataclass(frozen=True)
class Labelled:
    """A photograph and its instances.

    Attributes:
        path: of the photograph.
        height, width: of its label map, pixels.
        instances: (category name, (H, W) bool mask as a compressed RLE) of each.
        partial: names of the categories of which components were too small to be instances.
    """

    path: Path
    height: int
    width: int
    instances: tuple[tuple[str, dict], ...]
    partial: frozenset[str]

    @property
    def present(self) -> set[str]:
        """Names of the categories that have instances."""
        return {name for name, _ in self.instances}


def read_photographs(root: Path, categories: Sequence[StreetCategory]) -> list[Labelled]:
    """The photographs of a copy of github's ``bearpaw/clothing-co-parsing``, by name.

    Raises:
        UserError: the folder lacks something, or a file is broken.
    """
    names = _label_names(root)
    if unknown := [n for c in categories for n in c.labels if n not in names]:
        raise UserError(
            f"{root / 'label_list.mat'} does not have the label '{unknown[0]}': is it Clothing "
            "Co-Parsing's?"
        )
    files = sorted((root / "annotations/pixel-level").glob("*.mat"))
    if not files:
        raise UserError(
            f"{root}/annotations/pixel-level has no .mat files: give --photos a copy of "
            "bearpaw/clothing-co-parsing."
        )
    found = []
    for file in tqdm(files, desc="labels", unit=" photographs", disable=None):
        path = root / "photos" / f"{file.stem}.jpg"
        if not path.is_file():
            raise UserError(f"{path} is missing, but {file} is there: copy it, or remove both.")
        labels = _read_mat(file, "groundtruth")
        size = shrunk_size(labels.shape[1], labels.shape[0], PHOTO_SIDE)
        if size != labels.shape[::-1]:
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        found.append(_labelled(path, labels, categories, names))
    return found


def _label_names(root: Path) -> list[str]:
    """By label value, from ``label_list.mat``."""
    file = root / "label_list.mat"
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: give --photos a copy of bearpaw/clothing-co-parsing "
            "(docs/datasets.md)."
        )
    return [str(entry[0]) for entry in _read_mat(file, "label_list").ravel()]


def _read_mat(file: Path, key: str) -> np.ndarray:
    from scipy.io import loadmat  # of the extra "testbeds"

    try:
        return loadmat(file)[key]
    # What scipy raises for a broken file is of many kinds.
    except Exception as error:
        raise UserError(f"{file} cannot be read as a .mat file with '{key}' ({error}).") from error


def _labelled(
    path: Path, labels: np.ndarray, categories: Sequence[StreetCategory], names: list[str]
) -> Labelled:
    instances: list[tuple[str, dict]] = []
    partial = set()
    for category in categories:
        values = [names.index(label) for label in category.labels]
        mask = np.isin(labels, values)
        if not mask.any():
            continue
        objects = split_instances(mask, pairs=category.pairs)
        kept = [m for m in objects if m.sum() >= MIN_AREA * m.size]
        if len(kept) < len(objects):
            partial.add(category.name)
        instances += [(category.name, encode_mask(m)) for m in kept]
    return Labelled(path, *labels.shape, tuple(instances), frozenset(partial))


def split_instances(mask: np.ndarray, *, pairs: bool) -> list[np.ndarray]:
    """The instances in the mask of a category, by their top.

    Args:
        mask: (H, W) bool, not empty.
        pairs: each component is an instance; else all of them together are one.

    Returns:
        (H, W) bool masks, without components below :data:`MIN_COMPONENT` of the largest.

    Example:
        >>> mask = np.array([[1, 0, 1], [1, 0, 1]], bool)
        >>> len(split_instances(mask, pairs=True)), len(split_instances(mask, pairs=False))
        (2, 1)
    """
    count, components, statistics, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    areas = statistics[1:, cv2.CC_STAT_AREA]
    kept = [k for k in range(1, count) if areas[k - 1] >= MIN_COMPONENT * areas.max()]
    if not pairs:
        return [np.isin(components, kept)]
    return [components == k for k in kept]


def encode_mask(mask: np.ndarray) -> dict:
    """A mask (H, W) bool as a compressed RLE, with a string that JSON can take."""
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def shrunk_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) of a picture whose long side has ``side`` pixels at most.

    Example:
        >>> shrunk_size(500, 1000, 250), shrunk_size(100, 200, 250)
        ((125, 250), (100, 200))
    """
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def split_photographs(present: Sequence[set[str]], config: StreetConfig) -> np.ndarray:
    """Which of N photographs validate: (N,) bool.

    Photographs with a category of ``config.rare`` train as long as each of its rare categories
    has a place, the others of them validate. What is left goes, from the rarest category to the
    most frequent one, to the split that lacks more of the category (Sechidis et al. 2011, for two
    parts). A category in two or more photographs is wanted in both splits.

    Args:
        present: names of the categories in each.
        config: seed, shares and rare categories.
    """
    rng = np.random.default_rng([config.seed, 1])
    order = rng.permutation(len(present)).tolist()
    split: dict[int, str] = {}
    places = dict.fromkeys(config.rare, config.rare_images)
    for k in order:
        rare = present[k] & places.keys()
        if rare:
            split[k] = "train" if all(places[name] for name in rare) else "val"
            for name in rare if split[k] == "train" else ():
                places[name] -= 1

    counts: dict[str, int] = defaultdict(int)
    for names in present:
        for name in names:
            counts[name] += 1
    wanted: dict[tuple[str, str], float] = {}
    for name, count in counts.items():
        val = min(max(config.val_share * count, 1.0), count - 1.0)
        wanted[name, "val"], wanted[name, "train"] = val, count - val
    room = {"val": config.val_share * len(present)}
    room["train"] = len(present) - room["val"]
    for k, where in split.items():
        room[where] -= 1
        for name in present[k]:
            wanted[name, where] -= 1
    for name in sorted(counts, key=lambda n: (counts[n], n)):
        for k in order:
            if k in split or name not in present[k]:
                continue
            where = max(SPLITS, key=lambda s: (wanted[name, s], room[s]))
            split[k] = where
            room[where] -= 1
            for other in present[k]:
                wanted[other, where] -= 1
    for k in order:  # without any category
        if k not in split:
            split[k] = max(SPLITS, key=lambda s: room[s])
            room[split[k]] -= 1
    return np.array([split[k] == "val" for k in range(len(present))], bool)


def prepare_photographs(root: Path, output: Path, config: StreetConfig) -> dict[str, dict]:
    """Write annotations and images of both splits.

    Args:
        root: a copy of ``bearpaw/clothing-co-parsing``.
        output: the folder; what a former call wrote is replaced.
        config: what to prepare.

    Returns:
        The content of the JSON of each split.

    Raises:
        UserError: ``root`` is not such a copy.
    """
    categories = street_categories(config.merge)
    photographs = read_photographs(root, categories)
    seen: dict[str, int] = defaultdict(int)
    for photograph in photographs:
        for name in photograph.present:
            seen[name] += 1
    categories = tuple(c for c in categories if seen[c.name] >= config.min_images)
    if not categories:
        raise UserError(
            f"no category is in {config.min_images} of the {len(photographs)} photographs of "
            f"{root}: lower --min-images."
        )
    ids = {category.name: k for k, category in enumerate(categories, start=1)}
    validates = split_photographs([p.present & ids.keys() for p in photographs], config)

    contents: dict[str, dict] = {}
    for split in SPLITS:
        chosen = [
            p for p, val in zip(photographs, validates, strict=True) if val == (split == "val")
        ]
        folder = output / "images" / split
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        images: list[dict] = []
        annotations: list[dict] = []
        for photograph in tqdm(chosen, desc=split, unit=" photographs", disable=None):
            copy_picture(photograph.path, folder / photograph.path.name, PHOTO_SIDE)
            _annotate(photograph, ids, images, annotations)
        contents[split] = {"images": images, "annotations": annotations}
    records = _category_records(categories, ids, contents["train"]["annotations"])
    (output / "annotations").mkdir(parents=True, exist_ok=True)
    for split, content in contents.items():
        content["categories"] = records
        path = output / "annotations" / f"street_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
    return contents


def _annotate(
    photograph: Labelled, ids: Mapping[str, int], images: list[dict], annotations: list[dict]
) -> None:
    """Append the photograph's records; names without an id are left out."""
    image_id = len(images) + 1
    present = {ids[name] for name in photograph.present & ids.keys()}
    partial = {ids[name] for name in photograph.partial & ids.keys()}
    images.append(
        {
            "id": image_id,
            "file_name": photograph.path.name,
            "height": photograph.height,
            "width": photograph.width,
            # Of what is too small to be an instance one may say neither: no list has it.
            "neg_category_ids": sorted(set(ids.values()) - present - partial),
            "not_exhaustive_category_ids": sorted(present),
        }
    )
    for name, rle in photograph.instances:
        if name in ids:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": mask_utils.toBbox(rle).tolist(),
                    "area": float(mask_utils.area(rle)),
                    "segmentation": rle,
                }
            )


def _category_records(
    categories: Sequence[StreetCategory], ids: Mapping[str, int], annotations: Sequence[Mapping]
) -> list[dict]:
    """LVIS v1 category records; like LVIS, both splits carry the counts of the training set."""
    records = []
    for category in categories:
        own = [a["image_id"] for a in annotations if a["category_id"] == ids[category.name]]
        records.append(
            {
                "id": ids[category.name],
                "name": category.name,
                "synonyms": sorted({category.name, *category.labels}),
                "frequency": frequency_of(len(set(own))),
                "image_count": len(set(own)),
                "instance_count": len(own),
            }
        )
    return records


def copy_picture(source: Path, target: Path, side: int) -> None:
    """Copy a picture; one whose long side has more than ``side`` pixels is shrunk, as JPEG.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(source) as image:
            size = shrunk_size(*image.size, side)
            if size == image.size:
                shutil.copyfile(source, target)
                return
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{source} cannot be read as a picture ({error}): copy it again.") from (
            error
        )
    size = shrunk_size(*upright.size, side)
    upright.resize(size, Image.Resampling.LANCZOS).save(target, "JPEG", quality=92)
