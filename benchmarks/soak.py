#!/usr/bin/env python3
"""Whether a long training stays as it began: memory, handles, threads and steps per CPU second.

python benchmarks/soak.py --minutes 120
python benchmarks/soak.py --output output/soak --draw-only

It trains on the miniature from an empty pool, with a generator in a process of its own and with
auditions, looks at all its processes every few seconds, and stops it after the time. The samples go
to OUTPUT/soak.csv, the picture to --picture. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from gal_d2.errors import UserError
from gal_d2.setup.launch import run_tool

REPOSITORY = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 120.0  # a step, a checkpoint and the generator's batch take less
MOST_STEPS = 1_000_000  # more than the time allows
# What grows with the pool, in grey beside what should not grow.
BESIDE = {
    "memory_mb": ("mapped_mb", "pages of mapped files"),
    "handles": ("shards", "open shards of the pool"),
}


@dataclass(frozen=True)
class Sample:
    """All processes of the training at one time.

    Attributes:
        seconds: since the start.
        steps: done so far, as of the last line of metrics.json.
        cpu_seconds: spent so far by the processes that are there.
        memory_mb: memory of their own and shared memory; proportional: shared pages count once.
        mapped_mb: pages of files that they map, programs and the pool among them; proportional.
        handles: open files, sockets and pipes, but for the pool's.
        shards: open files of the pool, which grows; a process keeps 256 at most.
        threads, processes: how many.
    """

    seconds: float
    steps: int
    cpu_seconds: float
    memory_mb: float
    mapped_mb: float
    handles: int
    shards: int
    threads: int
    processes: int


class Slope:
    """A straight line through the samples of a column after the first tenth, when all is loaded.

    Attributes:
        per_hour: its slope.
        error: standard error of the slope.
        spread: standard deviation of the samples around the line.
    """

    def __init__(self, hours: np.ndarray, values: np.ndarray) -> None:
        late = hours >= hours[0] + 0.1 * (hours[-1] - hours[0])
        x, y = hours[late] - hours[late].mean(), values[late]
        self.per_hour = float((x * y).sum() / (x * x).sum())
        rest = y - y.mean() - self.per_hour * x
        self.spread = float(np.sqrt((rest**2).sum() / max(len(x) - 2, 1)))
        self.error = float(self.spread / np.sqrt((x * x).sum()))


def throughput(samples: list[Sample]) -> list[float]:
    """Steps per CPU second in each tenth of the time, after the first step is done.

    Steps are known when a line of metrics.json is written, so they are counted from line to line.
    """
    begun = [sample for sample in samples if sample.steps > 0]
    start, tenth = begun[0].seconds, (begun[-1].seconds - begun[0].seconds) / 10
    lines = [b for a, b in itertools.pairwise(begun) if b.steps > a.steps]
    return [
        _rate([line for line in lines if k * tenth <= line.seconds - start <= (k + 1) * tenth])
        for k in range(10)
    ]


def _rate(lines: list[Sample]) -> float:
    if len(lines) < 2:
        return float("nan")
    steps = lines[-1].steps - lines[0].steps
    return steps / max(lines[-1].cpu_seconds - lines[0].cpu_seconds, 1e-9)


def tree(root: int) -> list[int]:
    """A process and all that come from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def open_files(folder: Path) -> list[str]:
    """What a process has open, by ``/proc/PID/fd``; those that it closes meanwhile are left out."""
    names = []
    for entry in folder.iterdir():
        try:
            names.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return names


def look(root: int, output: Path, start: float) -> Sample:
    """The training's processes now."""
    totals = {field.name: 0 for field in fields(Sample) if field.name not in ("seconds", "steps")}
    for pid in tree(root):
        folder = Path(f"/proc/{pid}")
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            memory = (folder / "smaps_rollup").read_text()
            handles = open_files(folder / "fd")
        except OSError:  # it has ended
            continue
        shards = sum(name.endswith(".arrow") for name in handles)
        # Of a process that was waited for, its parent has the time.
        totals["cpu_seconds"] += sum(map(int, stat[11:15])) / TICKS
        pss = {line.split()[0]: int(line.split()[1]) / 1024 for line in memory.splitlines()[1:]}
        totals["memory_mb"] += pss["Pss_Anon:"] + pss["Pss_Shmem:"]
        totals["mapped_mb"] += pss["Pss_File:"]
        totals["handles"] += len(handles) - shards
        totals["shards"] += shards
        totals["threads"] += int(stat[17])
        totals["processes"] += 1
    return Sample(time.monotonic() - start, steps_done(output), **totals)


def steps_done(output: Path) -> int:
    """The last step in metrics.json; 0 where there is none."""
    try:
        with (output / "metrics.json").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 65_536, 0))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return json.loads(line)["iteration"]
        except (ValueError, KeyError):  # half a line
            continue
    return 0


def train(args: argparse.Namespace) -> list[Sample]:
    """Train for the time and look; the samples are written as they come.

    Raises:
        UserError: the training ended before.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    options = [
        *("OUTPUT_DIR", str(args.output), "SOLVER.MAX_ITER", str(MOST_STEPS)),
        *("SOLVER.CHECKPOINT_PERIOD", "500", "GAL.GENERATOR.MODE", "async", "DATASETS.TEST", "()"),
        *("GAL.GENERATOR.BATCH", "4", "GAL.AUDITION.PERIOD", "20", "DATALOADER.NUM_WORKERS", "2"),
        *("GAL.SNAPSHOTS.LAG", "1"),  # of the samples that the workers make ahead
        *args.opts,
    ]
    config = REPOSITORY / "configs/miniature_interleaved.yaml"
    command = [sys.executable, str(REPOSITORY / "tools/train_net.py"), "--num-gpus", "0"]
    log = args.output / "soak.log"
    samples: list[Sample] = []
    with log.open("w") as out, (args.output / "soak.csv").open("w", newline="") as table:
        rows = csv.DictWriter(table, [field.name for field in fields(Sample)])
        rows.writeheader()
        process = subprocess.Popen(
            [*command, "--overwrite", "--config-file", str(config), *options],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        start = time.monotonic()
        try:
            while time.monotonic() - start < 60 * args.minutes:
                time.sleep(args.every)
                if process.poll() is not None:
                    raise UserError(f"the training ended with {process.returncode}: see {log}.")
                samples.append(look(process.pid, args.output, start))
                rows.writerow(asdict(samples[-1]))
                table.flush()
                for path in sorted(args.output.glob("model_*.pth"))[:-2]:
                    path.unlink()  # hundreds of them would fill the disk
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return samples


def read(path: Path) -> list[Sample]:
    """The samples of an earlier run.

    Raises:
        UserError: there are none.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: run without --draw-only first.")
    with path.open(newline="") as file:
        return [
            Sample(**{f.name: float(row[f.name]) for f in fields(Sample)})
            for row in csv.DictReader(file)
        ]


def draw(samples: list[Sample], path: Path) -> None:
    """A panel for each thing that should stay as it is."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    hours = np.array([sample.seconds for sample in samples]) / 3600
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, (name, label) in zip(
        axes.flat,
        (
            ("memory_mb", "memory, MB"),
            ("handles", "open files, sockets and pipes"),
            ("threads", "threads"),
            ("steps", "steps per CPU second"),
        ),
        strict=True,
    ):
        if name == "steps":
            lines = [b for a, b in itertools.pairwise(samples) if b.steps > a.steps]
            size = max(len(lines) // 20, 1)  # over a twentieth of the steps
            rates = [_rate([a, b]) for a, b in zip(lines, lines[size:], strict=False)]
            axis.plot([line.seconds / 3600 for line in lines[size:]], rates)
        else:
            axis.plot(hours, [getattr(sample, name) for sample in samples])
            if name in BESIDE:
                other, label_of_other = BESIDE[name]
                beside = [getattr(sample, other) for sample in samples]
                axis.plot(hours, beside, color="0.6", label=label_of_other)
                axis.legend()
        axis.set_title(label)
        axis.set_ylim(0, 1.15 * axis.dataLim.ymax)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("hours")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def describe(samples: list[Sample]) -> str:
    """Slopes and throughput in a few lines."""
    hours = np.array([sample.seconds for sample in samples]) / 3600
    lines = [f"{hours[-1]:.2f} hours, {samples[-1].steps:.0f} steps, {len(samples)} samples"]
    for name, unit in (
        ("memory_mb", "MB"),
        ("mapped_mb", "MB of mapped files"),
        ("handles", "handles"),
        ("shards", "open shards"),
        ("threads", "threads"),
    ):
        values = np.array([getattr(sample, name) for sample in samples], float)
        slope = Slope(hours, values)
        lines.append(
            f"{unit}: {np.median(values):.0f}, slope {slope.per_hour:+.1f} +- {slope.error:.1f} an "
            f"hour, spread {slope.spread:.1f}"
        )
    rates = throughput(samples)
    lines.append(f"steps per CPU second by tenth: {' '.join(f'{rate:.2f}' for rate in rates)}")
    change = [f"{100 * (rates[-1] / rate - 1):+.1f} %" for rate in rates[:2]]
    lines.append(f"the last against the first {change[0]}, against the second {change[1]}")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    if not args.draw_only:
        train(args)
    samples = read(args.output / "soak.csv")
    if len(samples) < 4 or samples[-1].steps == 0:
        raise UserError(f"{args.output} has {len(samples)} samples of no step: raise --minutes.")
    draw(samples, args.picture)
    print(describe(samples))
    print(f"samples: {args.output / 'soak.csv'}, picture: {args.picture}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0, help="how long (%(default)s)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--output", type=Path, default=Path("output/soak"), help="(%(default)s)")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/soak.png"))
    parser.add_argument("--draw-only", action="store_true", help="of the samples that are there")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options in pairs")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main, parse_arguments())
