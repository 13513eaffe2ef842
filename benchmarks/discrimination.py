"""Does the score tell good cut-outs from bad ones, and does the policy act on it? Needs the truth.

Trains on the miniature with the scorer of `configs/miniature_gal.yaml`, four times as long as the
demo, with several seeds, once per condition. All draw their pastes uniformly, so that the scores
are of the whole pool and the policies decide on the same kind of pastes:

- clean: pastes are scored and train no head, so that the detector has seen good objects only;
- polluted: pastes are scored and all of them train, good and bad (accept-all);
- gal: the best 27 % by what is known of each cut-out, none before the scores mean something;
- random: as many as `gal` accepted with this seed, drawn at random;
- oracle: the good ones, by the truth file.

Reports how well each score separates good from bad cut-outs (AUC, within a class, then averaged
over classes), and what was accepted and what it did to AP. Finished runs are kept and not repeated.

    python benchmarks/discrimination.py --document docs/scoring.md
    python benchmarks/discrimination.py --conditions clean polluted --output output/short \
        SOLVER.MAX_ITER 700
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from discrimination_results import Run, class_aucs, mean_auc, read_runs
from discrimination_runs import CONDITIONS, CONFIG, train_all
from documents import check_document, markdown_table, show
from separation import acceptance, select, spread

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_metadata
from gal_d2.errors import UserError
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.truth import PoolTruth

COMMAND = "benchmarks/discrimination.py"
SCORED = ("clean", "polluted", "gal")  # the models whose scores are compared
TITLES = {"clean": "accept none", "polluted": "accept all"}
SCORES = {
    "combined": "score",
    "combined, evidence so far": "evidence_score",
    "box head, cosine with the contrasted direction": "head_score_box",
    "that, evidence so far": "evidence_head_score_box",
    "mask head, cosine": "head_score_mask",
    "raw dot product (phi)": "phi",
    "- box loss": "-head_loss_box",
    "- mask loss": "-head_loss_mask",
    "- mask loss, evidence so far": "-evidence_head_loss_mask",
    "cosine with the mean feature": "similarity",
}
KINDS = {
    "wrong object": "wrong_object",
    "of them ambiguous": "ambiguous",
    "noise": "noise",
    "misplaced mask": "misplaced_mask",
}
WINDOWS = 10  # of the training, in the plot


def report_scores(columns: Mapping[str, list[dict[str, np.ndarray]]]) -> str:
    """AUC of each score; ``columns`` by condition and seed, as of :meth:`Run.between`."""
    scored = [condition for condition in SCORED if condition in columns]
    rows = []
    for title, score in SCORES.items():
        cells = [
            spread([mean_auc(of_seed, score, kind) for of_seed in columns[condition]])
            for condition in scored
            for kind in KINDS.values()
        ]
        rows.append([title, *cells])
    header = [f"{kind}, {condition}" for condition in scored for kind in KINDS]
    return markdown_table(["AUC of the score", *header], rows)


def report_classes(
    columns: Mapping[str, list[dict[str, np.ndarray]]], names: Mapping[int, str]
) -> str:
    """AUC of the combined score's evidence by category."""
    scored = [condition for condition in SCORED if condition in columns]
    kinds = {title: kind for title, kind in KINDS.items() if kind != "ambiguous"}
    aucs = [
        [class_aucs(of_seed, "evidence_score", kind) for of_seed in columns[condition]]
        for condition in scored
        for kind in kinds.values()
    ]
    some = columns[scored[0]][0]
    ambiguous = set(some["category_id"][some["ambiguous"]].tolist())
    rows = [
        [f"{name}{' (ambiguous)' if key in ambiguous else ''}"]
        + [spread([by_class.get(key, np.nan) for by_class in column]) for column in aucs]
        for key, name in names.items()
    ]
    header = [f"{kind}, {condition}" for condition in scored for kind in kinds]
    return markdown_table(["AUC of the combined score's evidence", *header], rows)


def report_acceptance(columns: Mapping[str, list[dict[str, np.ndarray]]]) -> str:
    """What each policy accepted, in ambiguous categories and in all."""
    keys = ("good accepted", "bad accepted", "bad of accepted")
    rows = []
    for condition in (c for c in ("polluted", "random", "gal", "oracle") if c in columns):
        ambiguous = [acceptance(select(c, c["ambiguous"])) for c in columns[condition]]
        everywhere = [acceptance(c) for c in columns[condition]]
        cells = [
            spread([shares[key] for shares in of_seeds])
            for of_seeds in (ambiguous, everywhere)
            for key in keys
        ]
        rows.append([TITLES.get(condition, condition), len(columns[condition]), *cells])
    header = [f"{key}, {where}" for where in ("ambiguous", "all") for key in keys]
    return markdown_table(["policy", "seeds", *header], rows)


def report_precision(runs: Mapping[str, list[Run]]) -> str:
    columns = [(task, metric) for task in ("bbox", "segm") for metric in ("AP", "APr")]
    rows = []
    for condition in runs:
        cells = [
            spread([run.metrics[task][metric] for run in runs[condition]], 1)
            for task, metric in columns
        ]
        rows.append([TITLES.get(condition, condition), len(runs[condition]), *cells])
    header = [f"{'box' if task == 'bbox' else 'mask'} {metric}" for task, metric in columns]
    return markdown_table(["policy", "seeds", *header], rows)


def draw(runs: Mapping[str, list[Run]], path: Path) -> None:
    """AUC by kind, and the share of bad ones among the accepted, as the training goes on."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    edges = np.linspace(0, 1, WINDOWS + 1)
    model = next(condition for condition in ("gal", *SCORED) if condition in runs)
    centres = (edges[1:] + edges[:-1]) / 2 * runs[model][0].steps
    scores = {"score": "score", "evidence so far": "evidence_score"}
    for axis, (name, score) in zip(axes, scores.items(), strict=False):
        for title, kind in KINDS.items():
            value = functools.partial(mean_auc, score=score, kind=kind)
            draw_curve(axis, centres, edges, runs[model], title, value)
        axis.set(title=f"{model}: AUC of the {name}", ylim=(0.4, 1), xlabel="step")
        axis.axhline(0.9, color="0.8", linewidth=1, zorder=0)
    for condition in (c for c in ("polluted", "random", "gal") if c in runs):
        title = TITLES.get(condition, condition)
        draw_curve(axes[2], centres, edges, runs[condition], title, bad_of_accepted)
    axes[2].set(title="bad of accepted, ambiguous categories", ylim=(0, 1), xlabel="step")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def bad_of_accepted(columns: dict[str, np.ndarray]) -> float:
    return acceptance(select(columns, columns["ambiguous"]))["bad of accepted"]


def draw_curve(
    axis,
    centres: np.ndarray,
    edges: np.ndarray,
    runs: Sequence[Run],
    label: str,
    value: Callable[[dict[str, np.ndarray]], float],
) -> None:
    """Mean over the seeds, and the range of them as a band."""
    values = np.array(
        [[value(run.between(a, b)) for a, b in itertools.pairwise(edges)] for run in runs]
    )
    (line,) = axis.plot(centres, values.mean(0), label=label)
    axis.fill_between(
        centres, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0
    )


def main(args: argparse.Namespace) -> None:
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    command = " ".join([COMMAND, *args.options])
    if args.document:
        check_document(args.document, command)
    if "random" in args.conditions and "gal" not in args.conditions:
        raise UserError("--conditions has random, which accepts as many as gal: add gal.")
    truth = PoolTruth.read()
    if not args.finished_only:
        train_all(args)
    runs = {c: read_runs(args, c, truth) for c in CONDITIONS if c in args.conditions}
    runs = {condition: of_seeds for condition, of_seeds in runs.items() if of_seeds}
    if not runs:
        raise UserError(f"{args.output} has no finished run: leave out --finished-only.")
    late = {c: [run.between(args.share, 1) for run in of_seeds] for c, of_seeds in runs.items()}
    names = CategoryNames.from_file(load_metadata("miniature_train").json_file).names
    steps = next(iter(runs.values()))[0].steps
    text = "\n".join(
        [
            f"`{' '.join([Path(CONFIG).name, *args.options])}`, {steps} steps, seeds "
            f"{', '.join(map(str, args.seeds))}: mean ± standard deviation. From step "
            f"{round(args.share * steps)} on.\n",
            report_scores(late),
            report_classes(late, names),
            report_acceptance(late),
            report_precision(runs),
        ]
    )
    show(text, args.document, command)
    draw(runs, args.figure)
    print(f"plot: {args.figure}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument(
        "--share", type=float, default=0.5, help="leave out this first part of the training"
    )
    parser.add_argument("--output", type=Path, default=Path("output/discrimination"))
    parser.add_argument(
        "--figure", type=Path, default=Path("output/discrimination/discrimination.png")
    )
    parser.add_argument(
        "--finished-only", action="store_true", help="report the runs that are there, train none"
    )
    parser.add_argument("--document", type=Path, help="Markdown file to put the tables into")
    parser.add_argument("options", nargs="*", help="of the config, e.g. SOLVER.MAX_ITER 100")
    run_tool(main, parser.parse_args())
