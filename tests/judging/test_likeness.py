"""What looks like real objects of its category is known before anything is scored, and once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scored import scored
from sklearn.linear_model import LogisticRegression
from small_pool import fill

from gal_d2.errors import UserError
from gal_d2.judging.likeness import (
    LIKENESS_FILE,
    Likeness,
    LikenessFile,
    LikenessHook,
    fit_softmax,
)
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.selection.posterior import Posterior
from gal_d2.selection.posterior_view import PosteriorView, posterior_source
from gal_d2.selection.sampler import DrawRule, PosteriorSampler
from gal_d2.selection.snapshots import Snapshots

NETWORK = "resnet10t"


class MeanColour:
    """Embeds a picture as its mean colour, and counts the pictures."""

    def __init__(self) -> None:
        self.seen = 0

    def embed_images(self, images):
        self.seen += len(images)
        mean = np.stack([image.reshape(-1, 3).mean(0) for image in images]).astype(np.float32)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


class Painted:
    """Real objects of categories 1 and 2 are red and blue; there are none of 3."""

    def pictures(self, category_id):
        colour = {1: (200, 30, 30), 2: (30, 30, 200)}.get(category_id)
        return [] if colour is None else [painted(colour)[..., :3] for _ in range(4)]


def painted(colour) -> np.ndarray:
    rgba = np.full((6, 6, 4), 255, np.uint8)
    rgba[..., :3] = colour
    return rgba


def test_what_looks_like_another_category_is_improbable():
    likeness = Likeness(MeanColour(), Painted(), [1, 2, 3])
    red, blue = painted((190, 40, 40)), painted((40, 40, 190))
    of_1, of_2 = likeness.of(1, [red, blue]), likeness.of(2, [red, blue])
    assert of_1[0] > of_1[1] and of_2[1] > of_2[0]
    assert np.allclose(np.exp(of_1) + np.exp(of_2), 1, atol=1e-5)  # 3 is none of the choices
    assert np.isnan(likeness.of(3, [red, blue])).all()
    assert likeness.of(1, []).shape == (0,)


def test_without_any_real_object_it_says_what_to_do():
    with pytest.raises(UserError, match=r"has none that can be cut out: set GAL\.LIKENESS\.TIMM"):
        Likeness(MeanColour(), Painted(), [3])


def test_the_classifier_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [40, 10, 3])
    vectors = rng.normal(size=(53, 20)) + 2 * np.eye(20)[labels]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    weight, bias = fit_softmax(torch.from_numpy(vectors), torch.from_numpy(labels))
    theirs = LogisticRegression(C=1, class_weight="balanced", max_iter=5000, tol=1e-8)
    theirs.fit(vectors, labels)
    ours = (torch.from_numpy(vectors) @ weight.T + bias).log_softmax(1).numpy()
    assert np.allclose(ours, theirs.predict_log_proba(vectors), atol=2e-3)


class Trainer:
    iter = 0


def hook_of(posterior: Posterior, root: Path, kept: LikenessFile, build) -> LikenessHook:
    pool = InstancePool(root, allow_empty=True)
    hook = LikenessHook(
        posterior, lambda: pool, InstancePool(root, allow_empty=True), build, kept, period=1
    )
    hook.trainer = Trainer()
    return hook


def never() -> Likeness:
    raise AssertionError("there is nothing new to look at")


def test_each_cut_out_is_looked_at_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("gal_d2.judging.likeness._KEPT_EVERY", 2)
    embedder, kept = MeanColour(), LikenessFile(tmp_path / LIKENESS_FILE, "a network")
    posterior = Posterior(1, likeness_weight=1.5)
    root = tmp_path / "pool"
    hook = hook_of(posterior, root, kept, lambda: Likeness(embedder, Painted(), [1, 2]))
    hook.before_train()
    assert embedder.seen == 0  # an empty pool
    first = fill(root, range(5))
    hook.pool().refresh()
    hook.after_step()
    assert embedder.seen == 8 + 5
    second = fill(root, range(5, 8))
    hook.pool().refresh()
    hook.after_step()
    hook.after_step()
    assert embedder.seen == 8 + 8
    ids, values = posterior.likeness
    assert ids.tolist() == sorted(first + second) and np.isfinite(values).all()

    # A run that goes on reads what is there.
    resumed = Posterior(1, likeness_weight=1.5)
    hook_of(resumed, root, kept, never).before_train()
    assert all(map(np.array_equal, resumed.likeness, posterior.likeness))
    # What another network said, or a damaged file, is not taken.
    other = LikenessFile(kept.path, "another network")
    data = bytearray(kept.path.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert len(other.read()[0]) == 0
        data[len(data) // 2] ^= 1
        kept.path.write_bytes(data)
        assert len(kept.read()[0]) == 0
    assert "was made with another network" in caplog.text and "cannot be read" in caplog.text


def test_posterior_snapshots_and_draws_know_it(tmp_path):
    posterior = Posterior(1, likeness_weight=2.0)
    snapshots = Snapshots(tmp_path / "snapshots", period=1, lag=0)
    source = posterior_source(posterior.take_changes)
    ids = np.array(fill(tmp_path / "pool", range(40)))
    alike = np.where(np.arange(40) < 20, -0.1, -4.0).astype(np.float32)
    view = PosteriorView(snapshots)
    for step, part in enumerate(np.array_split(np.arange(40), 4)):
        posterior.add_likeness((ids[part], alike[part]))
        posterior.update(scored(ids[part[:1]], [0.0]), step)
        arrays = {f"posterior.{name}": array for name, array in source(step).items()}
        snapshots.write(step, arrays)
        view.follow(step)
        assert np.allclose(view.values(ids)[0], posterior.value(ids))
    late = PosteriorView(snapshots)
    late.follow(3)
    assert np.allclose(late.moments(ids)[0], posterior.get(ids).mean)
    assert np.allclose(posterior.value(ids)[1:20], -0.2) and posterior.value(ids)[30] < -7
    # One that nobody has looked at yet is not the worst of all.
    assert posterior.value(np.array([1]))[0] == 0

    pool = InstancePool(tmp_path / "pool")
    sampler = PosteriorSampler(pool, {1: 0}, late, DrawRule(8, 1, 0.7))
    drawn = sampler.sample(200, np.random.default_rng(0), step=3)
    assert np.isin(drawn, ids[:20]).mean() > 0.95

    # A person knows better.
    posterior.judged = np.sort(ids[[0, 39]]), np.where(np.sort(ids[[0, 39]]) == ids[0], -1, 1)
    value = posterior.value(ids[[0, 39, 5]])
    assert value[1] > value[2] > value[0]


def options(tmp_path: Path) -> tuple[str, ...]:
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(NETWORK).state_dict(), weights)
    return ("GAL.LIKENESS.TIMM", NETWORK, "GAL.LIKENESS.WEIGHTS", str(weights))


def test_a_training_compares_its_pool_before_it_pastes(train, lvis_root, tmp_path):
    """configs/lvis_gal.yaml, with a network whose weights are in a file."""
    common = ("SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "run"))
    network = options(tmp_path)
    trainer = train(lvis_root, "lvis_gal", *common, *network)
    posterior = trainer.judge.posterior
    pool = trainer._trainer.data_loader.mapper.pool
    ids, values = posterior.likeness
    assert ids.tolist() == pool.all_ids().tolist() and np.isfinite(values).any()
    assert (tmp_path / "run" / LIKENESS_FILE).is_file()
    view = PosteriorView(Snapshots(tmp_path / "run" / "snapshots", period=100, lag=0))
    view.follow(0)
    assert np.allclose(view.values(ids)[0], 1.5 * np.nan_to_num(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("GAL.LIKENESS.TIMM", "no_such_net"), "GAL.LIKENESS.TIMM is 'no_such_net', which is no"),
        (
            ("GAL.LIKENESS.TIMM", NETWORK, "GAL.LIKENESS.WEIGHTS", "gone.pth"),
            "GAL.LIKENESS.WEIGHTS is 'gone.pth', which is not a file",
        ),
        (("GAL.LIKENESS.TIMM", NETWORK, "GAL.LIKENESS.CLIP", "b"), "name one network"),
        (("GAL.LIKENESS.TIMM", NETWORK, "GAL.LIKENESS.WEIGHT", "-1.0"), "set it to 0 or more"),
        (("GAL.LIKENESS.CLIP", "nowhere"), "GAL.LIKENESS.CLIP"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_first_step(
    train, lvis_root, tmp_path, changes, message
):
    with pytest.raises(UserError, match=message):
        train(lvis_root, "lvis_gal", "OUTPUT_DIR", str(tmp_path), *changes)
    assert not list(tmp_path.glob("model_*.pth"))
