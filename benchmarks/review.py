"""What is a person's verdict worth? Replays finished runs with a simulated reviewer.

Puts the posterior of a run of miniature_gal together again from its ledger and its auditions, as it
stood after some steps, and has a reviewer who answers by the truth file judge cut-outs: those that
tools/review_pool.py would show, or random ones. Prints the share of good ones among what would be
drawn next, beside what fewer auditions would have led to, and how many auditions the verdicts
replace. It also tries to have verdicts say something about other cut-outs: the signals' weights in
the value, learnt from the verdicts.

    python benchmarks/review.py output/comparison/gal-seed*-* --document docs/review.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from detectron2.config import CfgNode
from documents import check_document, markdown_table, show
from separation import spread

from gal_d2.judging.likeness import stored_likeness
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.review.beliefs import Beliefs
from gal_d2.review.order import outlook
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.likeness_evidence import Likenesses
from gal_d2.selection.posterior import AUDITION, TRAINING, Posterior
from gal_d2.selection.sampler import DrawRule
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.truth import DEFAULT_FILE, GOOD, PoolTruth

COMMAND = "benchmarks/review.py"
COUNTS = (0, 50, 200)
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the auditions' evidence
_BATCH = 10  # verdicts between two looks at all gains, as in a review
_RANDOM = 5  # repetitions of what is random


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        cfg: its config.
        rows: by source, columns of its scores in order of steps.
        last_step: of the run.
        likeness: what a pretrained network said of cut-outs, if the run asked one.
    """

    cfg: CfgNode
    rows: dict[int, dict[str, np.ndarray]]
    last_step: int
    likeness: Likenesses

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read the OUTPUT_DIR of a run."""
        cfg = load_config(str(folder / "config.yaml"))
        heads = cfg.GAL.SCORER.HEADS
        wanted = ["pool_id", "gt_class", "category_id", "area", "score", "phi"]
        wanted += [f"head_{kind}_{head}" for kind in ("score", "loss") for head in heads]
        rows = {}
        for source, name in ((TRAINING, "ledger"), (AUDITION, "auditions")):
            table = pa.concat_tables(Ledger(folder / name).tables(wanted)).sort_by("step")
            rows[source] = {c: table[c].to_numpy() for c in table.column_names}
        return cls(cfg, rows, int(rows[TRAINING]["step"].max()), stored_likeness(folder))

    def posterior(self, steps: int, auditions: float = 1.0, seed: int = 0) -> tuple[Posterior, int]:
        """The posterior after some steps, and how many auditions it has heard of.

        Scores of a class whose directions were young were not remembered. Their end is not in the
        ledger, but the first audition of the class is: it came with the next round.

        Args:
            steps: of the training.
            auditions: share of them that is remembered.
            seed: says which.
        """
        posterior = Posterior.from_config(self.cfg)
        posterior.add_likeness(self.likeness)
        rng = np.random.default_rng(seed)
        heard = self.rows[AUDITION]
        is_heard = (heard["step"] < steps) & (rng.random(len(heard["step"])) < auditions)
        first = np.full(posterior.num_classes, np.iinfo(np.int64).max)
        np.minimum.at(first, heard["gt_class"], heard["step"])
        trained = self.rows[TRAINING]
        is_old = (trained["step"] < steps) & (trained["step"] >= first[trained["gt_class"]])
        is_scored = (trained["step"] + 1) % self.cfg.GAL.SCORER.PERIOD == 0
        is_old &= is_scored  # the rows of other steps have taught nothing
        events = [
            (step, source, part)
            for source, keep in ((TRAINING, is_old), (AUDITION, is_heard))
            for step, part in _by_step(self.rows[source], keep)
        ]
        for step, source, part in sorted(events, key=lambda event: event[:2]):
            posterior.update(_contribution(part, self.cfg.GAL.SCORER.HEADS), step, source=source)
        return posterior, int(is_heard.sum())


def _by_step(rows: dict[str, np.ndarray], keep: np.ndarray):
    rows = {name: column[keep] for name, column in rows.items()}
    steps, first = np.unique(rows["step"], return_index=True)
    parts = np.split(np.arange(len(rows["step"])), first[1:])
    for step, part in zip(steps.tolist(), parts, strict=True):
        yield step, {name: column[part] for name, column in rows.items()}


def _contribution(rows: dict[str, np.ndarray], heads: Sequence[str]) -> Contribution:
    def column(name: str) -> torch.Tensor:
        return torch.from_numpy(rows[name].astype(np.float32))

    ids = torch.from_numpy(rows["pool_id"].copy())
    return Contribution(
        pool_id=ids,
        image_index=torch.zeros_like(ids),
        gt_class=torch.from_numpy(rows["gt_class"].astype(np.int64)),
        score=column("score"),
        phi=column("phi"),
        head_score={head: column(f"head_score_{head}") for head in heads},
        head_loss={head: column(f"head_loss_{head}") for head in heads},
        num_rois=torch.ones_like(ids),
        area=column("area"),
    )


class Replay:
    """What a reviewer who knows the truth does to what is drawn.

    Args:
        pool: of N cut-outs.
        truth: what they really are.
    """

    def __init__(self, pool: InstancePool, truth: PoolTruth) -> None:
        self.ids = pool.all_ids()
        self.category_ids = pool.category_of(self.ids)
        self.is_good = truth.kind[truth.rows(self.ids)] == GOOD

    def beliefs(self, posterior: Posterior, cfg: CfgNode) -> Beliefs:
        node, belief = cfg.GAL.POOL, posterior.get(self.ids)
        rule = DrawRule(node.CANDIDATES, node.BEST, node.TEMPERATURE)
        options = (posterior.weights, posterior.ceilings, rule)
        return Beliefs(self.ids, self.category_ids, belief.mean, belief.std, *options)

    def good_share(self, beliefs: Beliefs, judged: np.ndarray) -> float:
        """Share of good ones among what would be drawn, of 0 to 1.

        Args:
            beliefs: by scores.
            judged: (N,) bool, what was judged.
        """
        share = outlook(beliefs, self._said(judged)).share
        return float(share @ self.is_good / len(np.unique(self.category_ids)))

    def _said(self, judged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[judged], np.where(self.is_good[judged], 1, -1).astype(np.int8)

    def choose(self, beliefs: Beliefs, count: int) -> np.ndarray:
        """(N,) bool: what a reviewer is shown, a few at a time, until ``count`` are judged."""
        judged = np.zeros(len(self.ids), bool)
        while judged.sum() < count:
            gain = outlook(beliefs, self._said(judged)).gain
            few = min(_BATCH, count - int(judged.sum()))
            judged[np.argsort(-gain, kind="stable")[:few]] = True
        return judged

    def at_random(self, count: int, seed: int) -> np.ndarray:
        """(N,) bool: ``count`` cut-outs, whichever."""
        judged = np.zeros(len(self.ids), bool)
        judged[np.random.default_rng(seed).choice(len(judged), count, replace=False)] = True
        return judged

    def generalised(self, beliefs: Beliefs, judged: np.ndarray) -> Beliefs:
        """Beliefs whose signals weigh what the verdicts say.

        A logistic regression on the verdicts, with the config's weights as what is expected.
        """
        if not judged.any():
            return beliefs
        features = np.minimum(beliefs.mean, beliefs.ceilings)[judged]
        target = self.is_good[judged].astype(float)
        expected = 2.0 * beliefs.weights
        weights, level = expected.copy(), 0.0
        for _ in range(200):
            p = 1 / (1 + np.exp(-(level + features @ weights)))
            weights += 0.05 * (features.T @ (target - p) - (weights - expected))
            level += 0.05 * (target - p).sum()
        weights = np.maximum(weights, 0.0)
        return replace(beliefs, weights=weights / max(weights.max(), 1e-9))


@dataclass(frozen=True)
class Figures:
    """Of one run after some steps; shares of good ones, of 0 to 1.

    Attributes:
        auditions: number of auditions by share that is remembered.
        fewer: share of good ones by share of auditions.
        shown, random, general: by number of verdicts: as the tool shows them; whichever; as the
            tool shows them, with weights learnt from them.
    """

    auditions: dict[float, int]
    fewer: dict[float, float]
    shown: dict[int, float]
    random: dict[int, float]
    general: dict[int, float]

    def replaced(self, count: int) -> float:
        """How many more auditions lead as far as ``count`` verdicts do.

        By what the second half of the auditions has gained: further ones would gain less.
        """
        gained = self.fewer[1.0] - self.fewer[0.5]
        number = self.auditions[1.0] - self.auditions[0.5]
        return (self.shown[count] - self.shown[0]) / max(gained, 1e-9) * number


def measure(run: Run, replay: Replay, steps: int) -> Figures:
    """Replay one run."""
    numbers, fewer = {}, {}
    for share in SHARES:
        seeds = range(1 if share == 1 else _RANDOM)
        found = [run.posterior(steps, share, seed) for seed in seeds]
        numbers[share] = int(np.mean([number for _, number in found]))
        nothing = np.zeros(len(replay.ids), bool)
        fewer[share] = float(
            np.mean([replay.good_share(replay.beliefs(p, run.cfg), nothing) for p, _ in found])
        )
    beliefs = replay.beliefs(found[0][0], run.cfg)  # of all auditions, which come last
    shown, random, general = {}, {}, {}
    for count in COUNTS:
        judged = replay.choose(beliefs, count)
        shown[count] = replay.good_share(beliefs, judged)
        general[count] = replay.good_share(replay.generalised(beliefs, judged), judged)
        others = [replay.at_random(count, seed) for seed in range(_RANDOM)]
        random[count] = float(np.mean([replay.good_share(beliefs, other) for other in others]))
    return Figures(numbers, fewer, shown, random, general)


def report(figures: dict[int, list[Figures]]) -> str:
    """Tables with a row for each number of steps; means over runs."""

    def percent(values: Sequence[float]) -> str:
        return spread(100 * np.array(values), 1)

    rows, cost = [], []
    for steps, runs in figures.items():
        rows.append([f"{steps:,}", percent([f.shown[0] for f in runs])])
        for count in COUNTS[1:]:
            for name in ("shown", "random", "general"):
                rows[-1].append(percent([getattr(f, name)[count] for f in runs]))
        cost.append([f"{steps:,}"])
        for share in SHARES:
            number = np.mean([f.auditions[share] for f in runs])
            cost[-1].append(f"{percent([f.fewer[share] for f in runs])} ({number:,.0f})")
        cost[-1] += [f"{np.mean([f.replaced(count) for f in runs]):,.0f}" for count in COUNTS[1:]]
    header = ["after steps", "no verdict"]
    for count in COUNTS[1:]:
        header += [f"{count}, by the tool", f"{count} random", f"{count}, weights learnt"]
    header_cost = ["after steps", *(f"{100 * share:.0f} % of the auditions" for share in SHARES)]
    header_cost += [f"{count} verdicts replace auditions" for count in COUNTS[1:]]
    number = len(next(iter(figures.values())))
    return (
        f"Good ones among what would be drawn, in %, means over {number} runs:\n\n"
        + markdown_table(header, rows)
        + "\nThe same without verdicts, after fewer auditions (their number in parentheses), and "
        "how many auditions more would do what the tool's verdicts do:\n\n"
        + markdown_table(header_cost, cost)
    )


def main(args: argparse.Namespace) -> None:
    if args.document:
        check_document(args.document, COMMAND)
    replay = Replay(InstancePool(args.pool), PoolTruth.read(args.truth))
    figures: dict[int, list[Figures]] = {}
    for folder in args.runs:
        run = Run.read(folder)
        for steps in args.steps or (300, 700, run.last_step + 1):
            figures.setdefault(steps, []).append(measure(run, replay, steps))
            print(f"{folder}, {steps} steps: {figures[steps][-1]}", flush=True)
    text = report(figures)
    show(text, args.document, COMMAND)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="OUTPUT_DIRs of finished runs")
    parser.add_argument("--pool", type=Path, default=Path("datasets/miniature/pool"))
    parser.add_argument("--truth", type=Path, default=DEFAULT_FILE)
    parser.add_argument("--steps", type=int, nargs="+", help="default: 300, 700 and the last")
    parser.add_argument("--document", type=Path, help="Markdown file to put the tables into")
    run_tool(main, parser.parse_args())
