"""The section `heads` of benchmarks/scoring.py: gradients of N instances, in three ways."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gal_d2.modeling  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from measuring import PeakMemory, alternate, print_table
from scoring_problem import QUICK, Sizes, build_heads, make_targets

from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.roi_losses import MaskLoss
from gal_d2.scoring.rois import RoiBatch

COMMAND = Path(__file__).with_name("scoring.py")


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
    command = [sys.executable, "-W", "ignore", str(COMMAND), "memory", method, str(num_instances)]
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
