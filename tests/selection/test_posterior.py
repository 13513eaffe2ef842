"""The posterior on simulated pools, whose truth is known, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scored import scored

from gal_d2.config import add_gal_config
from gal_d2.errors import UserError
from gal_d2.scoring.contribution import Contribution
from gal_d2.selection.draw import choose_from_best, posterior_moments, value_of, widened
from gal_d2.selection.posterior import AUDITION, TRAINING, Posterior
from gal_d2.selection.signals import signal_column

SIGNALS = ("box_score", "mask_loss")


def contribution(pool_ids, classes, box, mask_loss=None, area=None) -> Contribution:
    n = len(pool_ids)
    ones = torch.ones(n)
    mask_loss = ones if mask_loss is None else torch.as_tensor(mask_loss, dtype=torch.float32)
    return scored(
        pool_ids,
        2 * ones,
        gt_class=classes,
        phi=3 * ones,
        head_score={"box": torch.as_tensor(box, dtype=torch.float32), "mask": ones},
        head_loss={"box": ones, "mask": mask_loss},
        area=1e6 if area is None else torch.as_tensor(area).float(),
    )


def test_signals_by_name():
    rows = contribution([0], [0], [0.5], mask_loss=[np.e])
    assert signal_column(rows, "box_score").tolist() == [0.5]
    assert signal_column(rows, "mask_loss").tolist() == pytest.approx([-1.0])
    assert signal_column(rows, "score").tolist() == [2.0]
    assert signal_column(rows, "phi").tolist() == [3.0]


def test_nothing_is_known_of_one_never_scored():
    posterior = Posterior(2, SIGNALS, prior_count=1.0)
    belief = posterior.get(np.array([7]))
    assert belief.count.tolist() == [0] and belief.mean.tolist() == [[0, 0]]
    assert belief.std == pytest.approx(np.full((1, 2), np.sqrt(0.5)))
    assert posterior.value(np.array([7])).tolist() == [0.0]


def test_scores_are_relative_to_the_class_and_signals_stay_apart():
    posterior = Posterior(2, SIGNALS)
    for step in range(40):
        # Class 1 lies 5 higher; in each class one cut-out is right, the other has the better mask.
        box = [1.0, -1.0, 6.0, 4.0]
        posterior.update(
            contribution([10, 11, 20, 21], [0, 0, 1, 1], box, mask_loss=[2.0, 1.0, 2.0, 1.0]), step
        )
    mean = posterior.get(np.array([10, 11, 20, 21])).mean
    assert mean[:, 0] == pytest.approx([mean[0, 0], -mean[0, 0]] * 2, abs=0.1)
    assert mean[0, 0] > 0.5 and mean[0, 1] < -0.5


def test_missing_scores_and_those_left_out_are_not_remembered():
    posterior = Posterior(1, SIGNALS)
    rows = contribution([1, 2, 3, -1], [0] * 4, [1.0, np.nan, 3.0, 5.0])
    posterior.update(rows, 0, leave_out=torch.tensor([False, False, True, False]))
    assert sorted(posterior.pool_ids.tolist()) == [1, 2]
    assert posterior.get(np.array([3])).count.tolist() == [0]


def test_later_scores_weigh_more_and_covered_ones_less():
    def after(scores, steps, areas=(1e6, 1e6)) -> float:
        posterior = Posterior(1, ("box_score",))
        rng = np.random.default_rng(0)
        for step, score, area in zip(steps, scores, areas, strict=True):
            others = rng.permutation(np.linspace(-1.5, 1.5, 40))
            rows = contribution(
                [0, *range(1, 41)], [0] * 41, [score, *others], area=[area, *[1e6] * 40]
            )
            posterior.update(rows, step)
        return posterior.get(np.array([0])).mean[0, 0]

    assert after([-1, 1], [0, 99]) > 0.3
    assert after([-1, 1], [98, 99], areas=(1e6, 10.0)) < -0.3


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    ids, box = rng.integers(20, size=60), rng.normal(size=60)
    one, other = Posterior(1, ("box_score",)), Posterior(1, ("box_score",))
    order = rng.permutation(60)
    one.update(contribution(ids, [0] * 60, box), 3)
    other.update(contribution(ids[order], [0] * 60, box[order]), 3)
    asked = np.arange(20)
    assert (one.get(asked).mean == other.get(asked).mean).all()


def test_state_survives_and_another_run_s_is_refused(caplog):
    posterior = Posterior(2, SIGNALS)
    rng = np.random.default_rng(0)
    for step in range(5):
        rows = contribution(np.arange(8), np.arange(8) % 2, rng.normal(size=8))
        posterior.update(rows, step, source=AUDITION if step % 2 else TRAINING)
    restored = Posterior(2, SIGNALS)
    restored.load_state_dict(posterior.state_dict())
    for each in (posterior, restored):
        each.update(contribution([1, 30], [1, 0], [0.3, 0.1]), 6)
    asked = np.arange(40)
    assert (posterior.get(asked).mean == restored.get(asked).mean).all()
    assert restored.auditions(asked)[:9].tolist() == [2] * 8 + [0]
    # What changed before the checkpoint is given again: the last snapshot may not have it.
    assert restored.take_changes()["pool_ids"].tolist() == [*range(8), 30]

    Posterior(3, SIGNALS).load_state_dict(posterior.state_dict())
    assert "it starts empty" in caplog.text
    caplog.clear()
    Posterior(2, ("score",)).load_state_dict(posterior.state_dict())
    assert "it starts empty" in caplog.text


def test_changes_are_given_once():
    posterior = Posterior(1, ("box_score",))
    posterior.update(contribution([5, 3], [0, 0], [0.0, 1.0]), 0)
    assert posterior.take_changes()["pool_ids"].tolist() == [3, 5]
    assert posterior.take_changes()["pool_ids"].tolist() == []
    posterior.update(contribution([5], [0], [0.0]), 1)
    assert posterior.take_changes()["pool_ids"].tolist() == [5]
    assert posterior.take_changes(everything=True)["pool_ids"].tolist() == [3, 5]


def config(**changes):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.GAL.POSTERIOR.merge_from_other_cfg(type(cfg)(changes))
    return cfg


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"SIGNALS": ["box_scores", "mask_loss"]}, "SIGNALS names 'box_scores'"),
        ({"SIGNALS": []}, "SIGNALS is empty"),
        ({"WEIGHTS": [1.0]}, "WEIGHTS has 1 entries"),
    ],
)
def test_options_out_of_range_are_named(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Posterior.from_config(config(**changes))


# -- Simulated pools


class Pool:
    """Cut-outs of one class of which a share is good; a score is quality plus noise, on a level
    that drifts as the model learns."""

    def __init__(self, size: int, good: float, gap: float, rng: np.random.Generator) -> None:
        self.good = np.arange(size) < round(good * size)
        self.quality = np.where(self.good, gap, 0.0) + rng.normal(0, 0.3, size)
        self.rng = rng

    def scores(self, ids: np.ndarray, step: int) -> np.ndarray:
        return self.quality[ids] + 0.002 * step + self.rng.normal(0, 1.0, len(ids))


def run_loop(pool: Pool, steps: int, *, candidates=8, best=2, auditions=4, pastes=4, widen=False):
    """The loop on a simulated pool: good share of the pastes of each step, and what was pasted."""
    posterior = Posterior(1, ("box_score",))
    size, rng = len(pool.good), pool.rng
    shares, pasted = [], []
    for step in range(steps):
        asked = np.unique(rng.integers(size, size=auditions))
        posterior.update(
            contribution(asked, [0] * len(asked), pool.scores(asked, step)), step, source=AUDITION
        )
        drawn = rng.integers(size, size=(pastes, candidates))
        belief = posterior.get(drawn.reshape(-1))
        quality = belief.mean + belief.std * rng.standard_normal(belief.mean.shape)
        value = value_of(quality, np.ones(1), np.full(1, np.inf)).reshape(drawn.shape)
        number = widened(best, candidates, posterior.helping()[0]) if widen else best
        chosen = drawn[np.arange(pastes), choose_from_best(value, number, rng)]
        posterior.update(contribution(chosen, [0] * pastes, pool.scores(chosen, step)), step)
        shares.append(pool.good[chosen].mean())
        pasted.append(chosen)
    return posterior, np.array(shares), np.array(pasted)


def effective_number(pasted: np.ndarray, size: int) -> float:
    """How many cut-outs, pasted equally often, would repeat as little."""
    share = np.bincount(pasted.reshape(-1), minlength=size) / pasted.size
    return 1 / (share**2).sum()


def test_the_level_does_not_rise_with_what_is_drawn():
    """Good ones are drawn three times as often; cut-outs drawn all the same must not look poorer
    for it than with uniform draws."""
    estimates = {}
    for name, weight in (("uniform", 1.0), ("adaptive", 3.0)):
        rng = np.random.default_rng(0)
        pool = Pool(60, 0.5, 1.5, rng)
        chance = np.where(pool.good, weight, 1.0)
        posterior = Posterior(1, ("box_score",))
        for step in range(1500):
            ids = rng.choice(60, size=4, p=chance / chance.sum())
            posterior.update(contribution(ids, [0] * 4, pool.scores(ids, step)), step)
        belief = posterior.get(np.arange(60))
        mean = belief.mean[:, 0]
        estimates[name] = mean[pool.good].mean(), mean[~pool.good].mean()
    # Without taking out what is known of those drawn, the level rises by 0.25 of the gap.
    gap = estimates["uniform"][0] - estimates["uniform"][1]
    for good, bad in estimates.values():
        assert abs(good + bad) < 0.15 * gap
    assert estimates["adaptive"][0] - estimates["adaptive"][1] == pytest.approx(gap, rel=0.15)


def test_the_share_of_good_pastes_comes_near_that_of_perfect_knowledge():
    rng = np.random.default_rng(1)
    pool = Pool(100, 0.4, 2.0, rng)
    _, shares, _ = run_loop(pool, 2000)
    # By perfect knowledge one of the 2 best of 8 is good unless all, or all but one, are bad.
    drawn = pool.good[rng.integers(100, size=(20_000, 8))].sum(1)
    perfect = np.minimum(drawn, 2).mean() / 2
    assert shares[:50].mean() < 0.75
    assert shares[-500:].mean() > 0.9 * perfect


def test_a_class_that_is_nearly_all_bad_does_not_collapse_onto_a_few():
    rng = np.random.default_rng(2)
    pool = Pool(300, 0.05, 2.0, rng)
    _, shares, pasted = run_loop(pool, 2000)
    assert shares[-500:].mean() > 2 * 0.05
    assert effective_number(pasted[-1000:], 300) > 20  # there are 15 good ones


def test_of_a_class_without_bad_ones_nearly_all_are_pasted():
    number = {}
    for widen in (False, True):
        pool = Pool(300, 1.0, 2.0, np.random.default_rng(3))
        _, _, pasted = run_loop(pool, 1500, widen=widen)
        number[widen] = effective_number(pasted[-1000:], 300)
    uniform = effective_number(np.random.default_rng(0).integers(300, size=4000), 300)
    assert number[True] > 0.95 * uniform > 1.2 * number[False]


def test_where_most_are_bad_as_few_are_drawn_from_as_ever():
    runs = {}
    for widen in (False, True):
        pool = Pool(300, 0.4, 2.0, np.random.default_rng(4))
        pool.quality -= 2.5  # below 0 they harm; the level rises by 0.6
        runs[widen] = run_loop(pool, 300, widen=widen)
    assert (runs[True][2] == runs[False][2]).all()
    assert runs[True][1][-100:].mean() > 0.6


def test_moments_by_hand():
    mean, std = posterior_moments(np.array([20.0]), np.array([0.9]), 9, 0.5)
    assert mean == pytest.approx([2 * 0.9 / 2.5]) and std == pytest.approx([np.sqrt(0.5 / 3.75)])


# -- How many of the cut-outs help


def helping(level_of_class, *, signals=("box_score",), source=AUDITION, loss=0.2):
    """The estimate after 60 scores a class, with this mean of each class's cosines."""
    rng = np.random.default_rng(3)
    posterior = Posterior(len(level_of_class) + 1, signals)  # the last class has no scores
    for step in range(30):
        classes = np.repeat(np.arange(len(level_of_class)), 2)
        scores = np.take(level_of_class, classes) + rng.normal(0, 0.2, len(classes))
        ids = 100 * classes + rng.integers(100, size=len(classes))
        losses = torch.from_numpy(loss * np.exp(rng.normal(0, 0.2, len(classes))))
        heads = ("box", "mask", "own")
        rows = scored(
            ids,
            scores,
            gt_class=classes,
            head_score=dict.fromkeys(heads, torch.from_numpy(scores).float()),
            head_loss=dict.fromkeys(heads, losses),
            area=1e6,
        )
        posterior.update(rows, step, source=source)
    return posterior.helping()


def test_the_share_that_helps_is_that_of_the_cosines_above_0():
    share = helping([0.3, 0.3, 0.3])  # Phi(1.5) = 0.93
    assert share[:3] == pytest.approx([0.93] * 3, abs=0.06)
    assert np.isnan(share[3])
    assert helping([0.0, 0.0])[:2] == pytest.approx([0.5, 0.5], abs=0.12)


def test_a_class_is_trusted_no_more_than_the_pool():
    clean, harmful, doubtful, _ = helping([0.4, -0.4, 0.0])
    assert clean == pytest.approx(0.5, abs=0.08)  # the mean of all; its own is 0.98
    assert harmful == pytest.approx(0.26, abs=0.08)  # half of all, half its own, 0.02
    assert doubtful == pytest.approx(0.5, abs=0.08)


def test_a_mask_that_does_not_fit_does_not_help():
    signals = ("box_score", "mask_loss")
    assert helping([0.5], signals=signals, loss=0.2)[0] > 0.95
    assert helping([0.5], signals=signals, loss=0.45)[0] == pytest.approx(0.5, abs=0.1)
    assert helping([0.5], signals=signals, loss=0.65)[0] < 0.1
    assert helping([0.0], signals=signals, loss=0.2)[0] == pytest.approx(0.5, abs=0.1)


def test_a_class_that_is_not_learnt_yet_may_help():
    for loss in (0.1, 5.0):
        assert helping([0.5], signals=("box_score", "box_loss"), loss=loss)[0] > 0.95


def test_what_helps_may_not_be_known():
    assert np.isnan(helping([0.3], source=TRAINING)).all()
    assert np.isnan(helping([0.3], signals=("box_loss", "mask_loss"))).all()
    assert np.isnan(helping([0.3], signals=("box_score", "own_loss"))).all()


def test_as_many_of_the_candidates_are_good_enough_as_help():
    shares = np.array([np.nan, 0.0, 0.6, 0.66, 0.7, 0.8, 0.9, 1.0])
    assert widened(3, 12, shares).tolist() == [3, 3, 3, 3, 4, 8, 12, 12]
    assert widened(1, 1, shares).tolist() == [1] * 8
    assert widened(5, 8, shares).tolist() == [5, 5, 5, 5, 5, 5, 8, 8]
