#!/usr/bin/env python3
"""Count what the judge has a GPU do in a training step, and where the host waits for it. No GPU.

    benchmarks/launches.py                     a table for each model, by file
    benchmarks/launches.py --lines             and every line that launches something
    benchmarks/launches.py --document docs/scoring.md

The judge's whole step is run (scoring, directions, posterior, policy, ledger, metrics) with 4
images, on tensors that pretend to be on a device: :class:`OnDevice` wraps a CPU tensor and says
that it is elsewhere, so that copies to and from the host, which a CPU tensor would skip, are seen,
and a mixture of both is an error as on a GPU. :class:`DeviceCounter` counts, of the operators below
autograd (``TorchDispatchMode``),

- *launches*: those that compute or copy on the device. Views and allocations are free; an operator
  may be several kernels.
- *host waits*: reading a value (``item``, ``tolist``, ``bool``), copying to the host (once for a
  copy that is asked for now and read later), copying to the device without ``non_blocking``, and
  operators whose result has a size that the device must tell: ``nonzero``, boolean masks as index,
  ``unique``, ``bincount``, ``equal``.

Both are counted for the line of ``gal_d2`` that asked. A third of the classes have few values in
their windows, as rare classes have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import unittest.mock
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import gal_d2.modeling  # noqa: F401  # isort: skip  (first: prepares for detectron2)
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Instances
from documents import check_document, markdown_table, replace_tables
from scoring_problem import fill, make_targets

from gal_d2.datasets.registration import register_instances
from gal_d2.judging.instance_judge import InstanceJudge
from gal_d2.judging.judge_hook import decision_metrics
from gal_d2.modeling.roi_heads import ignoring
from gal_d2.setup.configuration import load_config
from gal_d2.setup.launch import run_tool

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = "benchmarks/launches.py"
DATASET = "launches_benchmark"
DEVICE = torch.device("meta")  # the only type besides the CPU that runs without its hardware
BATCH = 4

_ATEN = torch.ops.aten
_FREE = {
    *(_ATEN.empty.memory_format, _ATEN.empty_like.default, _ATEN.empty_strided.default),
    *(_ATEN.new_empty.default, _ATEN.new_empty_strided.default, _ATEN._unsafe_view.default),
    *(_ATEN.lift_fresh.default, _ATEN.detach.default),
}
_SIZE_FROM_DEVICE = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"} | {
    *("equal", "_local_scalar_dense", "bincount", "histc", "repeat_interleave")
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}


class OnDevice(Tensor):
    """A tensor that says it is on ``DEVICE``; ``inner``, on the CPU, has its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        tensor.inner = inner.detach()
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def tolist(self) -> list:
        """PyTorch refuses it for subclasses."""
        return self.cpu().tolist()


def _unwrap(value):
    return value.inner if isinstance(value, OnDevice) else value


def _run(func, args, kwargs):
    """An operator on tensors some of which are on the device, or that makes one there."""
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    if device is not None and torch.device(device).type == "cpu":
        return result
    if func._schema.is_mutable and isinstance(result, Tensor):
        return args[0]  # in place
    return tree_map(lambda value: OnDevice(value) if isinstance(value, Tensor) else value, result)


class DeviceCounter(TorchDispatchMode):
    """While active, counts launches and host waits by line.

    Attributes:
        launches, waits: by (file, function, line).
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[tuple[str, str, int]] = Counter()
        self.waits: Counter[tuple[str, str, int]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        device = kwargs.get("device")
        makes_one = device is not None and torch.device(device) == DEVICE
        if not makes_one and not any(isinstance(x, OnDevice) for x in tensors):
            return func(*args, **kwargs)
        where = _asking_line()
        if func not in _FREE and not func.is_view:
            self.launches[where] += 1
        if self._waits(func, args, kwargs, tensors):
            self.waits[where] += 1
        return _run(func, args, kwargs)

    @staticmethod
    def _waits(func, args, kwargs, tensors: list[Tensor]) -> bool:
        name = func._schema.name.removeprefix("aten::")
        on_host = [x for x in tensors if not isinstance(x, OnDevice)]
        if name in _SIZE_FROM_DEVICE:
            return True
        if name == "_to_copy":
            device = kwargs.get("device")
            if device is None or (torch.device(device) == DEVICE) == (not on_host):
                return False  # stays where it is
            return bool(not on_host or not kwargs.get("non_blocking"))
        if name == "copy_":
            blocking = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
            return bool(on_host) and (blocking or on_host[0] is args[0])
        if name in _INDEXING:
            index = [x for x in args[1] if x is not None]
            fills = name != "index" and args[2].numel() == 1  # a masked fill
            return any(
                not isinstance(x, OnDevice) or (x.dtype == torch.bool and not fills) for x in index
            )
        mixed = [x for x in on_host if x.dim() > 0]
        if mixed and not func.is_view and len(on_host) < len(tensors):
            raise RuntimeError(f"{func} got a tensor on the device and one of the host.")
        return False


def _asking_line() -> tuple[str, str, int]:
    """The innermost line of ``gal_d2`` that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if (REPOSITORY / "gal_d2") in path.parents:
            return str(path.relative_to(REPOSITORY)), frame.f_code.co_qualname, frame.f_lineno
        frame = frame.f_back
    return "", "", 0


@contextlib.contextmanager
def pretending() -> Iterator[None]:
    """See to what the device does not do by itself.

    autocast knows no such device (nothing here computes in half precision), and ``torch.tensor``
    and ``torch.as_tensor`` make a tensor without values there.
    """
    real_autocast, real_as_tensor = torch.autocast, torch.as_tensor

    def autocast(device_type, *args, **kwargs):
        if device_type == DEVICE.type:
            return contextlib.nullcontext()
        return real_autocast(device_type, *args, **kwargs)

    def as_tensor(data, dtype=None, device=None):
        made = real_as_tensor(data, dtype=dtype)
        return made if device is None else made.to(device)

    with (
        unittest.mock.patch("torch.autocast", autocast),
        unittest.mock.patch("torch.tensor", as_tensor),
        unittest.mock.patch("torch.as_tensor", as_tensor),
    ):
        yield


def place(module: nn.Module) -> None:
    """Move a module's parameters and buffers to the device."""
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                child._parameters[name] = nn.Parameter(
                    OnDevice(parameter.data), requires_grad=parameter.requires_grad
                )
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = OnDevice(buffer)


@dataclass(frozen=True)
class Setting:
    """Whose heads, and what is on an image of ``size`` pixels."""

    title: str
    config: str
    size: int
    num_real: int
    num_pasted: int
    options: tuple[str, ...] = field(default=())


SETTINGS = (
    Setting("miniature", "miniature_gal.yaml", 128, 6, 4),
    Setting("LVIS, R50-FPN", "lvis_gal.yaml", 800, 8, 10),
)


def count_step(setting: Setting, steps: int = 2) -> DeviceCounter:
    """Count the last of some training steps of one process."""
    cfg = load_config(
        str(REPOSITORY / "configs" / setting.config),
        ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", f"('{DATASET}',)", *setting.options],
    )
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, pretending():
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        _register(folder, num_classes)
        strides = dict(zip(("p2", "p3", "p4", "p5"), (4, 8, 16, 32), strict=True))
        strides = {name: strides[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES}
        channels = cfg.MODEL.FPN.OUT_CHANNELS
        shapes = {name: ShapeSpec(channels=channels, stride=s) for name, s in strides.items()}
        heads = build_roi_heads(cfg, shapes).train()
        judge = InstanceJudge(cfg, heads, seed=0)
        fill(judge.scorer, torch.Generator().manual_seed(0))
        _thin_out(judge)
        place(heads)
        for step in range(steps):
            counter = DeviceCounter()
            instances = [
                make_targets(rng, setting.size, setting.num_real, setting.num_pasted, num_classes)
                for _ in range(BATCH)
            ]
            samples = [
                {"image_id": 10 * step + image, "instances": target}
                for image, target in enumerate(instances)
            ]
            features = {
                name: OnDevice(torch.randn(channels, 1, 1).expand(*shape).contiguous())
                for name, s in strides.items()
                for shape in [(BATCH, channels, setting.size // s, setting.size // s)]
            }
            targets = [_to_device(target) for target in instances]
            with counter:
                _judge_step(judge, step, samples, features, targets)
    return counter


def _judge_step(judge: InstanceJudge, step: int, samples, features, targets) -> None:
    """What a training step asks of the judge: by the trainer, the ROI heads and the hook."""
    judge.start_step(step, samples)
    rejected = judge(features, targets)
    if rejected is not None:
        for target, mask in zip(targets, rejected, strict=True):
            ignoring(target, mask)
    judge.finish_step()
    decision_metrics(judge, 0.0)


def _register(folder: str, num_classes: int) -> None:
    categories = [
        {"id": c + 1, "name": f"class {c}", "frequency": "rcf"[c % 3], "image_count": 100}
        for c in range(num_classes)
    ]
    path = Path(folder) / "categories.json"
    path.write_text(json.dumps({"categories": categories, "images": [], "annotations": []}))
    register_instances(DATASET, path, folder, replace=True)


def _thin_out(judge: InstanceJudge) -> None:
    """Leave every third class three values in its windows."""
    for window in judge.scorer.reference.values():
        state = window.state_dict()
        state["values"][::3, 3:] = torch.nan
        state["total"][::3] = 3
        window.load_state_dict(state)


def _to_device(target: Instances) -> Instances:
    """Outside the counter: the detector moves the targets."""
    moved = Instances(target.image_size)
    for name, value in target.get_fields().items():
        if isinstance(value, Tensor):
            value = OnDevice(value)
        else:  # Boxes or BitMasks
            tensor, value = value.tensor, type(value)(value.tensor)
            value.tensor = OnDevice(tensor)
        moved.set(name, value)
    return moved


def table(counters: dict[str, DeviceCounter]) -> str:
    """Counts by file, a column pair for each model."""
    files = sorted({where[0] for c in counters.values() for where in c.launches | c.waits})
    rows = []
    for name in [*files, "all"]:
        row = [name if name == "all" else f"`{name.removeprefix('gal_d2/')}`"]
        for counter in counters.values():
            for counts in (counter.launches, counter.waits):
                row.append(sum(n for where, n in counts.items() if name in ("all", where[0])))
        rows.append(row)
    header = ["where"]
    for title in counters:
        header += [f"launches, {title}", f"host waits, {title}"]
    return markdown_table(header, rows)


def print_lines(title: str, counter: DeviceCounter) -> None:
    print(f"\n{title}: launches and host waits by line\n")
    for where in sorted(counter.launches | counter.waits):
        file, function, line = where
        print(f"{counter.launches[where]:5d} {counter.waits[where]:4d}  {file}:{line} {function}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--document", type=Path, help="Markdown file to put the table into")
    parser.add_argument("--lines", action="store_true", help="also say which lines ask")
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> int:
    if arguments.document:
        check_document(arguments.document, COMMAND)
    counters = {setting.title: count_step(setting) for setting in SETTINGS}
    text = table(counters)
    print(text)
    if arguments.lines:
        for title, counter in counters.items():
            print_lines(title, counter)
    if arguments.document:
        replace_tables(arguments.document, COMMAND, text)
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main, parse_arguments()))
