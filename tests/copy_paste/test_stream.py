from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler

from gal_d2.copy_paste.stream import (
    TrainingLoader,
    group_by_aspect_ratio,
    sample_seed,
    seeded,
)
from gal_d2.errors import UserError

DATASET = [{"file_name": f"{i}.jpg", "index": i} for i in range(7)]


def noisy_mapper(sample: dict) -> dict:
    """Draws from every kind of randomness that a mapper may use."""
    draws = [
        np.random.default_rng(sample["sample_seed"]).random(),
        np.random.rand(),  # noqa: NPY002
        random.random(),
        torch.rand(1).item(),
    ]
    return {"index": sample["index"], "draws": draws}


def picky_mapper(sample: dict) -> dict | None:
    return None if sample["index"] % 2 else noisy_mapper(sample)


def make_loader(mapper=noisy_mapper, num_workers: int = 0, **kwargs) -> TrainingLoader:
    return TrainingLoader(
        DATASET,
        mapper,
        lambda seed: TrainingSampler(len(DATASET), seed=seed),
        seed=3,
        batch_size=2,
        num_workers=num_workers,
        **kwargs,
    )


def take(loader: TrainingLoader, count: int) -> list:
    return list(itertools.islice(iter(loader), count))


def test_a_resumed_stream_continues_where_it_stopped():
    whole = take(make_loader(), 9)
    resumed = make_loader()
    resumed.start_batch = 4
    assert take(resumed, 5) == whole[4:]


def test_workers_do_not_change_the_samples():
    assert take(make_loader(num_workers=2), 5) == take(make_loader(), 5)


def test_each_position_has_randomness_of_its_own():
    samples = [sample for batch in take(make_loader(), 20) for sample in batch]
    assert len({tuple(sample["draws"]) for sample in samples}) == len(samples)


def test_an_unusable_image_is_replaced_the_same_way_each_time():
    first, second = take(make_loader(picky_mapper), 6), take(make_loader(picky_mapper), 6)
    assert first == second
    assert all(sample["index"] % 2 == 0 for batch in first for sample in batch)


def no_mapper(sample: dict) -> None:
    return None


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_set_without_usable_images_is_one_sentence_that_names_one(num_workers):
    with pytest.raises(UserError, match=r"\d\.jpg") as caught:
        take(make_loader(no_mapper, num_workers), 1)
    assert str(caught.value).startswith("None of 11 images") and "\n" not in str(caught.value)


def test_wide_and_tall_images_do_not_mix():
    is_wide = np.array([True, False, True, True, False, False, True])
    samples = [(position, position % 7) for position in range(40)]
    batches = list(group_by_aspect_ratio(samples, is_wide, 3))
    assert all(len({bool(is_wide[i]) for _, i in batch}) == 1 for batch in batches)
    # the first three wide ones are 0, 2, 3: they come out as soon as they are complete
    assert batches[0] == [(0, 0), (2, 2), (3, 3)]


def test_grouping_resumes_too():
    is_wide = np.arange(7) % 3 == 0
    whole = take(make_loader(is_wide=is_wide), 8)
    resumed = make_loader(is_wide=is_wide)
    resumed.start_batch = 5
    assert take(resumed, 3) == whole[5:]


def test_seeding_leaves_no_trace():
    before = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()  # noqa: NPY002
    with seeded(5):
        np.random.rand(), torch.rand(1), random.random()  # noqa: NPY002
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]


def test_sample_seeds_differ_and_fit_63_bits():
    seeds = [sample_seed(run, position) for run in range(3) for position in range(1000)]
    assert len(set(seeds)) == 3000
    assert min(seeds) >= 0 and max(seeds) < 2**63


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_draws_nothing_from_the_global_generator(num_workers):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    take(make_loader(num_workers=num_workers), 3)
    assert torch.rand(1) == expected
