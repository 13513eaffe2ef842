"""Does the contribution score notice noise, and does selecting by it help? (paper, section 5.1)

A small network is trained part of the way on real pictures. Held-out *candidates* are given
Gaussian noise of growing scale, and each is scored by what a step on it does to the loss on real
pictures, to first order: the product of its gradient with a cached real gradient. Then networks are
trained from scratch on the real pictures and

- nothing else, all candidates, the better half by score, as many at random, or the less noisy half
  (the oracle),

where every candidate has noise of a scale drawn at random. What the score is, is a choice:

- ``raw``: dot product with the mean gradient over all classes, the formula as it stands;
- ``class``: cosine with the mean of the normalised gradients of the candidate's own class;

and either with gradients of the pictures that the network was trained on or of held-out ones.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gal_d2.errors import UserError
from gal_d2.testbeds.noise.image_sets import ImageSet

logger = logging.getLogger(__name__)
FORMULAS = ("raw", "class")
REFERENCES = ("training", "held-out")
#: Every score that is tried: (formula, which real pictures).
SCORES = tuple((formula, reference) for formula in FORMULAS for reference in REFERENCES)


@dataclass(frozen=True)
class NoiseExperiment:
    """Sizes of an experiment.

    Attributes:
        num_real, num_held_out, num_candidates, num_test: pictures in each part.
        channels: of the network's convolutions; each but the first halves the resolution.
        steps: optimisation steps of every training.
        scored_after: share of the steps after which the network scores the candidates.
        early: share of the steps after which accuracy is measured for the first time.
        batch_size: pictures per step.
        learning_rate: of Adam, following a half cosine.
        noise_scales: standard deviations of the noise, ascending from 0; the range of a pixel is 1.
        keep: share of the candidates of each class that is selected.
        seeds: one repetition each.
    """

    num_real: int
    num_held_out: int
    num_candidates: int
    num_test: int
    channels: tuple[int, ...] = (16, 32)
    steps: int = 400
    scored_after: float = 0.2
    early: float = 0.2
    batch_size: int = 64
    learning_rate: float = 2e-3
    noise_scales: tuple[float, ...] = (0.0, 0.4, 0.8, 1.6, 3.2)
    keep: float = 0.5
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def __post_init__(self) -> None:
        for name in ("keep", "scored_after", "early"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise UserError(f"{name} is {value}: set it above 0 and below 1.")
        if self.noise_scales[:1] != (0.0,) or list(self.noise_scales) != sorted(
            set(self.noise_scales)
        ):
            raise UserError(f"noise scales are {self.noise_scales}: give them ascending from 0.")
        if not self.seeds:
            raise UserError("there are no seeds: give at least one.")


#: By data set. Few real pictures, so that there is something for candidates to add.
DEFAULTS = {
    "digits": NoiseExperiment(100, 300, 700, 697, seeds=tuple(range(10))),
    "fashion-mnist": NoiseExperiment(200, 1000, 3000, 5000, channels=(16, 32, 32), steps=800),
    "cifar-10": NoiseExperiment(2000, 2000, 8000, 10000, channels=(32, 64, 128), steps=3000),
}


def default_for(data: ImageSet) -> NoiseExperiment:
    """The sizes of a data set of :data:`DEFAULTS`; for any other, shares of its pictures.

    A sixth is real and a sixth held out, a third are candidates, and the rest is to test on.
    """
    if data.name in DEFAULTS:
        return DEFAULTS[data.name]
    sixth = len(data.labels) // 6
    rest = len(data.labels) - 4 * sixth
    return NoiseExperiment(sixth, sixth, 2 * sixth, rest, channels=(16, 32, 32), steps=800)


@dataclass
class SeedResult:
    """What one seed gave.

    Attributes:
        scores: by (formula, reference), (scales, candidates) float32; row i: noise scale i.
        trained_on: the same of the pictures that the network was trained on, (real,), no noise.
        accuracy: by arm, test accuracy in per cent (early, final).
        share_kept: by arm, for each noise scale the share of its candidates that was trained on.
    """

    seed: int
    scores: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    trained_on: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    accuracy: dict[str, tuple[float, float]] = field(default_factory=dict)
    share_kept: dict[str, np.ndarray] = field(default_factory=dict)


class SmallNet(nn.Module):
    """Convolutions with stride 2 (the first: 1), then a linear classifier. No normalisation.

    A normalisation by batch would couple the gradients of its pictures.
    """

    def __init__(
        self, in_shape: tuple[int, int, int], num_classes: int, channels: Sequence[int]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, *size = in_shape
        for number, outputs in enumerate(channels):
            stride = 1 if number == 0 else 2
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU()]
            size = [math.ceil(side / stride) for side in size]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * size[0] * size[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def add_noise(images: Tensor, scale: float | Tensor, generator: torch.Generator) -> Tensor:
    """Pictures with Gaussian noise, clipped to [0, 1]; same shape as ``images`` (N, C, H, W).

    Args:
        images: float32 in [0, 1].
        scale: standard deviation, one for all or (N,).
        generator: draws as many numbers as ``images`` has values, whatever the scale.
    """
    noise = torch.randn(images.shape, generator=generator)
    scale = torch.as_tensor(scale, dtype=images.dtype).reshape(-1, 1, 1, 1)
    return (images + scale * noise).clamp(0, 1)


def per_sample_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(N, P) gradients of the N cross entropies, by ``torch.func``; P: all parameters in order."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    return torch.cat([gradients[name].flatten(1) for name in parameters], dim=1)


def gradient_chunks(
    model: nn.Module, images: Tensor, labels: Tensor, chunk: int = 256
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per-sample gradients (n, P) with their labels (n,), a chunk at a time: memory is bounded."""
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        yield per_sample_gradients(model, images[part], labels[part]), labels[part]


@dataclass(frozen=True)
class RealGradient:
    """The cached gradient of real pictures.

    Attributes:
        mean: (P,), over all pictures.
        class_direction: (C, P) of norm 1: mean of the normalised gradients of each class; zero for
            a class without pictures.
    """

    mean: Tensor
    class_direction: Tensor

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, labels: Tensor, num_classes: int) -> RealGradient:
        mean, directions = 0.0, 0.0
        for gradient, label in gradient_chunks(model, images, labels):
            mean = mean + gradient.sum(0)
            sums = gradient.new_zeros(num_classes, gradient.shape[1])
            directions = directions + sums.index_add(0, label, F.normalize(gradient, dim=1))
        return cls(mean / len(images), F.normalize(directions, dim=1))

    def scores(self, gradient: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """By formula, (N,) scores of gradients (N, P); higher: helps more."""
        direction = self.class_direction[labels]
        return {
            "raw": gradient @ self.mean,
            "class": (F.normalize(gradient, dim=1) * direction).sum(1),
        }


def score_candidates(
    model: nn.Module, real: dict[str, RealGradient], images: Tensor, labels: Tensor
) -> dict[tuple[str, str], Tensor]:
    """By (formula, reference), (N,) scores of candidates; ``real`` is by reference."""
    parts: dict[tuple[str, str], list[Tensor]] = {key: [] for key in SCORES}
    for gradient, label in gradient_chunks(model, images, labels):
        for reference, cached in real.items():
            for formula, values in cached.scores(gradient, label).items():
                parts[formula, reference].append(values)
    return {key: torch.cat(values) for key, values in parts.items()}


def best_of_each_class(score: Tensor, labels: Tensor, keep: float) -> Tensor:
    """(N,) bool: the share ``keep`` of each class with the highest score (at least one).

    Ties go to the earlier one.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = (labels == label).nonzero()[:, 0]
        count = max(1, round(keep * len(mine)))
        order = score[mine].argsort(descending=True, stable=True)
        chosen[mine[order[:count]]] = True
    return chosen


def train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: NoiseExperiment,
    generator: torch.Generator,
    *,
    at_step: dict[int, Callable[[], None]] | None = None,
    until: int | None = None,
) -> None:
    """Train in place with Adam on random batches, drawn with replacement.

    Args:
        at_step: called when so many steps are done.
        until: stop after so many steps of the schedule.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    for step in range(config.steps if until is None else until):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        rows = torch.randint(len(images), (config.batch_size,), generator=generator)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if at_step and step + 1 in at_step:
            at_step[step + 1]()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers, in per cent."""
    right = sum(
        int((model(i).argmax(1) == k).sum())
        for i, k in zip(images.split(512), labels.split(512), strict=True)
    )
    return 100 * right / len(labels)


def arm_name(key: tuple[str, str]) -> str:
    """What the table calls the selection by a score."""
    return f"selected: {key[0]}, {key[1]}"


def run_seed(data: ImageSet, config: NoiseExperiment, seed: int) -> SeedResult:
    """One repetition: its own split, initial weights and noise.

    Raises:
        UserError: the data set has fewer pictures than the parts need.
    """
    sizes = (config.num_real, config.num_held_out, config.num_candidates, config.num_test)
    if min(sizes) < 1 or sum(sizes) > len(data.labels):
        raise UserError(
            f"the parts have {sizes} pictures, {sum(sizes)} in all, but {data.name} has "
            f"{len(data.labels)}: make them smaller, and none empty."
        )
    order = np.random.default_rng(seed).permutation(len(data.labels))[: sum(sizes)]
    images = torch.from_numpy(data.images[order]).split(sizes)
    labels = torch.from_numpy(data.labels[order]).split(sizes)
    (real, real_labels), held_out, (candidates, classes), test = zip(images, labels, strict=True)

    def generator(purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * seed + purpose)

    def new_model() -> SmallNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # every arm starts from the same weights
            return SmallNet(tuple(data.images.shape[1:]), data.num_classes, config.channels)

    result = SeedResult(seed)
    model = new_model()
    train(
        model,
        real,
        real_labels,
        config,
        generator(1),
        until=max(1, round(config.scored_after * config.steps)),
    )
    cached = {
        "training": RealGradient.of(model, real, real_labels, data.num_classes),
        "held-out": RealGradient.of(model, *held_out, data.num_classes),
    }
    known = score_candidates(model, cached, real, real_labels)
    result.trained_on = {key: values.numpy() for key, values in known.items()}
    by_scale = []
    for scale in config.noise_scales:  # the same noise, larger and larger
        noisy = add_noise(candidates, scale, generator(2))
        by_scale.append(score_candidates(model, cached, noisy, classes))
    result.scores = {key: torch.stack([s[key] for s in by_scale]).numpy() for key in SCORES}

    scale_index = torch.randint(len(config.noise_scales), (len(classes),), generator=generator(3))
    scale = torch.tensor(config.noise_scales)[scale_index]
    noisy = add_noise(candidates, scale, generator(2))
    position = torch.arange(len(classes))
    nothing = torch.zeros(len(classes), dtype=torch.bool)
    random = torch.rand(len(classes), generator=generator(4))
    arms = {"nothing": nothing, "all": ~nothing}
    arms["random"] = best_of_each_class(random, classes, config.keep)
    for key in SCORES:
        score = torch.from_numpy(result.scores[key])[scale_index, position]
        arms[arm_name(key)] = best_of_each_class(score, classes, config.keep)
    arms["oracle"] = best_of_each_class(-scale, classes, config.keep)

    early = max(1, round(config.early * config.steps))
    for name, chosen in arms.items():
        model = new_model()
        measured: list[float] = []

        def measure(model: nn.Module = model, measured: list[float] = measured) -> None:
            measured.append(accuracy(model, *test))

        train(
            model,
            torch.cat([real, noisy[chosen]]),
            torch.cat([real_labels, classes[chosen]]),
            config,
            generator(5),
            at_step={early: measure, config.steps: measure},
        )
        result.accuracy[name] = (measured[0], measured[-1])
        result.share_kept[name] = np.array(
            [
                chosen[scale_index == index].float().mean().item()
                for index in range(len(config.noise_scales))
            ]
        )
        logger.info("%s, seed %d, %s: %.1f %%", data.name, seed, name, measured[-1])
    return result


def run(data: ImageSet, config: NoiseExperiment) -> list[SeedResult]:
    """All seeds, one after the other."""
    return [run_seed(data, config, seed) for seed in config.seeds]
