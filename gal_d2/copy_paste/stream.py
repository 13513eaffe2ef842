"""The training data stream: which sample comes when, and with which randomness.

Everything is a function of (seed, position in the stream). The order of samples, their grouping
into batches and the seed of each sample are computed in the main process from indices alone, so a
stream resumes at any batch without state, and gives the same batches with any number of workers.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from gal_d2.errors import LOADER_ENDED, UserError
from gal_d2.selection.snapshots import PREFETCH_FACTOR

# How many other images are tried, in turn, when the mapper cannot use one.
MAX_REPLACEMENTS = 10


def sample_seed(seed: int, position: int) -> int:
    """The seed of one sample: a 63-bit mix of the run's seed and its position in the stream."""
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block the global generators (random, NumPy, torch CPU) start from ``seed``.

    detectron2's augmentations draw from NumPy's global generator. All three are put back after.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' as well
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


class SeededSamples(Dataset):
    """Maps ``(step, position, index)`` to a training sample whose randomness is that position's.

    Args:
        dataset: dataset dicts by index.
        mapper: turns a dataset dict into a training sample, or None if it cannot. It finds the
            sample's seed under ``"sample_seed"``, the step that it is for under ``"sample_step"``,
            and the global generators seeded with its seed.
        seed: the run's seed.
    """

    def __init__(
        self, dataset: Sequence[dict], mapper: Callable[[dict], dict | None], seed: int
    ) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int, int]) -> dict:
        step, position, index = key
        seed = sample_seed(self.seed, position)
        replacements = np.random.default_rng(seed).integers(
            len(self.dataset), size=MAX_REPLACEMENTS
        )
        for candidate in (index, *replacements.tolist()):
            with seeded(seed):
                sample = self.mapper(
                    {**self.dataset[candidate], "sample_seed": seed, "sample_step": step}
                )
            if sample is not None:
                return sample
        raise UserError(
            f"None of {MAX_REPLACEMENTS + 1} images in a row could be used for training, the last "
            f"was {self.dataset[candidate].get('file_name')}: see the warnings above."
        )


def group_by_aspect_ratio(
    samples: Iterable[tuple[int, int]], is_wide: np.ndarray, batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Batch ``(position, index)`` pairs so that a batch holds only wide or only tall images.

    Padding to a common size then wastes little. A batch is given out as soon as it is full.

    Args:
        samples: ``(position, index)`` pairs.
        is_wide: bool, by index.
        batch_size: pairs per batch.
    """
    buckets: tuple[list, list] = ([], [])
    for sample in samples:
        bucket = buckets[int(is_wide[sample[1]])]
        bucket.append(sample)
        if len(bucket) == batch_size:
            yield bucket.copy()
            bucket.clear()


class TrainingLoader:
    """Endless batches of training samples for this process; iterating starts at ``start_batch``.

    Args:
        dataset: dataset dicts by index.
        mapper: see :class:`SeededSamples`.
        make_indices: from a seed, the endless stream of the dataset indices of this process (a
            detectron2 training sampler).
        seed: the run's seed.
        batch_size: samples per batch and process.
        is_wide: bool by index to keep wide and tall images apart; None to batch in stream order.
        num_workers: DataLoader workers; 0 loads in the calling process.

    Attributes:
        seed, start_batch: the run's seed, and the number of batches that it has consumed; set
            them before the first ``next`` to resume.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        mapper: Callable[[dict], dict | None],
        make_indices: Callable[[int], Iterable[int]],
        *,
        seed: int,
        batch_size: int,
        is_wide: np.ndarray | None = None,
        num_workers: int = 0,
    ) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.make_indices = make_indices
        self.seed = seed
        self.batch_size = batch_size
        self.is_wide = is_wide
        self.num_workers = num_workers
        self.start_batch = 0

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """``(position, index)`` pairs, batch by batch, from ``start_batch`` on."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        samples = zip(itertools.count(rank, world_size), self.make_indices(self.seed))
        if self.is_wide is None:
            batches = iter(lambda: list(itertools.islice(samples, self.batch_size)), [])
        else:
            batches = group_by_aspect_ratio(samples, self.is_wide, self.batch_size)
        return itertools.islice(batches, self.start_batch, None)

    def keys(self) -> Iterator[list[tuple[int, int, int]]]:
        """The same with the step before: batch n of the stream is what step n trains on."""
        for step, batch in enumerate(self.batches(), self.start_batch):
            yield [(step, position, index) for position, index in batch]

    def __iter__(self) -> Iterator[list[dict]]:
        # A generator: nothing starts, and no attribute is read, before the first `next`.
        batches = DataLoader(
            SeededSamples(self.dataset, self.mapper, self.seed),
            batch_sampler=_Restartable(self.keys),
            num_workers=self.num_workers,
            prefetch_factor=PREFETCH_FACTOR if self.num_workers else None,
            collate_fn=_as_list,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # else starting to load draws from the global one
        )
        try:
            yield from batches
        except UserError as error:
            raise UserError(_without_traceback(error)) from error
        except ConnectionError as error:  # to a worker, before torch has noticed that it is dead
            raise UserError(f"{LOADER_ENDED}.") from error


class _Restartable:
    """An iterable out of a function that returns an iterator."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def _without_traceback(error: UserError) -> str:
    """The sentence of an error, which comes out of a loader worker with the worker's traceback."""
    return str(error).strip().rpartition(f"{type(error).__qualname__}: ")[2]


def _as_list(samples: list[dict]) -> list[dict]:
    return samples


def _init_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
