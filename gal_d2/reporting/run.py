"""What a training left in its OUTPUT_DIR, as far as it is there: config, metrics, categories."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from gal_d2.errors import UserError

logger = logging.getLogger(__name__)

TASKS = {"bbox": "box", "segm": "mask"}
"""detectron2's names of what is evaluated, and what people call it."""
METRICS = ("AP", "APr", "APc", "APf")
GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
# Any of these says that a folder is one of a training.
_TRACES = ("config.yaml", "metrics.json", "log.txt", "ledger")
_SUMMARY_LINE = re.compile(r" *([a-z]+): (.*)")


@dataclass(frozen=True)
class Series:
    """A metric over the training.

    Attributes:
        steps: (N,) int64, ascending: steps that were done when the value was taken.
        values: (N,) float64, finite.
    """

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class CategoryResult:
    """A row of ``inference/per_category_ap.csv``.

    Attributes:
        name, group: of the category; the group is "r", "c" or "f".
        train_images: of the training set that have it; None: not written.
        ap: by task, in per cent; a task without a value is left out.
    """

    name: str
    group: str
    train_images: int | None
    ap: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A training's folder.

    Attributes:
        folder: its OUTPUT_DIR.
        name: that tells it from the others of a report.
        config: value by dotted key, as ``config.yaml`` has it; empty without one.
        metrics: by name, as ``metrics.json`` has them.
        categories: by id, as the last evaluation has them.
        summary: (what, text) lines that the training printed when it started.
    """

    folder: Path
    name: str
    config: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, Series] = field(default_factory=dict)
    categories: Mapping[int, CategoryResult] = field(default_factory=dict)
    summary: Sequence[tuple[str, str]] = ()

    @classmethod
    def read(cls, folder: Path, name: str | None = None) -> Run:
        """Read what is there.

        Raises:
            UserError: the folder does not exist or is none of a training.
        """
        if not folder.is_dir():
            raise UserError(f"the folder {folder} does not exist: give the OUTPUT_DIR of a run.")
        if not any((folder / trace).exists() for trace in _TRACES):
            raise UserError(
                f"the folder {folder} has none of {', '.join(_TRACES)}: give the OUTPUT_DIR of a "
                "training."
            )
        config = read_config(folder / "config.yaml")
        last = config.get("SOLVER.MAX_ITER")
        return cls(
            folder,
            name or folder.name,
            config,
            read_metrics(folder / "metrics.json", last if isinstance(last, int) else None),
            read_categories(folder / "inference" / "per_category_ap.csv"),
            read_summary(folder / "log.txt"),
        )

    def final(self, task: str, metric: str = "AP") -> float | None:
        """The last value of ``<task>/<metric>``; None if it was never evaluated."""
        series = self.metrics.get(f"{task}/{metric}")
        return float(series.values[-1]) if series else None

    def pool_folder(self) -> Path | None:
        """Where the pool is that was pasted from; None if it cannot be found.

        Paths in a config count from where the training was started, which need not be here: the
        absolute path in its log comes second.
        """
        places = [str(self.config.get("GAL.POOL.ROOT") or "")]
        places += [text.rpartition("; ")[2] for what, text in self.summary if what == "pool"]
        places.append(str(self.folder / "pool"))
        return next((Path(p) for p in places if p and Path(p).is_dir()), None)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of a report, each under a name of its own.

    Raises:
        UserError: one of them cannot be read.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [Run.read(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_config(path: Path) -> dict[str, object]:
    """Values by dotted key; empty where there is no file or nobody can read it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        logger.warning("%s cannot be read and is left out: %s", path, error)
        return {}
    return flat(content) if isinstance(content, dict) else {}


def flat(node: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested options under dotted keys.

    Example:
        >>> flat({"SOLVER": {"MAX_ITER": 5, "STEPS": [3]}, "SEED": 1})
        {'SOLVER.MAX_ITER': 5, 'SOLVER.STEPS': [3], 'SEED': 1}
    """
    found: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def read_metrics(path: Path, max_steps: int | None = None) -> dict[str, Series]:
    """The scalars of detectron2's ``metrics.json``, a JSON object a line.

    A line that a killed run left incomplete is skipped. Of a step that a resumed run repeated, the
    later value counts. Values that are not finite are left out.

    Args:
        path: of the file; without it there are no metrics.
        max_steps: of the training. The last evaluation is written under this number, the ones
            before under that of the step just done, which starts at 0.
    """
    found: dict[str, dict[int, float]] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    skipped = 0
    for line in text.splitlines():
        try:
            values = json.loads(line)
            step = int(values.pop("iteration")) + 1
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            skipped += bool(line.strip())
            continue
        if max_steps is not None:
            step = min(step, max_steps)
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[step] = float(value)
    if skipped:
        logger.warning("%s: %d incomplete lines are skipped.", path, skipped)
    series = {}
    for name, by_step in found.items():
        steps = sorted(by_step)
        series[name] = Series(
            np.array(steps, np.int64), np.array([by_step[step] for step in steps], np.float64)
        )
    return series


def read_categories(path: Path) -> dict[int, CategoryResult]:
    """Rows by category id; empty where there is no file. Rows that make no sense are skipped."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    found = {}
    for row in rows:
        try:
            if row["frequency"] not in GROUPS:
                raise ValueError(row["frequency"])
            images = row.get("train_images")
            ap = {task: float(row[f"{task}_AP"] or "nan") for task in TASKS if f"{task}_AP" in row}
            found[int(row["category_id"])] = CategoryResult(
                row["name"],
                row["frequency"],
                int(images) if images else None,
                {task: value for task, value in ap.items() if math.isfinite(value)},
            )
        except (KeyError, ValueError, TypeError):
            logger.warning("%s: the row %r is skipped.", path, row)
    return found


def read_summary(path: Path) -> list[tuple[str, str]]:
    """The lines after "Training:" in a log, of the last time that the run was started."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    starts = [number for number, line in enumerate(lines) if line.endswith(" Training:")]
    found = []
    for line in lines[starts[-1] + 1 :] if starts else ():
        match = _SUMMARY_LINE.fullmatch(line)
        if match is None:
            break
        found.append((match[1], match[2]))
    return found
