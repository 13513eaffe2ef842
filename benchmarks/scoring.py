#!/usr/bin/env python3
"""Measure what scoring pasted instances costs.

    benchmarks/scoring.py step      a training step with scoring, and with the published recipe,
                                    against the same step without
    benchmarks/scoring.py heads     one-pass projected gradients of the mask head against N backward
                                    passes and torch.func's vmap(grad): time and peak memory
    benchmarks/scoring.py growth    cost of scoring against the number of instances and of classes
    benchmarks/scoring.py all
    benchmarks/scoring.py all --document docs/scoring.md --output docs/images/scoring_cost.png
                                    ... and puts the tables into that document
    benchmarks/scoring.py step --device cuda --image 800 --batch 4 --dtype float16
                                    the step as users train; --document as well. --profile adds what
                                    the GPU is busy with; under torchrun, in several processes; and
                                    further arguments are config options (MODEL.TIMM.NAME ...)

Random weights and images: the cost does not depend on what is seen, except that a random RPN finds
few objects, so that the step compared with is cheaper, and the ratio higher, than later in
training. Times are CPU time of one thread, on a GPU the time until it has done everything, given as
ratios; what is compared alternates within one run. Limits
(exit status 1 if one is missed; not with --quick): a step with scoring costs at most 1.15 times the
step without, and cost grows at most linearly.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import gal_d2.modeling  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from documents import check_document, markdown_table, replace_tables

from gal_d2.copy_paste.fields import InstanceSource
from gal_d2.datasets.registration import register_instances
from gal_d2.distributed import is_distributed
from gal_d2.judging.batch_judge import BatchJudge
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.scoring.gradients.cache_rows import REAL, CacheRows
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.roi_losses import MaskLoss
from gal_d2.scoring.rois import RoiBatch
from gal_d2.scoring.scorer import ContributionScorer
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import run_tool

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = "benchmarks/scoring.py"
DATASET = "scoring_benchmark"
MAX_STEP_RATIO = 1.15
MAX_EXPONENT = 1.0
BATCH = 2  # of the sections heads and growth
NUM_REAL = 8  # of an image, in all sections
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
QUICK_MODEL = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "2"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
)


@dataclass(frozen=True)
class Sizes:
    """What is measured; :data:`QUICK` is only good for seeing that it runs."""

    image: int = 320  # pixels
    batch: int = BATCH  # images of a training step
    device: str = "cpu"  # of the training step, and the type that it computes in
    dtype: torch.dtype = torch.float32
    classes: int = 80
    pastes: int = 10  # of an image
    rounds: int = 7  # of the training step
    repeats: int = 5  # of everything else
    instances: Sequence[int] = (8, 32, 128)
    growth_pasted: Sequence[int] = (5, 10, 20, 40, 80)  # of a batch
    growth_classes: Sequence[int] = (10, 30, 100, 300, 1203)
    model: Sequence[str] = field(default=())  # config options
    profile: bool = False  # say what the last step was busy with


FULL = Sizes()
QUICK = Sizes(
    image=96,
    classes=10,
    pastes=3,
    rounds=2,
    repeats=2,
    instances=(2, 4),
    growth_pasted=(2, 4, 8),
    growth_classes=(5, 10, 20),
    model=QUICK_MODEL,
)


# -- What is scored


def build_config(sizes: Sizes, num_classes: int, *options: str) -> CfgNode:
    """Mask R-CNN R50-FPN with random weights; ``options`` as on a command line."""
    return load_config(
        str(REPOSITORY / "configs" / "Base-RCNN-FPN.yaml"),
        [
            *("MODEL.DEVICE", sizes.device, "MODEL.WEIGHTS", ""),
            # Without the statistics of pretrained weights raw pixels would overflow.
            *("MODEL.PIXEL_STD", "[57.375,57.12,58.395]"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes)),
            *sizes.model,
            *options,
        ],
    )


def make_targets(
    rng: np.random.Generator, size: int, num_real: int, num_pasted: int, num_classes: int
) -> Instances:
    """Objects of random place, size and class, each with a mask that fills half of its box."""
    n = num_real + num_pasted
    corner = rng.uniform(0, 0.7 * size, (n, 2))
    side = rng.uniform(size / 16, size / 3, (n, 2))
    boxes = torch.tensor(np.hstack([corner, np.minimum(corner + side, size - 1)])).float()
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0 : (x0 + x1) // 2 + 1] = True
    targets = Instances((size, size))
    targets.gt_boxes = Boxes(boxes)
    targets.gt_classes = torch.tensor(rng.integers(0, num_classes, n))
    targets.gt_masks = BitMasks(masks)
    targets.instance_source = torch.tensor([0] * num_real + [1] * num_pasted)
    targets.pool_id = torch.where(
        targets.instance_source == InstanceSource.PASTED, torch.arange(n), -1
    )
    return targets


def fill(scorer: ContributionScorer, generator: torch.Generator) -> None:
    """Bring a scorer to the state of late training, when scoring costs most.

    Each class then has a direction, partners to be contrasted with, and a full window.
    """
    cache, count = scorer.cache, scorer.num_classes
    every, cache.partner_every = cache.partner_every, 1
    classes = torch.arange(count)
    rows = {
        head: CacheRows(
            torch.randn(count, sum(parts), generator=generator),
            classes,
            torch.full((count,), REAL),
        )
        for head, parts in cache.layer_sizes.items()
    }
    probabilities = torch.randn(count, count, generator=generator).softmax(1)
    for _ in range(2):
        cache.update(rows, (classes, probabilities))
    cache.partner_every = every
    for window in scorer.reference.values():
        repeated = classes.repeat(window.size)
        window.add(repeated, torch.rand(len(repeated), generator=generator))


def build_heads(sizes: Sizes, num_classes: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """ROI heads and the feature maps of a batch for them."""
    cfg = build_config(sizes, num_classes)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    shapes = {name: ShapeSpec(channels=channels, stride=s) for name, s in STRIDES.items()}
    features = {
        name: torch.randn(BATCH, channels, -(-sizes.image // s), -(-sizes.image // s))
        for name, s in STRIDES.items()
    }
    return build_roi_heads(cfg, shapes).train(), features


# -- How it is measured


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def seconds_until_done(function: Callable[[], object]) -> float:
    """Until the GPU has computed what the function asks of it, and nothing before it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(variants: Mapping, repeats: int) -> dict:
    """(repeats,) CPU seconds of each variant, taking turns; one round more is left out."""
    seconds = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, function in variants.items():
            seconds[name].append(cpu_seconds(function))
    return {name: np.array(values[1:]) for name, values in seconds.items()}


class PeakMemory:
    """Peak of the process's resident memory within the block, above what it was before, in MB."""

    def __enter__(self) -> PeakMemory:
        self.before = self._start()
        return self

    def __exit__(self, *_) -> None:
        self.megabytes = (self._peak() - self.before) / 1e6

    def _start(self) -> int:
        with contextlib.suppress(OSError):  # imports reach higher than what stays: start anew
            Path("/proc/self/clear_refs").write_text("5")
        return self._peak()

    @staticmethod
    def _peak() -> int:
        """Bytes. Where /proc is missing, a figure that may include the parent process's peak."""
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM:"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else 1024 * peak


def print_table(header: Sequence[str], rows: Sequence[Sequence]) -> None:
    print(markdown_table(header, rows), flush=True)


# -- step


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
        for number in range(sizes.rounds + 1):
            batch = make_batch(rng, sizes)
            first = number % len(VARIANTS)
            for name in VARIANTS[first:] + VARIANTS[:first]:
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                seconds[name].append(measure(lambda b=batch, n=number, v=name: step(b, n, v)))
                if on_gpu:
                    memory[name] = torch.cuda.max_memory_allocated() / 1e6
        known = judge.judged.contribution.score.isfinite()
        if not known.all() or not np.isfinite(batch_judge.decision.cosine):
            raise RuntimeError(f"{(~known).sum()} instances have no score: nothing was measured.")
        if sizes.profile:
            print_profile(lambda: step(batch, sizes.rounds + 1, "with"), sizes.device)
        if on_gpu:
            megabytes = ", ".join(f"{name} {memory[name]:.0f}" for name in VARIANTS)
            print(f"Peak GPU memory of a step, MB: {megabytes}.\n")
        real = torch.cat([t["instances"].gt_classes[:NUM_REAL] for t in batch])
        relabelled = judge.scorer.cache.counterfactuals(real, judge.scorer.max_counterfactuals)
    columns = {**seconds, **judging}
    return {name: np.array(x[1:]) for name, x in columns.items()}, len(relabelled[0])


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


# -- heads


class MaskProblem:
    """N instances in one image, and three ways to their gradients of the mask head's loss.

    All three start from the feature maps. The reference ways give (or hold) full gradients of the
    weights; nothing is projected there.
    """

    def __init__(self, sizes: Sizes, num_instances: int, k: int | None = 16) -> None:
        torch.manual_seed(0)
        heads, features = build_heads(sizes, sizes.classes)
        rng = np.random.default_rng(0)
        targets = make_targets(rng, sizes.image, 0, num_instances, sizes.classes)
        self.features = {name: feature[:1] for name, feature in features.items()}
        self.classes = targets.gt_classes
        self.rois = RoiBatch([targets.gt_boxes], [targets.gt_masks])
        self.mask_loss = MaskLoss(heads)
        self.gradients = ProjectedGradients(heads, ["mask"], k=k)
        self.weights = {
            f"{name}.weight": layer.weight for name, layer in self.mask_loss.layers().items()
        }
        self.head = _MaskLayers(heads.mask_head)

    def projected(self) -> Tensor:
        """(N, D) in one forward and backward pass."""
        return self.gradients("mask", self.features, self.rois, self.classes).gradient

    def one_by_one(self) -> Iterator[tuple[Tensor, ...]]:
        """Full gradients in N forward and backward passes, one after the other."""
        pooled, masks = self._inputs()
        for i, c in enumerate(self.classes.tolist()):
            logits = self.head(pooled[i : i + 1])[0, c]
            loss = F.binary_cross_entropy_with_logits(logits, masks[i])
            yield torch.autograd.grad(loss, list(self.weights.values()))

    def vmapped(self) -> dict[str, Tensor]:
        """Full gradients, (N, ...) by weight, by vectorised per-sample differentiation."""

        def loss(weights: dict[str, Tensor], x: Tensor, mask: Tensor, c: Tensor) -> Tensor:
            logits = torch.func.functional_call(self.head, weights, (x[None],))[0]
            logits = logits.index_select(0, c[None])[0]
            return F.binary_cross_entropy_with_logits(logits, mask)

        pooled, masks = self._inputs()
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))
        return per_sample(weights, pooled, masks, self.classes)

    def _inputs(self) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) pooled features and (N, 2H, 2W) masks."""
        with torch.no_grad():
            pooled = self.mask_loss.pool(self.features, self.rois)
        boxes, masks = self.rois.boxes[0].tensor, self.rois.masks[0]
        return pooled, masks.crop_and_resize(boxes, 2 * pooled.shape[-1]).float()

    def run(self, method: str) -> None:
        if method == "one_by_one":
            for _ in self.one_by_one():
                pass
        else:
            getattr(self, method)()


class _MaskLayers(nn.Module):
    """The mask head up to its logits; weights named as in the ROI heads."""

    def __init__(self, mask_head: nn.Module) -> None:
        super().__init__()
        self.mask_head = mask_head

    def forward(self, x: Tensor) -> Tensor:
        return self.mask_head.layers(x)


METHODS = {
    "projected": "one pass, projected",
    "one_by_one": "N backward passes",
    "vmapped": "vmap(grad)",
}


def peak_memory(sizes: Sizes, method: str, num_instances: int) -> float:
    """MB that a method takes on top of model and inputs. Call it in a fresh process."""
    problem = MaskProblem(sizes, num_instances)
    MaskProblem(sizes, 2).run(method)  # libraries load what they need
    with PeakMemory() as memory:
        problem.run(method)
    return memory.megabytes


def peak_memory_in_subprocess(sizes: Sizes, method: str, num_instances: int) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "memory", method, str(num_instances)]
    if sizes is QUICK:
        command.append("--quick")
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report_heads(sizes: Sizes) -> bool:
    print(f"Gradients of N instances in the mask head; median of {sizes.repeats} rounds.\n")
    rows = []
    for n in sizes.instances:
        problem = MaskProblem(sizes, n)
        variants = {method: lambda m=method, p=problem: p.run(m) for method in METHODS}
        seconds = alternate(variants, sizes.repeats)
        memory = {method: peak_memory_in_subprocess(sizes, method, n) for method in METHODS}
        for method, name in METHODS.items():
            ratio = np.median(seconds[method] / seconds["projected"])
            share = memory[method] / max(memory["projected"], 1e-9)
            rows.append([n, name, f"{ratio:.2f}", f"{memory[method]:.0f}", f"{share:.2f}"])
    print_table(["N", "method", "time, ratio", "peak memory, MB", "ratio"], rows)
    return True


# -- growth


def scoring_call(sizes: Sizes, num_pasted: int, num_classes: int) -> Callable[[], object]:
    """A call of ``step`` of a scorer with full state, on a batch."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    heads, features = build_heads(sizes, num_classes)
    scorer = ContributionScorer(heads, class_groups=torch.arange(num_classes) % 3, partner_every=1)
    fill(scorer, torch.Generator().manual_seed(0))
    pasted = [num_pasted // BATCH + (i < num_pasted % BATCH) for i in range(BATCH)]
    targets = [make_targets(rng, sizes.image, NUM_REAL, n, num_classes) for n in pasted]
    return lambda: scorer.step(features, targets)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of the power law y = a x^b that fits best, in logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def report_growth(sizes: Sizes, output: Path) -> bool:
    typical = BATCH * sizes.pastes
    series = {
        "pasted instances": {n: scoring_call(sizes, n, sizes.classes) for n in sizes.growth_pasted},
        "classes": {c: scoring_call(sizes, typical, c) for c in sizes.growth_classes},
    }
    print(
        f"One call of the scorer, {BATCH * NUM_REAL} real instances, {sizes.classes} classes and "
        f"{typical} pasted ones where not varied; median of {sizes.repeats} rounds.\n"
    )
    points, rows, linear = {}, [], True
    for name, calls in series.items():
        seconds = {x: np.median(s) for x, s in alternate(calls, sizes.repeats).items()}
        x, y = list(seconds), list(seconds.values())
        points[name] = (x, y)
        # Fixed cost hides growth at the small end; the large end shows what it comes to.
        overall, tail = exponent(x, y), exponent(x[-2:], y[-2:])
        linear &= max(overall, tail) <= MAX_EXPONENT
        rows += [[name, n, f"{s / y[0]:.2f}", "", ""] for n, s in seconds.items()]
        rows[-1][-2:] = [f"{overall:.2f}", f"{tail:.2f}"]
    print_table(["varied", "number", "time, ratio", "exponent", "of the last two"], rows)
    draw_growth(points, output)
    print(f"Plot: {output}", file=sys.stderr)
    return linear


def draw_growth(points: Mapping[str, tuple[list, list]], output: Path) -> None:
    """One panel per series: measured points, and their fitted power law beside exact linearity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, (x, y)) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        y = np.asarray(y) / y[0]
        power, offset = np.polyfit(np.log(x), np.log(y), 1)
        line = np.geomspace(min(x), max(x), 50)
        axes.plot(line, np.exp(offset) * line**power, label=f"fit: exponent {power:.2f}")
        axes.plot(line, y[0] * line / x[0], "--", color="grey", label="linear: exponent 1")
        axes.plot(x, y, "o", color="black", label="measured")
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="time of one scoring, ratio")
        axes.set_xticks(x, [str(n) for n in x])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)


# -- The document


class Tee(io.TextIOBase):
    """Within the block, what is printed is collected in ``text``, too."""

    def __enter__(self) -> Tee:
        self.text = ""
        self._redirection = contextlib.redirect_stdout(self)
        self._stdout = sys.stdout
        self._redirection.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._redirection.__exit__(*exception)

    def write(self, text: str) -> int:
        self.text += text
        return self._stdout.write(text)

    def flush(self) -> None:
        self._stdout.flush()


def machine(sizes: Sizes) -> str:
    """What the figures were measured on."""
    software = f"torch {torch.__version__.split('+')[0]}, {str(sizes.dtype).partition('.')[2]}"
    if sizes.device == "cuda":
        count = comm.get_world_size()
        return f"{count} GPU{'s' * (count > 1)} ({torch.cuda.get_device_name()}), {software}"
    name = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    return f"one thread of a CPU ({name}), {software}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    quick = argparse.ArgumentParser(add_help=False)
    quick.add_argument("--quick", action="store_true", help="tiny sizes: only shows that it runs")
    sections = parser.add_subparsers(dest="section", required=True)
    for name in ("step", "heads", "growth", "all"):
        section = sections.add_parser(name, parents=[quick])
        if name in ("growth", "all"):
            section.add_argument(
                "--output", type=Path, default=Path("output/benchmarks/scoring.png"), help="plot"
            )
        if name in ("step", "all"):
            section.add_argument(
                "--document", type=Path, help="Markdown file to put the tables into"
            )
        if name == "step":
            section.add_argument("options", nargs="*", help="config options: KEY VALUE ...")
            section.add_argument("--profile", action="store_true", help="what takes longest")
            section.add_argument("--rounds", type=int, help="steps of each kind")
            section.add_argument("--device", choices=("cpu", "cuda"), default=FULL.device)
            section.add_argument("--image", type=int, help="side of the images, pixels")
            section.add_argument("--batch", type=int, help="images of a step")
            section.add_argument(
                "--dtype", choices=DTYPES, default="float32", help="of autocast (%(default)s)"
            )
    memory = sections.add_parser("memory", parents=[quick], help="one figure of `heads`, in MB")
    memory.add_argument("method", choices=METHODS)
    memory.add_argument("instances", type=int)
    return parser.parse_args(arguments)


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    sizes = QUICK if arguments.quick else FULL
    command = COMMAND
    if arguments.section == "step":
        command = f"{COMMAND} step --device {arguments.device}"
        sizes = dataclasses.replace(
            sizes,
            image=arguments.image or sizes.image,
            batch=arguments.batch or sizes.batch,
            rounds=arguments.rounds or sizes.rounds,
            model=(*sizes.model, *arguments.options),
            profile=arguments.profile,
            device=arguments.device,
            dtype=getattr(torch, arguments.dtype),
        )
    if arguments.section == "memory":
        print(peak_memory(sizes, arguments.method, arguments.instances))
        return 0
    reports = {
        "step": lambda: report_step(sizes),
        "heads": lambda: report_heads(sizes),
        "growth": lambda: report_growth(sizes, arguments.output),
    }
    chosen = list(reports) if arguments.section == "all" else [arguments.section]
    with contextlib.ExitStack() as stack:
        if torch.distributed.is_torchelastic_launched():
            if sizes.device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if sizes.device == "cuda" else "gloo")
            stack.callback(dist.destroy_process_group)
            if comm.get_rank() > 0:  # they compute, the first one speaks
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        return run(arguments, sizes, command, {name: reports[name] for name in chosen})


def run(
    arguments: argparse.Namespace,
    sizes: Sizes,
    command: str,
    reports: Mapping[str, Callable[[], bool]],
) -> int:
    """Measure, print, and put into the document."""
    document = getattr(arguments, "document", None)
    if document:
        check_document(document, command)
    with Tee() as tee:
        print(f"Measured on {machine(sizes)}.\n")
        missed = [name for name, report in reports.items() if not report() and not arguments.quick]
    if document:
        replace_tables(document, command, tee.text)
    for name in missed:
        print(f"{name}: misses its limit", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(run_tool(main, parse_arguments()))
