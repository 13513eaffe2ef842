"""Verdicts as CSV, for other programs and other copies of a pool."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, fields
from pathlib import Path

from gal_d2.errors import UserError
from gal_d2.files.atomic_file import replacing
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.verdicts import BAD, GOOD, SKIP, Verdict, VerdictFile, standing

COLUMNS = tuple(field.name for field in fields(Verdict))
_NEEDED = ("pool_id", "verdict")


def export_verdicts(pool: InstancePool, path: str | os.PathLike) -> int:
    """Write each reviewer's last verdict on each cut-out; those taken back are left out.

    Returns:
        How many there are.
    """
    verdicts = standing(VerdictFile(pool.root).read())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(verdict) for verdict in verdicts)
    return len(verdicts)


def import_verdicts(
    pool: InstancePool, path: str | os.PathLike, reviewer: str = ""
) -> tuple[int, int]:
    """Add the verdicts of a CSV file to a pool: all of them, or none where a row is wrong.

    Args:
        pool: that gets them.
        path: a file with the columns ``pool_id`` and ``verdict``; ``category``, ``reviewer`` and
            ``time`` are taken where they are there. Those that the pool has already are left out.
        reviewer: of rows that name none.

    Returns:
        How many were added, and how many rows there were.

    Raises:
        UserError: the file cannot be read, lacks a column, or a row is wrong.
    """
    rows = _read(path)
    known = {
        (verdict.pool_id, verdict.reviewer): verdict.verdict
        for verdict in standing(VerdictFile(pool.root).read())
    }
    names = pool.category_names or {}
    verdicts: dict[tuple[int, str], Verdict] = {}
    for number, row in enumerate(rows, start=2):  # the heading is line 1
        verdict = _verdict_of(row, f"{path}, line {number}", pool, names, reviewer)
        verdicts[verdict.pool_id, verdict.reviewer] = verdict
    new = [verdict for key, verdict in verdicts.items() if known.get(key) != verdict.verdict]
    VerdictFile(pool.root).add(new)
    return len(new), len(rows)


def _read(path: str | os.PathLike) -> list[dict[str, str]]:
    remedy = "give a CSV file that tools/review_pool.py --export wrote"
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} has no column {' and no '.join(missing)}; {remedy}")
            return list(reader)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8 ({error}); {remedy}") from error


def _verdict_of(
    row: dict[str, str], where: str, pool: InstancePool, names: dict[int, str], reviewer: str
) -> Verdict:
    text, word = (str(row.get(name) or "").strip() for name in _NEEDED)
    pool_id = int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else -1
    if pool_id < 0 or pool_id >= 1 << 63 or pool_id not in pool:
        raise UserError(
            f"{where}: the pool {pool.root} has no cut-out '{text:.40}'; export from the same "
            "pool, and mind that spreadsheets round numbers of 19 digits: have them read pool_id "
            "as text"
        )
    if word not in (GOOD, BAD, SKIP):
        raise UserError(f"{where}: verdict is '{word:.40}'; use good, bad or skip")
    category_id = pool.get_encoded(pool_id)["category_id"]
    name = names.get(category_id, "")
    given = str(row.get("category") or "").strip()
    if given and name and given != name:
        raise UserError(
            f"{where}: category is '{given:.60}', but in the pool {pool.root} cut-out {pool_id} is "
            f"a '{name}'; export from a pool of the same categories"
        )
    now = Verdict.now(pool_id, category_id, name, word, row.get("reviewer") or reviewer)
    return Verdict(**asdict(now) | {"time": row.get("time") or now.time})
