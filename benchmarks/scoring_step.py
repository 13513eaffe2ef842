"""The section `step` of benchmarks/scoring.py: what scoring adds to a training step."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import gal_d2.modeling  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from measuring import cpu_seconds, print_table, seconds_until_done
from scoring_problem import NUM_REAL, Sizes, build_config, fill, make_targets

from gal_d2.datasets.registration import register_instances
from gal_d2.distributed import is_distributed
from gal_d2.judging.batch_judge import BatchJudge
from gal_d2.judging.instance_judge import InstanceJudge

DATASET = "scoring_benchmark"
MAX_STEP_RATIO = 1.15
VARIANTS = ("without", "with", "published")
DTYPES = ("float32", "float16", "bfloat16")


def measure_step(sizes: Sizes) -> tuple[dict[str, np.ndarray], int]:
    """Seconds of a step, by round: of CPU time, or on a GPU until it is done.

    Returns:
        By variant, (rounds,): ``without`` scoring, ``with`` it, with the ``published`` recipe; and
        CPU seconds of what these two add, ``scoring`` and ``deciding``. And how many rows of
        relabelled real instances the last scoring had.
    """
    rng = np.random.default_rng(comm.get_rank())
    on_gpu = sizes.device != "cpu"
    measure = seconds_until_done if on_gpu else cpu_seconds
    with tempfile.TemporaryDirectory() as folder, EventStorage():
        categories = [
            {"id": c + 1, "name": f"class {c}", "frequency": "rcf"[c % 3], "image_count": 100}
            for c in range(sizes.classes)
        ]
        json_file = Path(folder) / "categories.json"
        json_file.write_text(
            json.dumps({"categories": categories, "images": [], "annotations": []})
        )
        register_instances(DATASET, json_file, folder, replace=True)
        data = ("DATASETS.TRAIN", f"('{DATASET}',)", "OUTPUT_DIR", folder)
        cfg = build_config(sizes, sizes.classes, *data, "GAL.ACCEPT.POLICY", "always")
        model = build_model(cfg).train()
        heads = model.roi_heads
        judge = InstanceJudge(cfg, heads, seed=0)
        fill(judge.scorer, torch.Generator().manual_seed(0))
        # It accepts whatever it finds: all three train on the same images.
        unit = ("GAL.ACCEPT.UNIT", "batch", "GAL.ACCEPT.POLICY", "threshold")
        cfg = build_config(sizes, sizes.classes, *data, *unit, "GAL.ACCEPT.THRESHOLD", "-1.0")
        half = None if sizes.dtype == torch.float32 else sizes.dtype
        batch_judge = BatchJudge(cfg, model, seed=0, autocast_dtype=half)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
        if is_distributed():
            device_ids = [torch.cuda.current_device()] if on_gpu else None
            model = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
        memory = dict.fromkeys(VARIANTS, 0.0)
        judging: dict[str, list[float]] = {"scoring": [], "deciding": []}

        def timed(part: str, function: Callable, *inputs):
            # On a GPU to wait for what is measured would take away what scoring gains by not
            # waiting: there only whole steps tell.
            start = time.process_time()
            result = function(*inputs)
            judging[part][-1] += time.process_time() - start
            return result

        def timed_judge(*inputs):
            return timed("scoring", judge, *inputs)

        def step(batch: list[dict], number: int, variant: str) -> None:
            heads.judge = None
            if variant == "with":
                judging["scoring"].append(0.0)
                timed("scoring", judge.start_step, number, batch)
                heads.judge = timed_judge
            if variant == "published":
                judging["deciding"].append(0.0)
                timed("deciding", batch_judge.start_step, number, batch)
            torch.manual_seed(number)  # the same proposals are sampled in all variants
            with torch.autocast(sizes.device, sizes.dtype, sizes.dtype != torch.float32):
                losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            if variant == "with":
                timed("scoring", judge.finish_step)
            optimizer.step()

        seconds = {name: [] for name in VARIANTS}
        period = judge.period
        for number in range(period * sizes.rounds + 1):
            batch = make_batch(rng, sizes)
            first = number % len(VARIANTS)
            for name in VARIANTS[first:] + VARIANTS[:first]:
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                seconds[name].append(measure(lambda b=batch, n=number, v=name: step(b, n, v)))
                if on_gpu:
                    memory[name] = torch.cuda.max_memory_allocated() / 1e6
        known = judge.judged.contribution.score.isfinite() | (not judge.is_scored)
        if not known.all() or not np.isfinite(batch_judge.decision.cosine):
            raise RuntimeError(f"{(~known).sum()} instances have no score: nothing was measured.")
        if sizes.profile:
            print_profile(lambda: step(batch, sizes.rounds + 1, "with"), sizes.device)
        if on_gpu:
            megabytes = ", ".join(f"{name} {memory[name]:.0f}" for name in VARIANTS)
            print(f"Peak GPU memory of a step, MB: {megabytes}.\n")
        real = torch.cat([t["instances"].gt_classes[:NUM_REAL] for t in batch])
        relabelled = judge.scorer.cache.counterfactuals(real, judge.scorer.max_counterfactuals)
    # Of so many steps one is scored: a round is all of them.
    columns = {**seconds, **judging}
    by_round = {name: np.reshape(x[1:], (-1, period)).mean(1) for name, x in columns.items()}
    return by_round, len(relabelled[0])


def print_profile(function: Callable[[], None], device: str) -> None:
    """The ten operators that take longest, of a step with scoring."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        function()
    by = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    busiest = sorted(profile.key_averages(), key=lambda e: getattr(e, by), reverse=True)[:10]
    print_table(
        ["operator", "calls", f"{by.replace('_', ' ')}, ms"],
        [[event.key[:60], event.count, f"{getattr(event, by) / 1e3:.1f}"] for event in busiest],
    )


def make_batch(rng: np.random.Generator, sizes: Sizes) -> list[dict]:
    """Samples as the mapper makes them, each with one probe image for the published recipe."""

    def sample(image_id: int, num_pasted: int) -> dict:
        size = sizes.image
        return {
            "image": torch.from_numpy(rng.integers(0, 256, (3, size, size), dtype=np.uint8)),
            "instances": make_targets(rng, size, NUM_REAL, num_pasted, sizes.classes),
            "num_pasted": num_pasted,
            "sample_seed": image_id,
            "image_id": image_id,
            "height": size,
            "width": size,
        }

    return [
        {**sample(index, sizes.pastes), "probe": [sample(sizes.batch + index, 0)]}
        for index in range(sizes.batch)
    ]


def report_step(sizes: Sizes) -> bool:
    seconds, relabelled = measure_step(sizes)
    without = np.median(seconds["without"])
    print(
        f"Training step, {sizes.image} px, batch {sizes.batch}, {NUM_REAL} real and {sizes.pastes} "
        f"pasted instances an image, {sizes.classes} classes, {relabelled} relabelled rows; for "
        f"the published recipe one probe image with {NUM_REAL} instances for each training image. "
        f"Median of {sizes.rounds} rounds.\n"
    )
    rows = [["accepts all, no scoring", "1", ""]]
    figures, on_cpu = {}, sizes.device == "cpu"
    for name, part, title in (
        ("with", "scoring", "scores each instance"),
        ("published", "deciding", "published recipe (`UNIT: batch`)"),
    ):
        ratios = seconds[name] / seconds["without"]
        paired = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        # Less noisy than the ratio of two steps where what is added is small against their noise.
        figures[name] = 1 + np.median(seconds[part]) / without if on_cpu else np.median(ratios)
        rows.append([title, f"{figures[name]:.2f}", paired])
    figure = "1 + what it adds, ratio" if on_cpu else "ratio"
    print_table(["step", figure, "ratio of whole steps, by round"], rows)
    return bool(figures["with"] <= MAX_STEP_RATIO)
