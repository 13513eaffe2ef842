#!/usr/bin/env python3
"""Measure what grows with the data at LVIS's true size, on synthetic data; no model is trained.

    python benchmarks/scale.py posterior --sizes 120000 1200000
    python benchmarks/scale.py ledger --sizes 2700000 27000000 --folder /a/large/disk
    python benchmarks/scale.py annotations --sizes 10000 100000
    python benchmarks/scale.py all

Each piece runs in a process of its own for each size; lines of finished ones are kept in
OUTPUT/scale.jsonl and not measured again. With two sizes, the table says with which power of the
size time and memory grow. Times are CPU seconds, memory is what the step adds to the resident set
at its peak.

- index (size: cut-outs of a pool): building it, letting it grow, look-ups.
- files (size: cut-outs of a pool): opening its files; benchmarks/pool.py reads cut-outs, too.
- posterior (size: cut-outs): updating it, a step's draws, snapshots, a checkpoint.
- directions (size: classes): the averages that scores are taken from: update, use, checkpoint.
- ledger (size: rows): appending, and the queries that ranking and filtering make.
- annotations (size: images): parsing and checking LVIS's JSON, starting again from what was kept of
  it, statistics, repeat factors, and the memory of 8 ranks with 8 loader workers each.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
import torch
from documents import check_document, markdown_table, replace_tables
from scale_annotations import CATEGORIES, measure_annotations
from scale_directions import measure_directions
from scale_pool import CANDIDATES, PASTES, measure_files, measure_index
from scale_steps import Steps

from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision
from gal_d2.selection.draw import choose_from_best
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.ledger_writer import LedgerWriter
from gal_d2.selection.posterior import Posterior
from gal_d2.selection.posterior_view import PosteriorView, posterior_source
from gal_d2.selection.ranking import instance_values, rank
from gal_d2.selection.snapshots import KEYFRAME, Snapshots
from gal_d2.setup.launch import run_tool

COMMAND = "benchmarks/scale.py"
BEST = 3
SIZES = {
    "index": (1_200_000, 12_000_000),
    "files": (120_000, 1_200_000),
    "posterior": (120_000, 1_200_000),
    "directions": (120, 1203),
    "ledger": (2_700_000, 27_000_000),
    "annotations": (10_000, 100_000),
}


def contribution(ids: np.ndarray, rng: np.random.Generator) -> Contribution:
    """Scores of cut-outs (N,); the class of a cut-out follows from its id."""
    number = len(ids)
    score = torch.from_numpy(rng.standard_normal(number).astype(np.float32))
    return Contribution(
        pool_id=torch.from_numpy(ids),
        image_index=torch.arange(number) % 16,
        gt_class=torch.from_numpy(ids % CATEGORIES),
        phi=score,
        score=score,
        head_score={"box": score, "mask": score},
        head_loss={"box": score.exp(), "mask": score.exp()},
        num_rois=torch.ones(number, dtype=torch.int64),
        area=torch.full((number,), 900.0),
    )


def measure_posterior(size: int, folder: Path, steps: Steps) -> None:
    """A posterior that has seen every cut-out once, and what a step does with it."""
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(1 << 62, size=size))
    posterior = Posterior(CATEGORIES, ["box_score", "mask_loss"])

    def fill() -> None:
        for step, part in enumerate(np.array_split(rng.permutation(ids), max(size // 4096, 1))):
            posterior.update(contribution(part, rng), step)

    steps.time("first score of every cut-out", fill)
    some = contribution(rng.choice(ids, PASTES, replace=False), rng)
    steps.time("update of a step", lambda: posterior.update(some, posterior.step + 1), 50)
    snapshots = Snapshots(folder, period=100, lag=0)
    state = posterior_source(posterior.take_changes)
    whole = steps.time("whole snapshot, made", lambda: state(0))
    named = {f"posterior.{name}": array for name, array in whole.items()}
    steps.time("whole snapshot, written", lambda: snapshots.write(0, named))
    steps.note("whole snapshot, on disk", snapshots.path(0).stat().st_size / 1e6)
    for number in range(1, KEYFRAME):
        posterior.update(contribution(rng.choice(ids, 100 * PASTES), rng), posterior.step + 1)
        changed = {f"posterior.{name}": array for name, array in state(number).items()}
        if number == 1:
            steps.time("change of 100 steps, written", lambda s=changed: snapshots.write(1, s))
        else:
            snapshots.write(number, changed)
    view = PosteriorView(snapshots)
    steps.time("whole snapshot, read by a worker", lambda: view.follow(0))
    steps.time("change of 100 steps, read by a worker", lambda: view.follow(100))
    candidates = rng.choice(ids, (PASTES, CANDIDATES))

    def draw() -> np.ndarray:
        return choose_from_best(view.draw_values(candidates, 0.7, rng), BEST, rng)

    steps.time("draw of a step's pastes", draw, 50)
    steps.time("checkpoint, saved", lambda: torch.save(posterior.state_dict(), folder / "state"))
    steps.note("checkpoint, on disk", (folder / "state").stat().st_size / 1e6)
    stored = torch.load(folder / "state", weights_only=True)
    fresh = Posterior(CATEGORIES, ["box_score", "mask_loss"])
    steps.time("checkpoint, restored", lambda: fresh.load_state_dict(stored))


def measure_ledger(size: int, folder: Path, steps: Steps) -> None:
    """As many rows as a training writes, of 1.2 million cut-outs drawn unevenly."""
    rng = np.random.default_rng(0)
    cut_outs = 44 * size // 1000  # each is pasted 22 times on average
    ids = np.unique(rng.integers(1 << 62, size=max(cut_outs, 1)))
    rows_of_step = 100 * PASTES  # a hundred steps at once: rows, not calls, are measured

    def write() -> None:
        with LedgerWriter(
            folder, category_ids=range(1, CATEGORIES + 1), category_frequency=["f"] * CATEGORIES
        ) as writer:
            for step in range(-(-size // rows_of_step)):
                rows = contribution(rng.choice(ids, rows_of_step), rng)
                accept = torch.ones(rows_of_step, dtype=torch.bool)
                writer.append(step, rows, Decision.uniform(accept, "always"), range(16))

    steps.time("rows written", write)
    steps.note("rows, on disk", sum(f.stat().st_size for f in folder.iterdir()) / 1e6)
    ledger = steps.time("opened", lambda: Ledger(folder))
    steps.time("figures by category", ledger.by_category)
    steps.time("ranking of one category", lambda: rank(ledger, 7))
    steps.time("values of all cut-outs (filter)", lambda: instance_values(ledger))


PIECES = {
    "index": measure_index,
    "files": measure_files,
    "posterior": measure_posterior,
    "directions": measure_directions,
    "ledger": measure_ledger,
    "annotations": measure_annotations,
}


def report(piece: str, by_size: dict[int, list[dict]]) -> str:
    """A table of a piece: a column of time and memory for each size, and the powers."""
    sizes = sorted(by_size)
    header = [f"{piece} ({', '.join(f'{size:,}' for size in sizes)})"]
    header += [*(f"seconds at {s:,}" for s in sizes), *(f"MB at {s:,}" for s in sizes)]
    header += ["power of time", "power of memory"] if len(sizes) > 1 else []
    rows = []
    for steps in zip(*(by_size[size] for size in sizes), strict=True):
        cells = [steps[0]["step"]]
        for key, digits in (("seconds", 4), ("megabytes", 0)):
            cells += [_number(step[key], digits) for step in steps]
        if len(sizes) > 1:
            ratio = math.log(sizes[-1] / sizes[0])
            for key, least in (("seconds", 1e-3), ("megabytes", 10.0)):
                first, last = steps[0][key], steps[-1][key]
                # Of what is hardly measurable there is no power.
                known = min(first, last) >= least
                cells.append(f"{math.log(last / first) / ratio:.2f}" if known else "")
        rows.append(cells)
    return markdown_table(header, rows)


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def measure(piece: str, size: int, folder: Path | None) -> list[dict]:
    """The steps of a piece at a size, measured in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, piece, "--one", str(size)]
    if folder is not None:
        command += ["--folder", str(folder)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main(args: argparse.Namespace) -> None:
    if args.one is not None:
        steps = Steps()
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            PIECES[args.piece](args.one, Path(folder), steps)
        print(json.dumps(steps.rows))
        return
    if args.document:
        check_document(args.document, COMMAND)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "scale.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    known = {(r["piece"], r["size"]): r["steps"] for r in map(json.loads, lines)}
    tables = []
    for piece in PIECES if args.piece == "all" else [args.piece]:
        sizes = args.sizes or SIZES[piece]
        for size in sizes:
            if (piece, size) not in known:
                known[piece, size] = measure(piece, size, args.folder)
                with path.open("a") as file:
                    record = {"piece": piece, "size": size, "steps": known[piece, size]}
                    file.write(json.dumps(record) + "\n")
        tables.append(report(piece, {size: known[piece, size] for size in sizes}))
        print(tables[-1])
    if args.document:
        replace_tables(args.document, COMMAND, "\n".join(tables))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("piece", choices=[*PIECES, "all"])
    parser.add_argument("--sizes", type=int, nargs="+", help="default: a tenth of LVIS's, LVIS's")
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--output", type=Path, default=Path("output/scale"))
    parser.add_argument("--document", type=Path, help="Markdown file to put the tables into")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_tool(main, parse_arguments())
