"""The piece ``directions`` of benchmarks/scale.py."""

from __future__ import annotations

from pathlib import Path

import torch
from scale_steps import Steps

from gal_d2.scoring.gradients.cache_rows import REAL, CacheRows
from gal_d2.scoring.gradients.directions import GradientCache

PASTES = 152  # of a step: 16 images x 9.5
REAL_OBJECTS = 203  # of a step: 16 images x 12.68
CONFUSED = 64  # of these, relabelled as another class
# Each layer's gradient is projected to 16 x 16, of which a layer of one channel has a row. The box
# head is two linear layers and the class scores, of each stage; the mask head four convolutions, a
# transposed one and the masks. The backbone is not in it: R50 and Swin-L have the same heads.
LAYER = 16 * 16
HEADS = {
    "one stage (lvis_gal)": {"box": [LAYER] * 3, "mask": [LAYER] * 6},
    "cascade (lvis_r50_gal, lvis_swinl_gal)": {
        "box": [LAYER] * 9,
        "mask": [*[LAYER] * 5, 16],
    },
}


def measure_directions(size: int, folder: Path, steps: Steps) -> None:
    """What is kept of each class, with the heads of the configs for LVIS."""
    for name, layer_sizes in HEADS.items():
        _measure_cache(name, layer_sizes, size, folder, steps)


def _measure_cache(
    name: str, layer_sizes: dict[str, list[int]], classes: int, folder: Path, steps: Steps
) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(classes) % 3
    cache = GradientCache(layer_sizes, classes, class_groups=groups, momentum=0.98)
    kept = sum(tensor.nbytes for tensor in cache.state_dict().values() if torch.is_tensor(tensor))
    steps.note(f"{name}: averages, in memory", kept / 1e6)

    def rows(count: int) -> dict[str, CacheRows]:
        of = torch.randint(classes, (count + CONFUSED,), generator=generator)
        slots = torch.full((count + CONFUSED,), REAL)
        slots[count:] = torch.randint(cache.num_partners, (CONFUSED,), generator=generator)
        return {
            head: CacheRows(torch.randn(len(of), sum(sizes), generator=generator), of, slots)
            for head, sizes in layer_sizes.items()
        }

    of_step = rows(REAL_OBJECTS)
    pasted = torch.randint(classes, (PASTES,), generator=generator)
    gradient = {
        head: torch.randn(PASTES, sum(sizes), generator=generator)
        for head, sizes in layer_sizes.items()
    }
    said = torch.rand(PASTES, classes, generator=generator).softmax(1)
    steps.time(f"{name}: update of a step", lambda: cache.update(of_step, (pasted, said)), 50)

    def look_up() -> None:
        for head, rows_of_head in gradient.items():
            weights = cache.direction_weights(head, pasted)
            cache.products(head, pasted, weights, rows_of_head)

    steps.time(f"{name}: scores of a step's pastes", look_up, 20)
    path = folder / "cache"
    steps.time(f"{name}: checkpoint, saved", lambda: torch.save(cache.state_dict(), path))
    steps.note(f"{name}: checkpoint, on disk", path.stat().st_size / 1e6)
    stored = torch.load(path, weights_only=True)
    steps.time(f"{name}: checkpoint, restored", lambda: cache.load_state_dict(stored))
