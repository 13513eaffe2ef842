"""What is left of the trainings of benchmarks/comparison.py: a line of figures for each."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from comparison_runs import POINTS, Run, append_line

from gal_d2.errors import UserError
from gal_d2.pool.allow_list import read_allow_list
from gal_d2.selection.ledger import Ledger
from gal_d2.testbeds.truth import GOOD, PoolTruth

WINDOWS = 20  # parts of the training over which pastes are counted
QUARTERS = 4
TASKS = ("bbox", "segm")
METRICS = ("AP", "APr", "APc", "APf")


class Results:
    """One JSON line for each finished run; of several with one key the last one counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[tuple[str, int, str], dict] = {}
        self._lock = threading.Lock()
        for number, line in enumerate(path.read_text().splitlines() if path.is_file() else (), 1):
            try:
                record = json.loads(line)
                self.records[record["condition"], record["seed"], record["digest"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}, is no record of a run: remove the line."
                ) from error

    def add(self, run: Run, record: dict) -> None:
        """Append the record of a finished run; from several threads."""
        record = {
            **{"condition": run.condition.name, "seed": run.seed, "digest": run.digest},
            **{"steps": run.steps, "options": list(run.options)},
            **record,
        }
        with self._lock:
            append_line(self.path, record)
            self.records[run.key] = record


@dataclass(frozen=True)
class PoolShares:
    """What "class uniform, then cut-out uniform" pastes from a pool or an allow list.

    Attributes:
        pool_id, category_id: (N,) int64, of all cut-outs of the training set's categories.
        pastes: expected number in the whole training.
    """

    pool_id: np.ndarray
    category_id: np.ndarray
    pastes: float

    def expected(self, allowed: np.ndarray | None, truth: PoolTruth | None) -> dict:
        """As :func:`read_pastes`, in expectation.

        Args:
            allowed: (M,) pool ids of the allow list; None: all.
            truth: None where it is not known.
        """
        chosen = np.ones(len(self.pool_id), bool)
        if allowed is not None:
            chosen = np.isin(self.pool_id, allowed)
        categories = self.category_id[chosen]
        counts = np.unique(categories, return_counts=True)[1]
        draws = self.pastes / QUARTERS / len(counts)
        distinct = float(np.sum(counts * (1 - (1 - 1 / counts) ** draws)))
        shares: dict[str, list[float] | None] = {"good": None, "good_trained": None}
        if truth is not None:
            good = truth.kind[truth.rows(self.pool_id[chosen])] == GOOD
            share = float(np.mean([good[categories == c].mean() for c in np.unique(categories)]))
            shares = dict.fromkeys(shares, [share] * WINDOWS)
        return {**shares, "accepted": [1.0] * WINDOWS, "distinct": [round(distinct)] * QUARTERS}


def read_run(run: Run, truth: PoolTruth | None, pool: PoolShares | None) -> dict:
    """AP over the training, cost, and what was pasted, of a finished run."""
    filters = [read_cost(run.folder / f"{name}.costs.jsonl") for name in ("score", "filter")]
    cost = read_cost(run.folder / "train.costs.jsonl")
    record = {
        "ap": read_precision(run.folder / "metrics.json", run.steps),
        "cpu_seconds": cost["cpu_seconds"],
        "wall_seconds": cost["wall_seconds"],
        "filter_cpu_seconds": _total([part["cpu_seconds"] for part in filters]),
    }
    pastes: dict = {"good": None, "good_trained": None, "accepted": None, "distinct": None}
    if any((run.folder / "ledger").glob("*.parquet")):
        pastes = read_pastes(run.folder / "ledger", run.steps, truth)
    elif pool is not None and run.condition.config != "baseline":
        allowed = read_allow_list(run.allow_list) if run.condition.allow_list else None
        pastes = pool.expected(allowed, truth)
    return {**record, **pastes}


def read_precision(path: Path, steps: int) -> dict[str, dict[str, list[float]]]:
    """By task and metric, its values at the ``POINTS`` evaluations; NaN where one is missing.

    detectron2 writes every 20 steps: of evaluations that are closer together the last one stays.

    Args:
        path: detectron2's metrics.json; of a step that a resumed run repeated, the later counts.
        steps: of the training.
    """
    found = {task: {name: [float("nan")] * POINTS for name in METRICS} for task in TASKS}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        point = round(values["iteration"] / steps * POINTS) - 1
        for task in TASKS:
            for name in METRICS:
                if f"{task}/{name}" in values and 0 <= point < POINTS:
                    found[task][name][point] = round(values[f"{task}/{name}"], 3)
    return found


def read_pastes(folder: Path, steps: int, truth: PoolTruth | None) -> dict:
    """What a ledger says of the pasted instances.

    Returns:
        "good", "good_trained": share of good ones among the pasted and among the accepted ones;
        None where the truth is not known. "accepted": share of the pasted. Each a list of
        ``WINDOWS`` values over the training (None: nothing to divide by). "distinct": number of
        different cut-outs pasted, by quarter of the training.
    """
    table = pa.concat_tables(Ledger(folder).tables(["pool_id", "accept"]))
    step, pool_id = table["step"].to_numpy(), table["pool_id"].to_numpy()
    accept = table["accept"].to_numpy().astype(bool)
    window = np.minimum(step * WINDOWS // steps, WINDOWS - 1)
    quarter = np.minimum(step * QUARTERS // steps, QUARTERS - 1)
    record: dict[str, list | None] = {
        "good": None,
        "good_trained": None,
        "accepted": _share_by(window, accept),
        "distinct": [len(np.unique(pool_id[quarter == q])) for q in range(QUARTERS)],
    }
    if truth is not None:
        good = truth.kind[truth.rows(pool_id)] == GOOD
        record["good"] = _share_by(window, good)
        record["good_trained"] = _share_by(window[accept], good[accept])
    return record


def _share_by(window: np.ndarray, flag: np.ndarray) -> list[float | None]:
    """Share of True in each window."""
    count = np.bincount(window, minlength=WINDOWS)
    true = np.bincount(window[flag], minlength=WINDOWS)
    return [
        round(t / n, 4) if n else None for t, n in zip(true.tolist(), count.tolist(), strict=True)
    ]


def read_cost(path: Path) -> dict[str, float | None]:
    """Seconds of all processes of a run together; None where one of them was not seen to end."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    ended = [line for line in lines if "cpu_seconds" in line]
    if len(ended) * 2 != len(lines):
        return {"cpu_seconds": None, "wall_seconds": None}
    return {key: _total([line[key] for line in ended]) for key in ("cpu_seconds", "wall_seconds")}


def _total(values: Sequence[float | None]) -> float | None:
    return None if None in values else round(sum(values), 2)
