"""Photographs of single garments as candidates for the pool, under right and wrong names."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.testbeds.street.categories import CANDIDATES, STRAYS
from gal_d2.testbeds.street.photographs import copy_picture
from gal_d2.testbeds.street.settings import GARMENT_SIDE, StreetConfig
from gal_d2.testbeds.truth import GOOD

logger = logging.getLogger(__name__)

_TABLE = pa.schema(
    [
        *(("file", pa.string()), ("category", pa.string()), ("label", pa.string())),
        *(("kind", pa.string()), ("ambiguous", pa.bool_())),
    ]
)


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
