"""How many images the rules of GAL.GENERATOR.SCHEDULE draw for what training accepts. Simulated.

A long tail of categories, two prompt templates each. How often an image of a category and template
shows a good instance varies: some categories hardly ever get one. Training accepts good instances
mostly, and bad ones seldom, some steps after they were drawn. The simulation knows which
instances are good; the rules see what training would show them.

    python benchmarks/scheduling.py --plot docs/images/scheduling.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from documents import markdown_table

from gal_d2.generation.generator import GenerationRequest
from gal_d2.generation.journal import Outcome
from gal_d2.generation.schedule_rules import AdaptiveScheduler, FixedScheduler
from gal_d2.generation.scheduler import Arm, CategoryScheduler
from gal_d2.setup.launch import run_tool

TEMPLATES = ("a photo of a single {name}", "{name}, {definition}, in a white background")
# LVIS v1: 337 rare (up to 10 images), 461 common (up to 100) and 405 frequent categories.
SHARES = {"r": 337 / 1203, "c": 461 / 1203, "f": 405 / 1203}
RANGES = {"r": (1, 10), "c": (11, 100), "f": (101, 10_000)}
KEPT = 0.8  # share of the images that the filters let pass
ACCEPTED_IF_GOOD, ACCEPTED_IF_BAD = 0.85, 0.15
BATCH = 16
ENOUGH = 5  # good instances, for a rare category to count as served

MakeScheduler = Callable[..., CategoryScheduler]
RULES: dict[str, MakeScheduler] = {
    "uniform": lambda arms, counts, seed: FixedScheduler(arms, counts, power=0.0, seed=seed),
    "inverse_frequency": lambda arms, counts, seed: FixedScheduler(
        arms, counts, power=1.0, seed=seed
    ),
    "adaptive": lambda arms, counts, seed: AdaptiveScheduler(arms, counts, seed=seed),
}


@dataclass(frozen=True)
class World:
    """What is to be found out.

    Attributes:
        arms: categories and templates.
        image_counts: (A,) int64, real images of the arm's category.
        good: (A,) float64, share of an arm's images that are good instances.
        is_rare: (A,) bool.
    """

    arms: list[Arm]
    image_counts: np.ndarray
    good: np.ndarray
    is_rare: np.ndarray


def make_world(num_categories: int, seed: int) -> World:
    """Categories in LVIS's proportions; the share of good instances has mean 0.4 over them."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(
        np.repeat(list(SHARES), np.round(np.array([*SHARES.values()]) * num_categories).astype(int))
    )
    arms, counts, good = [], [], []
    for category_id, group in enumerate(groups.tolist()):
        low, high = np.log(RANGES[group])
        count = round(float(np.exp(rng.uniform(low, high))))
        quality = rng.beta(0.8, 1.2)
        for template in TEMPLATES:
            arms.append(Arm(category_id, template))
            counts.append(count)
            good.append(float(np.clip(quality + rng.normal(0, 0.15), 0.01, 0.95)))
    counts = np.array(counts)
    return World(arms, counts, np.array(good), counts <= RANGES["r"][1])


def simulate(
    world: World, scheduler: CategoryScheduler, num_images: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw images and let training judge what was drawn a batch before.

    Returns:
        Good instances that the pool has after each batch: (batches,) of rare categories, and
        (batches,) how many rare categories have ``ENOUGH``.
    """
    rng = np.random.default_rng([seed, 1])
    place = {arm: k for k, arm in enumerate(world.arms)}
    found = np.zeros(len(world.arms), np.int64)
    rare_categories = np.unique([a.category_id for a in np.array(world.arms)[world.is_rare]])
    counts, covered, is_good = [], [], []
    batch: list[int] = []
    for _ in range(num_images // BATCH):
        # Each instance of the batch before is pasted a few times.
        pasted = np.repeat(batch, rng.integers(0, 7, size=len(batch))).astype(np.int64)
        good = np.array(is_good, bool)[pasted]
        accepted = rng.random(len(pasted)) < np.where(good, ACCEPTED_IF_GOOD, ACCEPTED_IF_BAD)
        scheduler.record_judgements(pasted, accepted)

        batch, outcomes = [], []
        for arm in scheduler.draw(BATCH):
            request = GenerationRequest(arm.category_id, 0, "", 0, template=arm.template)
            if rng.random() >= KEPT:
                outcomes.append(Outcome(request, None, "area"))
                continue
            pool_id = len(is_good)
            is_good.append(rng.random() < world.good[place[arm]])
            found[place[arm]] += is_good[-1]
            batch.append(pool_id)
            outcomes.append(Outcome(request, pool_id))
        scheduler.record_outcomes(outcomes)
        by_category = scheduler.by_category(found)[rare_categories]
        counts.append(int(by_category.sum()))
        covered.append(int((by_category >= ENOUGH).sum()))
    return np.array(counts), np.array(covered)


def draws_until(counts: np.ndarray, target: int) -> float:
    """Images drawn when ``counts`` first reaches ``target``; NaN if it never does."""
    reached = np.flatnonzero(counts >= target)
    return float((reached[0] + 1) * BATCH) if len(reached) else np.nan


def run(num_categories: int, num_images: int, seeds: range) -> dict[str, np.ndarray]:
    """By rule, (seeds, 2, batches) of :func:`simulate`; each seed is a world of its own."""
    curves: dict[str, list] = {name: [] for name in RULES}
    for seed in seeds:
        world = make_world(num_categories, seed)
        for name, make in RULES.items():
            scheduler = make(world.arms, world.image_counts, seed=seed)
            curves[name].append(simulate(world, scheduler, num_images, seed))
    return {name: np.array(values) for name, values in curves.items()}


def plot(curves: dict[str, np.ndarray], num_rare: int, path: Path) -> None:
    """Both counts against the number of images; the band is between the extreme seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    titles = (
        "good instances of rare categories",
        f"rare categories (of {num_rare}) with {ENOUGH}",
    )
    for which, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for name, values in curves.items():
            drawn = BATCH * (1 + np.arange(values.shape[-1]))
            (line,) = ax.plot(drawn, values[:, which].mean(axis=0), label=name)
            low, high = values[:, which].min(axis=0), values[:, which].max(axis=0)
            ax.fill_between(drawn, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        ax.set(xlabel="images drawn", title=title)
        ax.title.set_fontsize(10)
        ax.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(args: argparse.Namespace) -> None:
    curves = run(args.categories, args.images, range(args.seeds))
    num_rare = round(SHARES["r"] * args.categories)
    targets = args.target, round(0.5 * num_rare)
    print(
        f"{args.categories} categories, {num_rare} of them rare; {args.images} images; mean over "
        f"{args.seeds} seeds (a target that is not reached in one of them: nan). Images drawn "
        f"until there are {targets[0]} good instances of rare categories, and until {targets[1]} "
        f"rare categories have {ENOUGH} (in brackets: of uniform's), and what there is in the "
        "end.\n"
    )
    columns = f"{targets[0]} instances", f"{targets[1]} categories", "instances", "categories"
    needed = {
        name: np.array([[draws_until(c[i], targets[i]) for i in (0, 1)] for c in values])
        for name, values in curves.items()
    }
    rows = []
    for name, values in curves.items():
        images = needed[name].mean(axis=0)
        ratio = (needed[name] / needed["uniform"]).mean(axis=0)
        end = values[:, :, -1].mean(axis=0)
        drawn = [f"{images[i]:.0f} ({ratio[i]:.2f})" for i in (0, 1)]
        rows.append([name, *drawn, f"{end[0]:.0f}", f"{end[1]:.1f}"])
    print(markdown_table(["rule", *columns], rows), end="")
    if args.plot:
        plot(curves, num_rare, args.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--categories", type=int, default=120)
    parser.add_argument("--images", type=int, default=2880, help="that each rule draws")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--target", type=int, default=200)
    parser.add_argument("--plot", type=Path, help="write the curves to this PNG")
    run_tool(main, parser.parse_args())
