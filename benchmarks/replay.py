#!/usr/bin/env python3
"""What would be known of the cut-outs with fewer scores or other signals? A replay of ledgers.

Takes the scores that trainings with the sampler `posterior` have left (OUTPUT_DIR/ledger and
OUTPUT_DIR/auditions), gives some of them to a new posterior, in their order, and asks it at thirds
of the training how well it tells good cut-outs from bad ones. What was drawn stays as it was: a
posterior that knows less would also have drawn worse. Needs the truth about the pool.

    python benchmarks/replay.py output/comparison/gal-seed* --document docs/results.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.config import CfgNode
from documents import check_document, markdown_table, show
from separation import auc, spread

from gal_d2.errors import UserError
from gal_d2.judging.likeness import stored_likeness
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.likeness_evidence import NOTHING_COMPARED, Likenesses
from gal_d2.selection.posterior import AUDITION, TRAINING, Posterior
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.truth import DEFAULT_FILE, GOOD, PoolTruth

COMMAND = "benchmarks/replay.py"
THIRDS = (1 / 3, 2 / 3, 1.0)
FOLDERS = {TRAINING: "ledger", AUDITION: "auditions"}


@dataclass(frozen=True)
class Variant:
    """What a posterior is given.

    Attributes:
        name: in words.
        signals: of the value, and their weights; None: as the config has them.
        sources: whose scores count.
        period: of the scores of training, those of each n-th step count.
        share: of the auditions' rounds, this share counts.
        likeness: what a pretrained network said counts, where the runs asked one.
    """

    name: str
    signals: tuple[tuple[str, float], ...] | None = None
    sources: tuple[int, ...] = (TRAINING, AUDITION)
    period: int = 1
    share: float = 1.0
    likeness: bool = True


# Of runs with GAL.LIKENESS.
LIKENESS_VARIANTS = (
    Variant("likeness alone", sources=()),
    Variant("without the likeness", likeness=False),
)
VARIANTS = (
    Variant("as it is"),
    Variant("auditions alone", sources=(AUDITION,)),
    Variant("training alone", sources=(TRAINING,)),
    Variant("half of the auditions", share=0.5),
    Variant("scores of every 2nd step (`GAL.SCORER.PERIOD 2`)", period=2),
    Variant("scores of every 4th step", period=4),
    Variant("box head's cosine alone", (("box_score", 1.0),)),
    Variant("box head's loss alone", (("box_loss", 1.0),)),
    Variant("mask head's loss alone", (("mask_loss", 1.0),)),
    Variant("without the box head's loss", (("box_score", 1.0), ("mask_loss", 0.5))),
    Variant("mixed before they are remembered (`score`)", (("score", 1.0),)),
    Variant("raw dot product (`phi`)", (("phi", 1.0),)),
)


@dataclass(frozen=True)
class Scores:
    """All scores of a run, in the order in which its posterior got them.

    Attributes:
        step, source: (N,) int64.
        contribution: of N rows.
        num_steps: of the training.
        likeness: what a pretrained network said of cut-outs, if the run asked one.
    """

    step: np.ndarray
    source: np.ndarray
    contribution: Contribution
    num_steps: int
    likeness: Likenesses = NOTHING_COMPARED

    def updates(self) -> Iterator[tuple[int, int, slice]]:
        """Step, source and rows of each call of the posterior."""
        key = self.step * len(FOLDERS) + self.source
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(key)], strict=True):
            yield int(self.step[start]), int(self.source[start]), slice(start, end)


def read_scores(run: Path, heads: Sequence[str]) -> Scores:
    """The ledgers of a run.

    Raises:
        UserError: one is not there.
    """
    names = ["pool_id", "gt_class", "phi", "score", "area", "num_rois"]
    names += [f"head_{kind}_{head}" for head in heads for kind in ("score", "loss")]
    parts, sources = [], []
    for source, folder in FOLDERS.items():
        if not (run / folder).is_dir():
            raise UserError(
                f"{run / folder} does not exist: give the OUTPUT_DIR of a training with "
                "GAL.POOL.SAMPLER posterior and auditions."
            )
        table = pa.concat_tables(Ledger(run / folder).tables(names))
        parts.append(table.select(["step", *names]))
        sources.append(np.full(len(table), source))
    table, source = pa.concat_tables(parts), np.concatenate(sources)
    step = table["step"].to_numpy()
    order = np.lexsort((source, step))
    order = order[table["pool_id"].to_numpy()[order] >= 0]
    column = {name: torch.from_numpy(table[name].to_numpy()[order].copy()) for name in names}
    contribution = Contribution(
        pool_id=column["pool_id"],
        image_index=torch.zeros_like(column["pool_id"]),
        gt_class=column["gt_class"].long(),
        phi=column["phi"],
        score=column["score"],
        head_score={head: column[f"head_score_{head}"] for head in heads},
        head_loss={head: column[f"head_loss_{head}"] for head in heads},
        num_rois=column["num_rois"].long(),
        area=column["area"],
    )
    last = int(step.max()) + 1
    return Scores(step[order], source[order], contribution, last, stored_likeness(run))


def replay(scores: Scores, variant: Variant, cfg: CfgNode, pool_id: np.ndarray) -> np.ndarray:
    """(3, M) values of M cut-outs at the thirds of the training."""
    cfg = cfg.clone()
    if variant.signals is not None:
        cfg.GAL.POSTERIOR.SIGNALS = [name for name, _ in variant.signals]
        cfg.GAL.POSTERIOR.WEIGHTS = [weight for _, weight in variant.signals]
    posterior = Posterior.from_config(cfg)
    if variant.likeness:
        posterior.add_likeness(scores.likeness)
    rng = np.random.default_rng(0)
    marks = [round(third * scores.num_steps) for third in THIRDS]
    values: list[np.ndarray] = []
    for step, source, rows in scores.updates():
        while step >= marks[len(values)]:
            values.append(posterior.value(pool_id))
        if source == AUDITION:
            kept = rng.random() < variant.share
        else:
            kept = (step + 1) % variant.period == 0
        if source in variant.sources and kept:
            posterior.update(scores.contribution[rows], step, source=source)
    while len(values) < len(THIRDS):
        values.append(posterior.value(pool_id))
    return np.stack(values)


def mean_auc(value: np.ndarray, category: np.ndarray, is_good: np.ndarray) -> float:
    """Mean over the categories."""
    return float(
        np.nanmean([auc(is_good[category == c], value[category == c]) for c in np.unique(category)])
    )


def main(args: argparse.Namespace) -> None:
    if args.document:
        check_document(args.document, COMMAND)
    truth = PoolTruth.read(args.truth)
    cfg = load_config(str(args.config_file), [])
    runs = [read_scores(run, cfg.GAL.SCORER.HEADS) for run in args.runs]
    category = np.full(len(truth.pool_id), -1)
    for run in runs:
        rows = truth.rows(run.contribution.pool_id.numpy())
        category[rows] = run.contribution.gt_class.numpy()
    met = category >= 0
    is_good, category, ambiguous = truth.kind[met] == GOOD, category[met], truth.ambiguous[met]
    rows = []
    asked = any(len(run.likeness[0]) for run in runs)
    for variant in (*VARIANTS, *(LIKENESS_VARIANTS if asked else ())):
        values = [replay(run, variant, cfg, truth.pool_id[met]) for run in runs]
        cells = [
            spread([mean_auc(value[t, m], category[m], is_good[m]) for value in values], digits=3)
            for m in (ambiguous, ~ambiguous)
            for t in range(len(THIRDS))
        ]
        rows.append([variant.name, *cells])
        print(" | ".join(rows[-1]), flush=True)
    marks = ("1/3", "2/3", "end")
    header = [f"{kind} {mark}" for kind in ("ambiguous", "other") for mark in marks]
    table = markdown_table(["the posterior has", *header], rows)
    text = (
        "AUC of good against bad cut-outs within a category, mean of the categories, after 1/3, "
        f"2/3 and all of {runs[0].num_steps:,} steps; mean ± standard deviation of {len(runs)} "
        f"trainings (`{args.config_file.stem}`).\n\n{table}"
    )
    show(text, args.document, COMMAND)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="OUTPUT_DIRs, one for each seed")
    parser.add_argument("--config-file", type=Path, default=Path("configs/miniature_gal.yaml"))
    parser.add_argument("--truth", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--document", type=Path, help="Markdown file to put the table into")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main, parse_arguments())
