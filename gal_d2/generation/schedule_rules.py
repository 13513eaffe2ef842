"""What to draw next: which category, with which prompt template.

The budget of images is small against the number of categories, and an image is worth different
things. A category with few real images needs new instances more than one with many, and asked for
some categories the generator draws things that training does not accept. The fixed rules look at
the first only. :class:`AdaptiveScheduler` looks at both.

Its objective is the sum over the categories of log(n_c + a_c), with n_c real training images and
a_c accepted new instances: the first few instances of a rare category count most, and each further
one counts less. An image of arm (c, t), category and template, is accepted with a probability
p_ct that is not known. So it is worth, to first order,

    p_ct / (n_c + a_c) ** POWER,    POWER = 1 for the logarithm,

and the arm with the largest value is drawn, where p_ct is not the estimate but a sample of its
posterior (Thompson sampling): what is little known gets tried. The posterior is a Beta distribution
whose counts fade over time (Raj & Kalyani 2017, "Taming non-stationary bandits"), because the model
in training moves on: instances of a category that it has learnt help no more. A fixed share of the
draws goes to all categories in turn, whatever is known of them.

Evidence comes from training. A new instance is pasted many times, and each time accepted or not.
Its first EXPOSURES times count, 1 / EXPOSURES each, so that an arm is known by its *new* instances,
each of which has one vote.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode

from gal_d2.datasets.annotation_file import Category
from gal_d2.errors import UserError
from gal_d2.generation.prompts import PromptBook
from gal_d2.generation.scheduler import Arm, CategoryScheduler


class FixedScheduler(CategoryScheduler):
    """Draws categories in fixed proportions, their templates in turn.

    Each draw goes to the category with the largest weight / (2 * draws so far + 1): after any
    number of draws the shares are as near to the weights' as whole numbers get (the method of
    Sainte-Lague).

    Args:
        arms, image_counts, seed, exposures: see :class:`CategoryScheduler`.
        power: a category with n images has weight n ** -power: 0 is uniform, 1 the inverse
            frequency.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        image_counts: Sequence[int],
        *,
        power: float,
        seed: int = 0,
        exposures: int = 4,
    ) -> None:
        super().__init__(arms, image_counts, seed=seed, exposures=exposures)
        self._weight = self._image_count**-power

    def _pick(self) -> int:
        quotient = self._weight / (2 * self.by_category(self.drawn) + 1)
        quotient[~self._is_open] = -1
        best = np.flatnonzero(quotient == quotient.max())
        return self._least_drawn_arm(int(best[np.argmin(self._tie_break[best])]))


class AdaptiveScheduler(CategoryScheduler):
    """Spends the budget where new instances are needed and accepted. See the module.

    Args:
        arms, image_counts, seed, exposures: see :class:`CategoryScheduler`.
        power: how much rarer categories are preferred; 0: not at all.
        floor: share of the draws that goes to all categories in turn.
        half_life: evidence has lost half of its weight after so many draws per category, on
            average over the categories.
        prior: the mean acceptance over all arms counts for an arm like so many images of its own.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        image_counts: Sequence[int],
        *,
        power: float = 1.0,
        floor: float = 0.1,
        half_life: float = 50.0,
        prior: float = 2.0,
        seed: int = 0,
        exposures: int = 4,
    ) -> None:
        super().__init__(arms, image_counts, seed=seed, exposures=exposures)
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be in [0, 1], not {floor}.")
        if not half_life > 0:
            raise ValueError(f"half_life must be above 0, not {half_life}.")
        if power < 0:
            raise UserError(f"GAL.GENERATOR.SCHEDULE.POWER is {power}: it must not be negative.")
        self.power = power
        self.floor = floor
        self.prior = prior
        self._fading = 0.5 ** (1 / (half_life * len(self._category_ids)))
        self._success = np.zeros(len(arms))
        self._failure = np.zeros(len(arms))
        self._turns = np.zeros(len(arms), np.int64)  # draws that were a category's turn

    def _by_arm(self) -> dict[str, np.ndarray]:
        own = {"success": self._success, "failure": self._failure, "turns": self._turns}
        return super()._by_arm() | own

    def _learn(self, arm: int, success: float, failure: float) -> None:
        self._success[arm] += success
        self._failure[arm] += failure

    def _pick(self) -> int:
        self._success *= self._fading
        self._failure *= self._fading
        number = self._num_draws
        if int((number + 1) * self.floor) > int(number * self.floor):
            arm = self._whose_turn_it_is()
            self._turns[arm] += 1
            return arm
        success, failure = self._posterior()
        rng = np.random.default_rng([6, self.seed, number])
        value = rng.beta(success, failure) / self._supply()[self._category] ** self.power
        value[~self._is_open[self._category]] = -1
        return int(np.argmax(value))

    def _whose_turn_it_is(self) -> int:
        turns = self.by_category(self._turns) + self._tie_break
        turns[~self._is_open] = np.inf
        return self._least_drawn_arm(int(np.argmin(turns)))

    def _posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Both parameters of each arm's Beta distribution, (A,) each."""
        known = self._success.sum() + self._failure.sum()
        mean = (self._success.sum() + 1) / (known + 2)
        return self._success + self.prior * mean, self._failure + self.prior * (1 - mean)

    def acceptance(self) -> np.ndarray:
        """(A,) mean of the posterior: the expected share of an arm's images that is accepted."""
        success, failure = self._posterior()
        return success / (success + failure)

    def _supply(self) -> np.ndarray:
        """(C,) real images, accepted instances, and those to be expected of what is under way."""
        under_way = self.drawn - self.dropped - self.judged
        expected = self.accepted + under_way * self.acceptance()
        return self._image_count + self.by_category(expected).clip(min=0)


def build_scheduler(
    cfg: CfgNode, categories: Sequence[Category], prompts: PromptBook
) -> CategoryScheduler:
    """The scheduler that ``GAL.GENERATOR.SCHEDULE`` describes.

    Args:
        cfg: the whole config.
        categories: of the data set.
        prompts: whose templates are the arms.

    Raises:
        UserError: there is none of that name, or an option is out of range.
    """
    options = cfg.GAL.GENERATOR.SCHEDULE
    arms, image_counts = [], []
    for category in categories:
        for template in dict.fromkeys(prompts.templates(category.id)):
            arms.append(Arm(category.id, template))
            image_counts.append(category.image_count)
    common = {"seed": cfg.GAL.GENERATOR.SEED}
    if options.NAME == "uniform":
        return FixedScheduler(arms, image_counts, power=0.0, **common)
    if options.NAME == "inverse_frequency":
        return FixedScheduler(arms, image_counts, power=options.POWER, **common)
    if options.NAME == "adaptive":
        return AdaptiveScheduler(
            arms,
            image_counts,
            power=options.POWER,
            **common,
        )
    raise UserError(
        f"GAL.GENERATOR.SCHEDULE.NAME is '{options.NAME}': choose adaptive, inverse_frequency or "
        "uniform."
    )
