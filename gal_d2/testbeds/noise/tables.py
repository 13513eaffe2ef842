"""The tables of the noise experiment: accuracy, separation and location of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gal_d2.testbeds.noise.experiment import SCORES, NoiseExperiment, SeedResult, arm_name


def separation(results: Sequence[SeedResult], key: tuple[str, str]) -> np.ndarray:
    """By noise scale: how often a clean candidate scores above a noisy one (AUC), mean of seeds.

    0.5 for scale 0, which is compared with itself.
    """
    values = []
    for result in results:
        scores = result.scores[key]
        values.append([_auc(scores[0], noisy) for noisy in scores])
    return np.mean(values, axis=0)


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score  # of the extra "testbeds"

    is_positive = np.repeat([True, False], [len(positive), len(negative)])
    return float(roc_auc_score(is_positive, np.concatenate([positive, negative])))


def accuracy_table(results: Sequence[SeedResult]) -> str:
    """Table 1: test accuracy by arm, early and at the end, and the noise of what was trained on."""
    lines = [
        "| candidates trained on | accuracy, early | accuracy, end | end - random |",
        "|---|---|---|---|",
    ]
    random = np.array([result.accuracy["random"] for result in results])
    for arm in results[0].accuracy:
        values = np.array([result.accuracy[arm] for result in results])
        early, end = (f"{m:.1f} ± {s:.1f}" for m, s in zip(*mean_and_std(values), strict=True))
        gain, spread = mean_and_std((values - random)[:, 1:])
        difference = "" if arm == "random" else f"{gain[0]:+.1f} ± {spread[0]:.1f}"
        lines.append(f"| {arm} | {early} | {end} | {difference} |")
    return "\n".join(lines)


def mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation over the first axis; 0 for a single row."""
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
    return values.mean(axis=0), spread


def separation_table(results: Sequence[SeedResult], config: NoiseExperiment) -> str:
    """Figure 2 in numbers: AUC of a clean against a noisy candidate, and the share kept."""
    scales = config.noise_scales
    lines = [
        "| score | " + " | ".join(f"AUC at {scale:g}" for scale in scales[1:]) + " | "
        "kept of each scale, % |",
        "|---" * (len(scales) + 1) + "|",
    ]
    for key in SCORES:
        auc = " | ".join(f"{value:.2f}" for value in separation(results, key)[1:])
        kept = np.mean([result.share_kept[arm_name(key)] for result in results], axis=0)
        shares = ", ".join(f"{100 * share:.0f}" for share in kept)
        lines.append(f"| {key[0]}, {key[1]} | {auc} | {shares} |")
    return "\n".join(lines)


def location_table(results: Sequence[SeedResult], config: NoiseExperiment) -> str:
    """Where the distributions of figure 2 lie: medians, mean over the seeds.

    In standard deviations of the scores of clean candidates, so that formulas can be compared.
    """
    scales = config.noise_scales
    lines = [
        "| score | trained on | " + " | ".join(f"noise {scale:g}" for scale in scales) + " |",
        "|---" * (len(scales) + 2) + "|",
    ]
    for key in SCORES:
        medians = []
        for result in results:
            unit = max(float(result.scores[key][0].std()), np.finfo(np.float32).tiny)
            row = [result.trained_on[key], *result.scores[key]]
            medians.append([float(np.median(values)) / unit for values in row])
        cells = " | ".join(f"{value:+.2f}" for value in np.mean(medians, axis=0))
        lines.append(f"| {key[0]}, {key[1]} | {cells} |")
    return "\n".join(lines)
