"""Which real images are held out, and which of them a training image's pastes are held against."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import get_cfg

from gal_d2.config import add_gal_config
from gal_d2.datasets.probe import ProbeImages, hold_out, probe_samples, split_probe, uses_probe
from gal_d2.errors import UserError
from gal_d2.setup.configuration import load_config


def make_dict(image_id: int, *classes: int, crowds: tuple[int, ...] = ()) -> dict:
    annotations = [{"category_id": c} for c in classes]
    annotations += [{"category_id": c, "iscrowd": 1} for c in crowds]
    return {"image_id": image_id, "annotations": annotations}


def make_config(fraction: float = 0.25, **options):
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.GAL.SCORER.ENABLED = True
    cfg.GAL.SCORER.TARGET = "probe"
    cfg.GAL.SCORER.PROBE.FRACTION = fraction
    for key, value in options.items():
        cfg.GAL.SCORER[key] = value
    return cfg


def test_of_each_class_a_like_share_is_held_out():
    classes = np.repeat(range(5), [40, 20, 8, 4, 3])
    held_out = hold_out([{c} for c in classes.tolist()], 0.1, seed=0)
    # The last class has three images only: all are needed for training.
    assert np.bincount(classes[held_out], minlength=5).tolist() == [4, 2, 1, 1, 0]


def test_an_image_counts_for_all_its_classes():
    held_out = hold_out([{0, 1}] * 10, 0.2, seed=1)
    assert held_out.sum() == 2


def test_never_more_than_half_of_a_class():
    classes = [{0, 1}] * 4 + [{2}] * 4
    held_out = hold_out(classes, 0.5, seed=0)
    assert held_out[:4].sum() == 2 and held_out[4:].sum() == 2


def test_the_seed_alone_decides():
    classes = [{k % 7, k % 3} for k in range(60)]
    first, again, other = (hold_out(classes, 0.2, seed) for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


def test_held_out_images_do_not_train():
    dicts = [make_dict(k, k % 2) for k in range(20)]
    train, probe = split_probe(make_config(), dicts)
    assert len(probe) == 4 and len(train) == 16
    assert sorted(d["image_id"] for d in train + probe) == list(range(20))
    assert {c for d in probe for c in (d["annotations"][0]["category_id"],)} == {0, 1}
    assert split_probe(make_config(), dicts) == (train, probe)
    assert split_probe(make_config(SEED=1), dicts) != (train, probe)


def test_fraction_zero_shares_the_training_images():
    dicts = [make_dict(0, 1)]
    assert split_probe(make_config(0.0), dicts) == (dicts, dicts)


def test_without_a_user_nothing_is_held_out():
    dicts = [make_dict(k, 0) for k in range(9)]
    cfg = make_config(TARGET="train")
    assert not uses_probe(cfg) and split_probe(cfg, dicts) == (dicts, [])
    cfg.GAL.ACCEPT.UNIT = "batch"
    assert uses_probe(cfg)
    cfg.GAL.SCORER.ENABLED = False
    assert not uses_probe(cfg)


@pytest.mark.parametrize(("fraction", "message"), [(0.6, r"\[0, 0.5\]"), (0.1, "none of the 2")])
def test_fractions_that_make_no_sense(fraction, message):
    with pytest.raises(UserError, match=f"PROBE.FRACTION is {fraction}.*{message}"):
        split_probe(make_config(fraction), [make_dict(0, 1), make_dict(1, 1)])


def test_draws_are_of_the_given_classes():
    images = ProbeImages(
        [make_dict(0, 3, 5), make_dict(1, 5), make_dict(2, 8), make_dict(3, 9, crowds=(5,))]
    )
    assert images.classes.tolist() == [3, 5, 8, 9]
    rng = np.random.default_rng(0)
    drawn = [images.draw([5], 1, rng)[0]["image_id"] for _ in range(200)]
    assert set(drawn) == {0, 1} and 70 < drawn.count(0) < 130
    # Each class has its turn before one comes up again; class 4 has no image.
    two = images.draw([3, 8, 4], 2, rng)
    assert sorted(d["image_id"] for d in two) == [0, 2]
    assert len(images.draw([8], 3, rng)) == 1  # an image is given once
    assert images.draw([4], 2, rng) == [] and images.draw([], 2, rng) == []


def test_samples_of_a_batch():
    assert probe_samples([{"probe": [1, 2]}, {}, {"probe": [3]}]) == [1, 2, 3]


@pytest.mark.parametrize("prefix", ["miniature", "lvis"])
def test_the_published_recipe_trains_on_as_many_images_as_the_others(repository, prefix):
    cfg = load_config(str(repository / f"configs/{prefix}_batch.yaml"))
    dicts = [make_dict(i, i % 5) for i in range(40)]
    train, probe = split_probe(cfg, dicts)
    assert uses_probe(cfg) and train == probe == dicts
