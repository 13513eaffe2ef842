"""The paper's comparison: what to paste, by AP at the end and over the training, and by cost.

Trains a detector once per condition and seed. With one seed all conditions start from the same
weights and see the same real images in the same order.

- none: real images only;
- all: every cut-out that the uniform sampler picks (X-Paste);
- random: a share of them (--rate), at random;
- feature: only the cut-outs of each category (--keep) that are most alike to its real objects, by
  the box features of the model of `all`, by CLIP (--clip MODEL), or by the network of MODEL.TIMM
  as its ImageNet weights have it (--imagenet);
- offline: only the cut-outs of each category (--keep) that the model of `all` scores best;
- batch: the published online recipe;
- no_loop: ours, the pastes drawn uniformly and a share of them (--rate) accepted by score;
- gal: ours;
- oracle: only good cut-outs, by the truth file beside the pool, where there is one.

Finished runs are kept, one line each in OUTPUT/runs.jsonl, and not repeated; what was killed goes
on where it was. Runs are known by their config and options, not by the code: after a change of
code, give another --output.

    python benchmarks/comparison.py --document docs/results.md
    python benchmarks/comparison.py --steps 700 --seeds 0 --conditions all gal
    python benchmarks/comparison.py --ablation "no auditions" "GAL.AUDITION.IMAGES 0.0"
    python benchmarks/comparison.py --config street --imagenet --output output/street_comparison
    python benchmarks/comparison.py --config lvis --num-gpus 8 --jobs 1 --seeds 0
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import gal_d2  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from comparison_report import draw, report
from comparison_results import PoolShares, Results
from comparison_runs import REPOSITORY, Condition, Run, Trainer, digest_of, run_options
from comparison_schedule import train_missing
from detectron2.config import CfgNode
from documents import check_document, replace_tables

from gal_d2.datasets.registration import load_metadata
from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import run_tool
from gal_d2.setup.setup import resolve_datasets
from gal_d2.testbeds.truth import PoolTruth

COMMAND = "benchmarks/comparison.py"
RESULTS = "runs.jsonl"  # in the output folder
CONFIGS = {"all": "copypaste", "baseline": "baseline", "batch": "batch", "gal": "gal"}
STEPS = 2800  # of the miniature
PLACEMENTS = 6  # of each cut-out, for the offline filter
NAMES = ("none", "all", "random", "feature", "offline", "batch", "no_loop", "gal", "oracle")
ABLATED = "gal: "  # before the name of an ablation, in the results


def conditions(rate: float, likeness: str = "likeness") -> dict[str, Condition]:
    """All conditions, by name, in the order of the tables.

    Args:
        rate: share that `random` and `no_loop` accept.
        likeness: what the feature filter goes by, in words.
    """
    random = (
        *("GAL.SCORER.ENABLED", "True", "GAL.ACCEPT.UNIT", "instance"),
        *("GAL.ACCEPT.POLICY", "random", "GAL.ACCEPT.RATE", str(rate)),
    )
    no_loop = (
        *("GAL.POOL.SAMPLER", "uniform_class", "GAL.AUDITION.IMAGES", "0.0"),
        *("GAL.ACCEPT.POLICY", "quantile", "GAL.ACCEPT.WARM_UP.RULE", "reject"),
        *("GAL.ACCEPT.RATE", str(rate)),
    )
    listed = (
        Condition("none", "no pastes", "baseline"),
        Condition("all", "all (X-Paste)", "all"),
        Condition("random", f"{rate:.0%} at random", "all", random),
        Condition("feature", f"filtered by {likeness}", "all", allow_list="feature"),
        Condition("offline", "filtered offline by score", "all", allow_list="offline"),
        Condition("batch", "published online recipe", "batch"),
        Condition("no_loop", "ours without the loop", "gal", no_loop),
        Condition("gal", "**ours**", "gal"),
        Condition("oracle", "only good ones (oracle)", "all", allow_list="truth"),
    )
    return {condition.name: condition for condition in listed}


def config_files(prefix: str) -> dict[str, Path]:
    """The files of a prefix, by :attr:`Condition.config`.

    Args:
        prefix: a path, or the name of files in the repository's ``configs/``.

    Raises:
        UserError: one of them is not there.
    """
    found = {}
    for name, end in CONFIGS.items():
        candidates = (Path(f"{prefix}_{end}.yaml"), REPOSITORY / f"configs/{prefix}_{end}.yaml")
        present = [path for path in candidates if path.is_file()]
        if not present:
            raise UserError(
                f"--config is '{prefix}', but there is no {candidates[0]}, here or in configs/: "
                f"the comparison needs {', '.join(f'PREFIX_{e}.yaml' for e in CONFIGS.values())}."
            )
        found[name] = present[0]
    return found


def plan_runs(
    args: argparse.Namespace,
    chosen: Sequence[Condition],
    files: dict[str, Path],
    steps: int,
) -> list[Run]:
    """Every run that is wanted."""
    common = [*run_options(steps), *(["GAL.POOL.ROOT", args.pool] if args.pool else [])]
    runs = []
    for condition in chosen:
        options = (*common, *condition.options, *args.options)
        cfg = load_config(str(files[condition.config]), list(options))  # finds mistakes at once
        described = json.dumps(CfgNode.load_yaml_with_base(str(files[condition.config])))
        # A default that changes makes our own runs stale, not those they are compared with.
        ours = str(cfg.GAL) if condition.config == "gal" else ""
        filtered = {
            "": (),
            "truth": (),
            "feature": (args.keep, "--imagenet" if args.imagenet else args.clip),
            "offline": (args.keep, PLACEMENTS),
        }[condition.allow_list]
        digest = digest_of(condition.allow_list, described, options, ours, filtered)
        for seed in args.seeds:
            slug = "".join(c if c.isalnum() or c == "_" else "-" for c in condition.name)
            folder = args.output / f"{slug}-seed{seed}-{digest}"
            runs.append(Run(condition, seed, steps, options, digest, folder))
    return runs


def choose_conditions(args: argparse.Namespace, truth: PoolTruth | None) -> list[Condition]:
    """Those of the command line that can be trained, and what they need.

    Raises:
        UserError: the oracle is asked for, and nobody knows the truth.
    """
    likeness = "CLIP" if args.clip else "ImageNet features" if args.imagenet else "likeness"
    known = conditions(args.rate, likeness)
    names = args.conditions or [n for n in NAMES if n != "oracle" or truth is not None]
    if "oracle" in names and truth is None:
        raise UserError(
            "--conditions has oracle, but there is no truth file beside the pool: name it with "
            "--truth, or leave out oracle."
        )
    chosen = [known[name] for name in NAMES if name in names]
    for name, options in args.ablation:
        gal = known["gal"]
        pairs = (*gal.options, *options.split())
        chosen.append(Condition(f"{ABLATED}{name}", name, gal.config, pairs))
    if args.ablation and known["gal"] not in chosen:
        chosen.append(known["gal"])
    if any(condition.needs_model for condition in chosen) and known["all"] not in chosen:
        chosen.append(known["all"])
    return chosen


def find_truth(args: argparse.Namespace, pool_root: Path) -> PoolTruth | None:
    """The truth about the pool; None where there is no such file."""
    if args.truth is not None:
        return PoolTruth.read(args.truth)
    path = pool_root.parent / "pool_truth.parquet"
    return PoolTruth.read(path) if path.is_file() else None


def pool_shares(cfg: CfgNode, steps: int) -> PoolShares | None:
    """What is pasted where no ledger tells; None without a pool at hand."""
    if not Path(cfg.GAL.POOL.ROOT).is_dir():
        return None
    known = load_metadata(cfg.DATASETS.TRAIN[0]).thing_dataset_id_to_contiguous_id
    pool = InstancePool(cfg.GAL.POOL.ROOT)
    pool_id = pool.all_ids()
    category_id = pool.category_of(pool_id)
    chosen = np.isin(category_id, list(known))
    node = cfg.GAL.COPY_PASTE
    pastes = steps * cfg.SOLVER.IMS_PER_BATCH * (node.MIN_PASTES + node.MAX_PASTES) / 2
    return PoolShares(pool_id[chosen], category_id[chosen], pastes)


def device_name(num_gpus: int) -> str:
    """What the trainings run on, in words."""
    if num_gpus:
        count = f"{num_gpus} x " if num_gpus > 1 else ""
        return f"{count}{torch.cuda.get_device_name(0)}"
    lines = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (lines.read_text().splitlines() if lines.is_file() else ())
        if line.startswith("model name")
    ]
    return f"CPU ({names[0] if names else platform.machine()})"


def document_command(args: argparse.Namespace) -> str:
    """What names the place in the document: the command, as far as it changes the figures."""
    parts = [COMMAND]
    if args.config != "miniature":
        parts += ["--config", args.config]
    if args.steps is not None and args.steps != STEPS:
        parts += ["--steps", str(args.steps)]
    if args.pool:
        parts += ["--pool", args.pool]
    return " ".join([*parts, *args.options])


def main(args: argparse.Namespace) -> None:
    command = document_command(args)
    if args.document:
        check_document(args.document, command)
    if not 0 < args.keep <= 1 or not 0 < args.rate <= 1:
        raise UserError(f"--keep is {args.keep} and --rate {args.rate}: set them in (0, 1].")
    files = config_files(args.config)
    pooled = [*(["GAL.POOL.ROOT", args.pool] if args.pool else []), *args.options]
    cfg = load_config(str(files["all"]), pooled)
    steps = args.steps or (STEPS if args.config == "miniature" else cfg.SOLVER.MAX_ITER)
    truth = find_truth(args, Path(cfg.GAL.POOL.ROOT))
    chosen = choose_conditions(args, truth)
    runs = plan_runs(args, chosen, files, steps)
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results(args.output / RESULTS)
    if not args.finished_only:
        resolve_datasets(cfg)
        quantile = ["--quantile", str(round(1 - args.keep, 6)), "--at-least", "1"]
        trainer = Trainer(
            files,
            args.num_gpus,
            {
                "feature": [
                    *("--keep", str(args.keep)),
                    *(["--clip", args.clip] if args.clip else []),
                    *(["--imagenet"] if args.imagenet else []),
                ],
                "offline": ["--pool", cfg.GAL.POOL.ROOT, *quantile],
                "score": ["--placements", str(PLACEMENTS)],
            },
            truth,
        )
        train_missing(
            runs,
            results,
            trainer,
            jobs=args.jobs,
            extra={"device": device_name(args.num_gpus), "jobs": args.jobs},
            pool=pool_shares(cfg, steps),
        )
    finished: dict[Condition, dict[int, dict]] = {}
    for run in runs:
        if run.key in results.records:
            finished.setdefault(run.condition, {})[run.seed] = results.records[run.key]
    if not finished:
        raise UserError(f"{args.output / RESULTS} has none of these runs: omit --finished-only.")
    main_table = {c: r for c, r in finished.items() if not c.name.startswith(ABLATED)}
    ablations = {c: r for c, r in finished.items() if c.name.startswith(ABLATED)}
    title = f"`{' '.join([args.config, *pooled])}`, {steps} steps"
    text = report(title, main_table, ablations)
    print(text)
    draw(main_table, steps, args.figure)
    print(f"plot: {args.figure}")
    if args.document:
        replace_tables(args.document, command, text)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        default="miniature",
        metavar="PREFIX",
        help="miniature, street, lvis, or the path before _baseline.yaml and so on (%(default)s)",
    )
    parser.add_argument("--conditions", nargs="+", choices=NAMES, help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, help=f"default: {STEPS} of the miniature, else the config's"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (%(default)s)")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=int(torch.cuda.is_available()),
        help="of a training; several trainings share them (default: 1, or 0 without a GPU)",
    )
    parser.add_argument("--output", type=Path, default=Path("output/comparison"))
    parser.add_argument("--pool", help="folder of the pool (default: the config's)")
    parser.add_argument(
        "--truth", type=Path, help="default: pool_truth.parquet beside the pool, if it is there"
    )
    parser.add_argument(
        "--rate", type=float, default=0.27, help="accepted by random and no_loop (%(default)s)"
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=0.4,
        help="share of each category that feature and offline keep (%(default)s)",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--clip", metavar="MODEL", help="feature: a CLIP of transformers")
    model.add_argument(
        "--imagenet", action="store_true", help="feature: the network of MODEL.TIMM and its weights"
    )
    parser.add_argument(
        "--ablation",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "OPTIONS"),
        help='a run of gal with other options, "KEY VALUE KEY VALUE"; can be given several times',
    )
    parser.add_argument("--document", type=Path, help="Markdown file to put the tables into")
    parser.add_argument("--figure", type=Path, default=Path("output/comparison/comparison.png"))
    parser.add_argument(
        "--finished-only", action="store_true", help="report the runs that are there, train none"
    )
    parser.add_argument("options", nargs="*", help="of the config, e.g. SOLVER.AMP.ENABLED True")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_tool(main, parse_arguments())
