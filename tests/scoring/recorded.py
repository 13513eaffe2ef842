"""Scores of a few steps, kept in ``recorded_scores.npz``: what the scorer gave at commit d69fd31.

``python tests/scoring/recorded.py`` writes the file anew; the test beside it compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("recorded_scores.npz")
STEPS = 12


def _targets(rng: np.random.Generator, make_targets, image: int):
    """Two images with up to 7 objects each; one box in ten has no height."""
    rows = []
    for place in range(2):
        for _ in range(int(rng.integers(0, 8))):
            x0, y0 = rng.uniform(0, image / 2, 2)
            width, height = rng.uniform(5, image / 2, 2)
            box = [x0, y0, x0 + width, y0 + height * (rng.random() > 0.1)]
            pasted = int(rng.random() < 0.5)
            pool_id = int(rng.integers(0, 1 << 40)) if pasted else -1
            # Of class 4 there are few, and real ones not before the end.
            classes = [0, 0, 0, 1, 1, 2, 3, 4] if pasted else [0, 0, 0, 1, 1, 2, 3]
            rows.append((place, box, int(rng.choice(classes)), pasted, pool_id))
    return make_targets(rows)


def record(tiny) -> dict[str, np.ndarray]:
    """Everything that the scorer gives and keeps, by name.

    Args:
        tiny: of ``tests/roi_heads_fixtures.py``.
    """
    import torch

    from gal_d2.scoring.scorer import ContributionScorer, RealBatch

    rng = np.random.default_rng(15)
    heads = tiny.roi_heads(seed=3)
    for parameter in heads.parameters():
        parameter.data = torch.from_numpy(rng.normal(0, 0.15, parameter.shape)).float()
    scorer = ContributionScorer(
        heads,
        projection=8,
        class_groups=torch.tensor([2, 2, 1, 0, 0]),
        partner_every=2,
        max_real_per_class=2,
        max_counterfactuals=6,
        reference_size=256,  # nothing is forgotten: what goes first hangs on the last bit
        reference_min=4,
    )
    found: dict[str, np.ndarray] = {}

    def keep(name: str, contribution) -> None:
        for column, tensor in contribution._tensors():
            found[f"{name}/{column}"] = tensor.cpu().numpy()

    for step in range(STEPS):
        features = {
            name: torch.from_numpy(rng.normal(size=feature.shape)).float()
            for name, feature in tiny.features().items()
        }
        targets = _targets(rng, tiny.targets, 64)
        probe = None
        if step == 7:
            probe = RealBatch(features, _targets(rng, tiny.targets, 64))
        keep(f"step{step}", scorer.step(features, targets, probe=probe))
    keep("all", scorer.score(features, _targets(rng, tiny.targets, 64), which="all"))
    state = scorer.state_dict()
    for name, tensor in state["cache"].items():
        if name != "signature":
            found[f"cache/{name}"] = tensor.float().numpy()
    for key, window in state["reference"].items():
        found[f"window/{key}"] = np.sort(window["values"].numpy(), axis=1)
    return found


if __name__ == "__main__":
    sys.path[:0] = [str(FILE.parents[2]), str(FILE.parents[1])]
    from types import SimpleNamespace

    import roi_heads_fixtures as fixtures

    tiny = SimpleNamespace(
        roi_heads=fixtures.tiny_roi_heads,
        features=fixtures.random_features,
        targets=fixtures.make_targets,
    )
    np.savez_compressed(FILE, **record(tiny))
