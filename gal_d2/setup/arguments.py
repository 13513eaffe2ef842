"""The command line of training and scoring. It imports nothing heavy: --help need not wait."""

from __future__ import annotations

import argparse
import os
import sys

# --split of the scoring tools -> which of DATASETS
SPLITS = {"train": "TRAIN", "val": "TEST"}


def argument_parser(epilog: str | None = None, *, trains: bool = False) -> argparse.ArgumentParser:
    """detectron2's standard arguments, and ``--num-cpu-processes``.

    They are written out here, because detectron2 gives them only with all that it imports.

    Args:
        epilog: shown below them.
        trains: the tool trains; it also has ``--overwrite``.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to a config file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs per machine; 0: the CPU")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in the run")
    parser.add_argument("--machine-rank", type=int, default=0, help="which of them this is, from 0")
    # As detectron2 has it: the same for a user, so that orphans of an earlier run are noticed.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes meet, as in torch.distributed (%(default)s)",
    )
    parser.add_argument(
        "--num-cpu-processes",
        type=int,
        default=1,
        help="processes per machine where --num-gpus is 0 (gloo)",
    )
    if trains:
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="start anew in a used OUTPUT_DIR; what is there is moved to a folder in it",
        )
    parser.add_argument(
        "opts",
        metavar="KEY VALUE",
        nargs=argparse.REMAINDER,
        help="config options in pairs, after all others: SOLVER.BASE_LR 0.01",
    )
    return parser


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of :class:`gal_d2.commands.offline_options.OfflineOptions`, with its defaults."""
    parser.add_argument(
        "--category",
        action="append",
        metavar="NAME",
        help="name, synonym or id; can be given several times (default: all)",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="train",
        help="where the real objects of the class directions come from (default: %(default)s)",
    )
    for option, default, meaning in (
        ("per-category", 64, "real objects of each category to learn from, 0: all"),
        ("candidates", 32, "cut-outs of each category that tell what it is confused with"),
        ("placements", 2, "real images that each cut-out is pasted on"),
        ("batch-size", 8, "images per process and step"),
        ("seed", 0, "of the placements"),
    ):
        parser.add_argument(
            f"--{option}", type=int, default=default, help=f"{meaning} (default: %(default)s)"
        )


def check_arguments(args: argparse.Namespace) -> None:
    """Look at what :func:`argument_parser` gave before anything heavy is imported.

    Raises:
        UserError: the config file or one of its keys is wrong, or a count makes no sense.
    """
    from gal_d2.errors import UserError

    for name, least in (
        ("num_gpus", 0),
        ("num_cpu_processes", 1),
        ("num_machines", 1),
        ("machine_rank", 0),
    ):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(args, name)}: set it to {least} or more.")
    if args.machine_rank >= args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank}, but --num-machines is {args.num_machines}: "
            "machines are counted from 0."
        )
    flags = [word for word in args.opts if word.startswith("--")]
    if flags:
        raise UserError(
            f"{flags[0]} comes after KEY VALUE options: put what begins with -- before them."
        )
    from gal_d2.setup.configuration import load_config

    load_config(args.config_file, args.opts)
