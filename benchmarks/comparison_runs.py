"""The trainings of benchmarks/comparison.py: what each of them is, and how it is done."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gal_d2.errors import UserError
from gal_d2.pool.allow_list import write_allow_list
from gal_d2.testbeds.truth import GOOD, PoolTruth

REPOSITORY = Path(__file__).resolve().parents[1]
POINTS = 5  # evaluations, evenly over the training

# -- What is trained


@dataclass(frozen=True)
class Condition:
    """One way to choose what is pasted.

    Attributes:
        name: as on the command line and in the results.
        title: in tables.
        config: which config file: "baseline", "all", "batch" or "gal".
        options: of the config, on top of the file.
        allow_list: where the list of the cut-outs that may be pasted comes from: "" (no list),
            "truth", or "feature" or "offline": from the model of ``all`` with the same seed.
    """

    name: str
    title: str
    config: str
    options: tuple[str, ...] = ()
    allow_list: str = ""

    @property
    def needs_model(self) -> bool:
        """Whether a training of ``all`` comes first."""
        return self.allow_list in ("feature", "offline")


@dataclass(frozen=True)
class Run:
    """A training of one condition with one seed.

    Attributes:
        condition, seed: what and which.
        steps: of the training.
        options: of the config, without the seed and paths that depend on the machine.
        digest: of all that the result depends on, but for the code.
        folder: OUTPUT_DIR.
    """

    condition: Condition
    seed: int
    steps: int
    options: tuple[str, ...]
    digest: str
    folder: Path

    @property
    def key(self) -> tuple[str, int, str]:
        """What identifies its line in the results."""
        return self.condition.name, self.seed, self.digest

    @property
    def model(self) -> Path:
        return self.folder / "model_final.pth"

    @property
    def allow_list(self) -> Path:
        return self.folder / "allowed.parquet"


def run_options(steps: int) -> list[str]:
    """Config options of every run: evaluated at ``POINTS`` points, few checkpoints, no pictures.

    Raises:
        UserError: the steps cannot be divided so.
    """
    if steps < POINTS or steps % POINTS:
        raise UserError(f"--steps is {steps}: make it a multiple of {POINTS}, one per evaluation.")
    return [
        *("SOLVER.MAX_ITER", str(steps), "TEST.EVAL_PERIOD", str(steps // POINTS)),
        # Apart from the evaluations, so that a run killed between the two misses none.
        *("SOLVER.CHECKPOINT_PERIOD", str(min(steps // 3 + 1, 5000))),
        *("GAL.SCORER.PICTURE_PERIOD", "0"),
    ]


def digest_of(*parts: object) -> str:
    """Eight hex digits of what ``repr`` makes of the parts."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()


# -- Doing it


@dataclass(frozen=True)
class Trainer:
    """Runs the tools, each in a process of its own with one thread.

    Args:
        config_files: by :attr:`Condition.config`.
        num_gpus: of a training; 0: it trains on the CPU.
        filter_arguments: of benchmarks/feature_filter.py and tools/filter_pool.py, by
            :attr:`Condition.allow_list`; and of tools/score_pool.py, as "score".
        truth: for the oracle's list; None where it is not known.
    """

    config_files: Mapping[str, Path]
    num_gpus: int
    filter_arguments: Mapping[str, Sequence[str]]
    truth: PoolTruth | None

    def train(self, run: Run, model_of_all: Path | None) -> None:
        """Train, or go on with a training that was killed.

        Raises:
            UserError: a process failed, or another one is at work in the folder.
        """
        run.folder.mkdir(parents=True, exist_ok=True)
        with locked(run.folder) as lock:
            options = [*run.options, "SEED", str(run.seed), "OUTPUT_DIR", str(run.folder)]
            if run.condition.allow_list:
                if not run.allow_list.is_file():
                    self._make_allow_list(run, model_of_all, options, lock)
                options += ["GAL.POOL.ALLOW_LIST", str(run.allow_list)]
            arguments = ["--config-file", str(self.config_files[run.condition.config])]
            arguments += ["--num-gpus", str(self.num_gpus), "--resume", *options]
            execute("train", "tools/train_net.py", arguments, run.folder, lock)

    def _make_allow_list(
        self, run: Run, model: Path | None, options: Sequence[str], lock: int
    ) -> None:
        kind = run.condition.allow_list
        if kind == "truth":
            write_truth_list(run.allow_list, self.truth)
            return
        config = ["--config-file", str(self.config_files["gal" if kind == "offline" else "all"])]
        config += ["--num-gpus", str(self.num_gpus)]
        options = [*options, "MODEL.WEIGHTS", str(model)]
        extra = self.filter_arguments[kind]
        if kind == "feature":
            arguments = [*config, "--allow-list", str(run.allow_list), *extra, *options]
            execute("filter", "benchmarks/feature_filter.py", arguments, run.folder, lock)
            return
        ledger = run.folder / "pool_scores"
        arguments = [*config, *self.filter_arguments["score"], "--ledger", str(ledger), *options]
        execute("score", "tools/score_pool.py", arguments, run.folder, lock)
        arguments = ["--ledger", str(ledger), "--allow-list", str(run.allow_list), *extra]
        execute("filter", "tools/filter_pool.py", arguments, run.folder, lock)


def execute(name: str, script: str, arguments: Sequence[str], folder: Path, lock: int) -> None:
    """Run a script of the repository; its output and its cost are kept in ``folder``.

    Args:
        name: of the log, ``<name>.log``, and of the costs, ``<name>.costs.jsonl``.
        script: relative to the repository.
        arguments: of it.
        folder: of the run.
        lock: file descriptor that the process shall hold open as long as it lives.

    Raises:
        UserError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    costs, log = folder / f"{name}.costs.jsonl", folder / f"{name}.log"
    # A line before and one after: of a process that nobody outlived, the cost is not known.
    append_line(costs, {"started": True})
    start = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / script), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock],
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    append_line(
        costs,
        {
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
            "wall_seconds": round(time.monotonic() - start, 2),
        },
    )
    if process.returncode:
        raise UserError(f"{script} failed with status {process.returncode}: see {log}.")


def append_line(path: Path, record: Mapping) -> None:
    """Add a JSON line, in one write."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Nobody else works in the folder; a process that inherits the descriptor holds it, too."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is training in {folder}: wait for it, or end it."
            ) from error
        yield file.fileno()


def write_truth_list(path: Path, truth: PoolTruth) -> None:
    """The allow list of the good ones."""
    write_allow_list(path, truth.pool_id[truth.kind == GOOD])
