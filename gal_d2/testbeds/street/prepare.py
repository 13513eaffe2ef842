"""The street set: photographs with pixel labels as LVIS-style data, and candidates for their pool.

The photographs are Clothing Co-Parsing's (Yang et al. 2014), which has a label for each kind of
garment and no instances: what is worn in pairs is split by connected component, of anything else
the photographed person has one. Bystanders are not labelled. So a category that is there counts as
*not exhaustively* annotated, and one that is not as absent: of a bystander's the first rule spares
what the photographed person wears, too, and the second does not.

The candidates are photographs of single garments under the names of other, similar ones: what a
text-to-image model gets wrong, imitated by labels. They are yet to be cut out. What they really
show is in a table that only reports read.

Layout of the output folder::

    annotations/street_{train,val}.json
    images/{train,val}/0001.jpg ...
    candidates/<category>/<photograph>.jpg
    candidates.parquet    file, category, label, kind, ambiguous
    pool/                 what tools/generate_instances.py makes of the candidates
    pool_truth.parquet    pool_id, kind, ambiguous: of the pool, once it is there
"""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from pycocotools import mask as mask_utils
from tqdm import tqdm

from gal_d2.datasets.annotation_file import frequency_of
from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.testbeds.street.categories import CANDIDATES, CATEGORIES, STRAYS, StreetCategory
from gal_d2.testbeds.truth import GOOD

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
PHOTO_SIDE = 448  # long side of a photograph, pixels; larger ones are shrunk
GARMENT_SIDE = 288
# Of a photograph's area: what is smaller is no instance. At 448 px some 10 x 10 pixels.
MIN_AREA = 8e-4
# Of the largest component's area: smaller ones are slips of the brush.
MIN_COMPONENT = 0.02

_TABLE = pa.schema(
    [
        *(("file", pa.string()), ("category", pa.string()), ("label", pa.string())),
        *(("kind", pa.string()), ("ambiguous", pa.bool_())),
    ]
)


@dataclass(frozen=True)
class StreetConfig:
    """What to prepare. Equal configs give equal files.

    Attributes:
        seed: of the split and of what candidates show.
        val_share: share of the photographs that validate.
        merge: unite near-synonyms, as :data:`CATEGORIES` has them.
        rare: names of the categories that keep at most ``rare_images`` training images; the other
            photographs with one of them validate.
        min_images: a category in fewer photographs is left out.
    """

    seed: int = 0
    val_share: float = 0.3
    merge: bool = True
    rare: tuple[str, ...] = ()
    rare_images: int = 10
    min_images: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise UserError(f"--val-share is {self.val_share}: set it above 0 and below 1.")
        for name in ("rare_images", "min_images"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is {getattr(self, name)}: set it to 1 or more.")
        known = {category.name for category in street_categories(self.merge)}
        if unknown := sorted(set(self.rare) - known):
            raise UserError(f"--rare has {unknown[0]}: choose from {', '.join(sorted(known))}.")


def street_categories(merge: bool = True) -> tuple[StreetCategory, ...]:
    """The categories, by name; without ``merge`` every label is one of its own."""
    if merge:
        return CATEGORIES
    apart = [
        replace(category, name=category.name if k == 0 else label, labels=(label,))
        for category in CATEGORIES
        for k, label in enumerate(category.labels)
    ]
    return tuple(sorted(apart, key=lambda category: category.name))


# -- Photographs


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


# -- Candidates


def read_garments(root: Path) -> dict[str, list[Path]]:
    """The photographs of a copy of github's ``alexeygrigorev/clothing-dataset``, by label.

    Those of ``images.csv`` that have no file are left out; in each list they are by name.

    Raises:
        UserError: there is no such table, or no photograph.
    """
    table = root / "images.csv"
    if not table.is_file():
        raise UserError(
            f"{table} does not exist: give --garments a copy of alexeygrigorev/clothing-dataset "
            "(docs/datasets.md)."
        )
    found: dict[str, list[Path]] = defaultdict(list)
    missing = 0
    rows = csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))
    if not {"image", "label"} <= set(rows.fieldnames or ()):
        raise UserError(f"{table} lacks the column 'image' or 'label': copy it again.")
    for row in rows:
        path = root / "images" / f"{row['image']}.jpg"
        if path.is_file():
            found[row["label"]].append(path)
        else:
            missing += 1
    if not found:
        raise UserError(f"{root}/images has none of the photographs of {table}: copy them, too.")
    if missing:
        logger.info("%s: %d photographs are in the table and not there", root, missing)
    return {label: sorted(paths) for label, paths in sorted(found.items())}


def draw_candidates(garments: Mapping[str, Sequence[Path]], seed: int) -> list[dict]:
    """Which photographs the candidates of each category show, no one twice.

    Args:
        garments: by label.
        seed: of the draw.

    Returns:
        Of each candidate: ``category``, ``path``, ``label``, ``kind`` (good, wrong_object or
        stray) and ``ambiguous``, whether most of its category's show a similar garment.
    """
    strays = sorted(path for label in STRAYS for path in garments.get(label, ()))
    of_stray = {path: label for label in STRAYS for path in garments.get(label, ())}
    supply = {**garments, None: strays}
    demand = [
        (category, kind, label, count)
        for category, plan in CANDIDATES.items()
        for kind, counts in (
            (GOOD, plan.good),
            ("wrong_object", plan.wrong),
            ("stray", {None: plan.strays}),
        )
        for label, count in counts.items()
    ]
    total: dict[str | None, int] = defaultdict(int)
    for _, _, label, count in demand:
        total[label] += count
    decks = {}
    for k, label in enumerate(sorted(total, key=str)):
        paths = list(supply.get(label, ()))
        rng = np.random.default_rng([seed, 2, k])
        decks[label] = iter([paths[i] for i in rng.permutation(len(paths))])
    candidates = []
    for category, kind, label, count in demand:
        have = len(supply.get(label, ()))
        for _ in range(min(count, count * have // total[label])):
            path = next(decks[label])
            candidates.append(
                {
                    "category": category,
                    "path": path,
                    "label": of_stray[path] if label is None else label,
                    "kind": kind,
                    "ambiguous": CANDIDATES[category].ambiguous,
                }
            )
    return candidates


def prepare_candidates(root: Path, output: Path, config: StreetConfig) -> list[dict]:
    """Write the candidates and the table of what they show.

    Args:
        root: a copy of ``alexeygrigorev/clothing-dataset``.
        output: the folder; what a former call wrote is replaced.
        config: its seed counts.

    Returns:
        See :func:`draw_candidates`.

    Raises:
        UserError: ``root`` is not such a copy.
    """
    candidates = draw_candidates(read_garments(root), config.seed)
    if not candidates:
        raise UserError(f"{root} has too few photographs of every label to draw candidates from.")
    folder = output / "candidates"
    shutil.rmtree(folder, ignore_errors=True)
    table: dict[str, list] = {name: [] for name in _TABLE.names}
    for candidate in tqdm(candidates, desc="candidates", disable=None):
        file = f"{candidate['category']}/{candidate['path'].name}"
        (folder / candidate["category"]).mkdir(parents=True, exist_ok=True)
        copy_picture(candidate["path"], folder / file, GARMENT_SIDE)
        for name in _TABLE.names:
            table[name].append(file if name == "file" else candidate[name])
    pq.write_table(pa.table(table, schema=_TABLE), output / "candidates.parquet")
    return candidates


def write_pool_truth(output: Path) -> dict[str, dict[str, int]]:
    """Say what the cut-outs of the pool show, in ``pool_truth.parquet`` beside it.

    Args:
        output: the folder with the candidates and the pool that was made of them.

    Returns:
        How many cut-outs of each kind there are, by category.

    Raises:
        UserError: there is no pool or no table, or the pool has a cut-out that is no candidate.
    """
    path = output / "candidates.parquet"
    if not path.is_file():
        raise UserError(f"{path} does not exist: run tools/prepare_street.py without --truth.")
    rows = {row["file"]: row for row in pq.read_table(path).to_pylist()}
    pool = InstancePool(output / "pool")
    truth: dict[str, list] = {"pool_id": [], "kind": [], "ambiguous": []}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for pool_id in pool.all_ids().tolist():
        origin = pool.get(pool_id).source.origin
        if origin not in rows:
            raise UserError(
                f"{pool.root}: cut-out {pool_id} ('{origin}') is not in {path}; the pool was made "
                "of other candidates: delete it and run tools/generate_instances.py again."
            )
        row = rows[origin]
        for name, values in (("kind", row["kind"]), ("ambiguous", row["ambiguous"])):
            truth[name].append(values)
        truth["pool_id"].append(pool_id)
        counts[row["category"]][row["kind"]] += 1
    pq.write_table(pa.table(truth), output / "pool_truth.parquet")
    return {category: dict(kinds) for category, kinds in sorted(counts.items())}
