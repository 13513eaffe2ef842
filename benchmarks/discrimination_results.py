"""What the runs of benchmarks/discrimination.py recorded, and how well it separates."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from discrimination_runs import run_folder
from separation import auc, select

from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.posterior import Posterior
from gal_d2.testbeds.truth import GOOD, PoolTruth


@dataclass(frozen=True)
class Run:
    """What a run recorded of its N pasted instances, in the order in which they came.

    Attributes:
        steps: of the training.
        columns: by name, (N,): of the ledger, ``similarity``, ``evidence_<name>`` of some; and of
            the truth, ``kind`` and ``ambiguous``.
        metrics: by task, AP by name.
    """

    steps: int
    columns: dict[str, np.ndarray]
    metrics: dict[str, dict[str, float]]

    @classmethod
    def read(cls, folder: Path, truth: PoolTruth) -> Run:
        result = json.loads((folder / "result.json").read_text())
        table = pa.concat_tables(Ledger(folder / "ledger").tables()).to_pydict()
        columns = {
            name: np.array(values, dtype=float if None in values else None)
            for name, values in table.items()
        }
        rows = truth.rows(columns["pool_id"])
        columns |= {"kind": truth.kind[rows], "ambiguous": truth.ambiguous[rows]}
        columns["similarity"] = np.load(folder / "similarity.npy")
        for name in ("score", "head_score_box", "head_loss_mask"):
            columns[f"evidence_{name}"] = evidence_so_far(columns, name)
        return cls(result["steps"], columns, result["metrics"])

    def between(self, first: float, last: float) -> dict[str, np.ndarray]:
        """Columns of a part of the training, given as shares of it."""
        step = self.columns["step"]
        chosen = (step >= first * self.steps) & (step < last * self.steps)
        return select(self.columns, chosen)


def evidence_so_far(columns: dict[str, np.ndarray], score: str) -> np.ndarray:
    """(N,) what a cut-out's scores add up to, up to and including the step of each of N rows."""
    ids, classes = columns["pool_id"], columns["category_id"]
    posterior = Posterior(int(classes.max()) + 1, ("score",))
    values = torch.from_numpy(columns[score].astype(np.float32))
    area = columns["area"].astype(np.float32) if "area" in columns else np.full(len(ids), np.inf)
    contribution = Contribution(
        pool_id=torch.from_numpy(ids),
        image_index=torch.zeros(len(ids), dtype=torch.int64),
        gt_class=torch.from_numpy(classes),
        phi=values,
        score=values,
        head_score={},
        head_loss={},
        num_rois=torch.ones(len(ids), dtype=torch.int64),
        area=torch.from_numpy(area),
    )
    estimates = np.full(len(ids), np.nan)
    steps, first = np.unique(columns["step"], return_index=True)
    for step, start, stop in zip(steps.tolist(), first, [*first[1:], len(ids)], strict=True):
        rows = slice(start, stop)
        posterior.update(contribution[rows], step)
        known = posterior.get(ids[rows])
        estimates[rows] = np.where(known.count > 0, known.mean[:, 0], np.nan)
    return estimates


def class_aucs(columns: dict[str, np.ndarray], score: str, kind: str) -> dict[int, float]:
    """By category id, AUC of good ones against bad ones of a kind."""
    sign, name = (-1, score[1:]) if score.startswith("-") else (1, score)
    values = sign * columns[name].astype(float)
    is_good = columns["kind"] == GOOD
    chosen = is_good | (columns["kind"] == ("wrong_object" if kind == "ambiguous" else kind))
    if kind == "ambiguous":
        chosen &= columns["ambiguous"]
    aucs = {}
    for category in np.unique(columns["category_id"]):
        mine = chosen & (columns["category_id"] == category)
        aucs[int(category)] = auc(is_good[mine], values[mine])
    return aucs


def mean_auc(columns: dict[str, np.ndarray], score: str, kind: str) -> float:
    values = np.array(list(class_aucs(columns, score, kind).values()))
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def read_runs(args: argparse.Namespace, condition: str, truth: PoolTruth) -> list[Run]:
    """Of all seeds whose run is finished."""
    folders = [run_folder(args, condition, seed) for seed in args.seeds]
    return [Run.read(folder, truth) for folder in folders if (folder / "result.json").is_file()]
