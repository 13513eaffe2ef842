"""The trainings of benchmarks/discrimination.py: one per condition and seed."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn
from tqdm import tqdm

from gal_d2.copy_paste.fields import InstanceSource
from gal_d2.engine.trainer import GALTrainer
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.selection.decision import Decision
from gal_d2.selection.ledger import Ledger
from gal_d2.selection.policies import ACCEPTANCE_REGISTRY, AcceptancePolicy
from gal_d2.setup.arguments import argument_parser
from gal_d2.setup.setup import setup
from gal_d2.testbeds.truth import GOOD, PoolTruth

CONFIG = "configs/miniature_gal.yaml"
STEPS = 2800
POLICIES = {"clean": "never", "polluted": "always", "random": "random", "oracle": "OracleAccept"}
CONDITIONS = ("clean", "polluted", "gal", "random", "oracle")
# Three of five candidates are bad, and that shows in any sample of the pool.
QUANTILE = (
    *("GAL.ACCEPT.POLICY", "quantile", "GAL.ACCEPT.WARM_UP.RULE", "reject"),
    *("GAL.ACCEPT.RATE", "0.27"),
)


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
    ) -> list[Tensor] | None:
        self._record(features, targets)
        return super().__call__(features, targets)

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


def accepted_share(args: argparse.Namespace, seed: int) -> float:
    """Share of all pasted instances that `gal` accepted."""
    ledger = Ledger(run_folder(args, "gal", seed) / "ledger")
    accept = pa.concat_tables(ledger.tables(["accept"]))["accept"]
    return round(float(np.mean(accept.to_numpy())), 4)
