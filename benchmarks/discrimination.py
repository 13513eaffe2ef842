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
import contextlib
import functools
import io
import itertools
import json
import logging
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.config import CfgNode
from detectron2.structures import Instances
from documents import check_document, markdown_table, replace_tables
from separation import acceptance, auc, select, spread
from torch import Tensor, nn
from tqdm import tqdm

from gal_d2.copy_paste.fields import InstanceSource
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.datasets.registration import load_metadata
from gal_d2.engine.trainer import GALTrainer
from gal_d2.errors import UserError
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.policies import ACCEPTANCE_REGISTRY, AcceptancePolicy
from gal_d2.selection.posterior import Posterior
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.launch import run_tool
from gal_d2.setup.setup import setup
from gal_d2.testbeds.truth import GOOD, PoolTruth

COMMAND = "benchmarks/discrimination.py"
CONFIG = "configs/miniature_gal.yaml"
STEPS = 2800
POLICIES = {"clean": "never", "polluted": "always", "random": "random", "oracle": "OracleAccept"}
CONDITIONS = ("clean", "polluted", "gal", "random", "oracle")
# Three of five candidates are bad, and that shows in any sample of the pool.
QUANTILE = (
    *("GAL.ACCEPT.POLICY", "quantile", "GAL.ACCEPT.WARM_UP.RULE", "reject"),
    *("GAL.ACCEPT.RATE", "0.27"),
)
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

# -- Training


@ACCEPTANCE_REGISTRY.register()
class OracleAccept(AcceptancePolicy):
    """Accepts what the truth file says is good."""

    name = "oracle"

    def __init__(self, cfg: CfgNode) -> None:
        self.truth = PoolTruth.read()

    def decide(self, contribution, context) -> Decision:
        rows = self.truth.rows(contribution.pool_id.cpu().numpy())
        accept = torch.from_numpy(self.truth.kind[rows] == GOOD)
        return Decision.uniform(accept.to(contribution.score.device), self.name)


class RecordingJudge(InstanceJudge):
    """Also records how similar the box features of a pasted object are to its class's mean ones."""

    def __init__(self, cfg: CfgNode, roi_heads: nn.Module, seed: int, model: nn.Module) -> None:
        super().__init__(cfg, roi_heads, seed, model)
        self.momentum = cfg.GAL.SCORER.MOMENTUM
        self.mean_feature: dict[int, Tensor] = {}
        self.similarity: list[np.ndarray] = []

    def __call__(
        self,
        features: Mapping[str, Tensor],
        targets: Sequence[Instances],
        proposals: Sequence[Instances],
    ) -> list[Tensor]:
        self._record(features, targets)
        return super().__call__(features, targets, proposals)

    @torch.no_grad()
    def _record(self, features: Mapping[str, Tensor], targets: Sequence[Instances]) -> None:
        heads = self.roi_heads
        maps = [features[name] for name in heads.box_in_features]
        vectors = heads.box_head(heads.box_pooler(maps, [t.gt_boxes for t in targets]))
        vectors = F.normalize(vectors, dim=1)
        classes = torch.cat([t.gt_classes for t in targets]).tolist()
        pasted = torch.cat([t.instance_source for t in targets]) == InstanceSource.PASTED
        similarity = [
            F.cosine_similarity(self.mean_feature[c], vector, dim=0).item()
            if c in self.mean_feature
            else np.nan
            for c, vector, is_pasted in zip(classes, vectors, pasted, strict=True)
            if is_pasted
        ]
        self.similarity.append(np.array(similarity))
        for c, vector, is_pasted in zip(classes, vectors, pasted, strict=True):
            if not is_pasted:
                old = self.mean_feature.get(c, vector)
                self.mean_feature[c] = self.momentum * old + (1 - self.momentum) * vector


class RecordingTrainer(GALTrainer):
    @classmethod
    def build_judge(cls, cfg: CfgNode, model: nn.Module, seed: int) -> RecordingJudge:
        model.roi_heads.judge = RecordingJudge(cfg, model.roi_heads, seed, model)
        return model.roi_heads.judge


def train(folder: Path, condition: str, seed: int, options: Sequence[str]) -> None:
    """One run, from its start; ``result.json`` is written last."""
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    policy = POLICIES.get(condition)
    arguments = [
        *("--config-file", CONFIG, "--num-gpus", "0", "OUTPUT_DIR", str(folder)),
        *("SEED", str(seed), "GAL.SCORER.PICTURE_PERIOD", "0"),
        *("GAL.SCORER.GRADIENTS", "all"),
        *("GAL.POOL.SAMPLER", "uniform_class"),
        *("SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", str(STEPS)),
        *(("GAL.ACCEPT.POLICY", policy) if policy else QUANTILE),
        *options,
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # all of it is in the run's log.txt, too
        trainer = RecordingTrainer(setup(argument_parser().parse_args(arguments)))
        trainer.resume_or_load(resume=False)
        trainer.train()
    np.save(folder / "similarity.npy", np.concatenate(trainer.judge.similarity))
    with (folder / "result.json").open("w") as file:
        json.dump({"steps": trainer.max_iter, "metrics": trainer.eval_results}, file, indent=2)


def train_all(args: argparse.Namespace) -> None:
    """The runs that are not there yet; `random` needs the rate of `gal`."""
    first = [(c, seed, ()) for seed in args.seeds for c in args.conditions if c != "random"]
    train_missing(args, first)
    if "random" in args.conditions:
        rates = {seed: str(accepted_share(args, seed)) for seed in args.seeds}
        train_missing(args, [("random", s, ("GAL.ACCEPT.RATE", rates[s])) for s in args.seeds])


def train_missing(args: argparse.Namespace, runs: Sequence[tuple[str, int, tuple]]) -> None:
    missing = [r for r in runs if not (run_folder(args, *r[:2]) / "result.json").is_file()]
    # A process per run: detectron2 keeps global state.
    with (
        ProcessPoolExecutor(
            args.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1
        ) as executor,
        tqdm(total=len(missing), desc="trainings", disable=not missing) as progress,
    ):
        futures = [
            executor.submit(train, run_folder(args, c, seed), c, seed, (*options, *args.options))
            for c, seed, options in missing
        ]
        for future in as_completed(futures):
            future.result()
            progress.update()


def run_folder(args: argparse.Namespace, condition: str, seed: int) -> Path:
    return args.output / f"{condition}-{seed}"


def read_runs(args: argparse.Namespace, condition: str, truth: PoolTruth) -> list[Run]:
    """Of all seeds whose run is finished."""
    folders = [run_folder(args, condition, seed) for seed in args.seeds]
    return [Run.read(folder, truth) for folder in folders if (folder / "result.json").is_file()]


def accepted_share(args: argparse.Namespace, seed: int) -> float:
    """Share of all pasted instances that `gal` accepted."""
    ledger = Ledger(run_folder(args, "gal", seed) / "ledger")
    accept = pa.concat_tables(ledger.tables(["accept"]))["accept"]
    return round(float(np.mean(accept.to_numpy())), 4)


# -- Reading a run


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


# -- Reports


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
    print(text)
    draw(runs, args.figure)
    print(f"plot: {args.figure}")
    if args.document:
        replace_tables(args.document, command, text)


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
