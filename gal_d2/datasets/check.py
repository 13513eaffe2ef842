"""Looks at a data set before the first step: its objects and its image files."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np

from gal_d2.datasets.registration import load_instances, load_metadata, object_report
from gal_d2.errors import UserError, some_of
from gal_d2.files.image_file import (
    UnreadableImageError,
    check_image_header,
    read_training_image,
)

logger = logging.getLogger(__name__)

# So many images, drawn at random, are opened for their size, and so many of these decoded.
HEADERS, DECODED = 1000, 8
_NAMES_SHOWN = 100
_REASONS_SHOWN = 10
_SEED = 0


def check_training_set(name: str, records: Sequence[dict]) -> None:
    """Say how many of a training set's objects train, and what is wrong with its images.

    Bad images are named in a warning: training leaves them out.

    Args:
        name: a registered data set.
        records: its dataset dicts.

    Raises:
        UserError: no object has a usable mask, or no image that was looked at can be used.
    """
    _check_objects(name, "train")
    missing, bad = find_bad_images(name, records)
    if missing:
        logger.warning(
            "%s: %d of %d image files are missing and left out of training: %s",
            name,
            len(missing),
            len(records),
            some_of(missing, _NAMES_SHOWN),
        )
    if bad:
        logger.warning("%s: %s", name, " ".join(bad[:_REASONS_SHOWN]))


def check_evaluation_set(name: str) -> None:
    """Read a data set that a run evaluates on, as far as bad data can be seen without a model.

    Raises:
        UserError: its annotations are bad or have no object, its categories are not those of the
            training set, an image file is missing, or one of those looked at is bad.
    """
    load_metadata(name)  # compares the categories
    records = load_instances(name)
    _check_objects(name, "count in the evaluation")
    missing, bad = find_bad_images(name, records)
    if missing:
        raise UserError(
            f"{name}: {len(missing)} of {len(records)} image files are missing: "
            f"{some_of(missing, _NAMES_SHOWN)}; put them there, or take the images out of "
            f"{load_metadata(name).json_file}."
        )
    if bad:
        raise UserError(f"{name}: " + " ".join(bad[:_REASONS_SHOWN]))


def find_bad_images(name: str, records: Sequence[dict]) -> tuple[list[str], list[str]]:
    """The files that are missing, and sentences on others that cannot be used.

    Every file is looked for; the first one and random others are opened, and a few decoded.

    Args:
        name: of the data set, for the messages.
        records: its dataset dicts.

    Raises:
        UserError: all are missing, or none of those looked at can be used.
    """
    is_missing = [_is_missing(record["file_name"]) for record in records]
    missing = [r["file_name"] for r, gone in zip(records, is_missing, strict=True) if gone]
    there = [r for r, gone in zip(records, is_missing, strict=True) if not gone]
    if missing and not there:
        raise UserError(
            f"{name}: all {len(missing)} image files are missing, the first is {missing[0]}: "
            "correct the image folder, or file_name in the annotations."
        )
    order = np.random.default_rng(_SEED).permutation(np.arange(1, max(len(there), 1)))
    chosen = [there[i] for i in (0, *order[: HEADERS - 1].tolist())] if there else []
    bad: list[str] = []
    for place, record in enumerate(chosen):
        try:
            if place < DECODED:
                read_training_image(record, "RGB")
            else:
                check_image_header(record)
        except UnreadableImageError as error:
            bad.append(str(error))
    if bad and len(bad) == len(chosen):
        raise UserError(f"{name}: none of {len(chosen)} images can be used. The first: {bad[0]}")
    if len(bad) > _REASONS_SHOWN:
        bad.insert(0, f"{len(bad)} of {len(chosen)} images cannot be used, among them these:")
    return missing, bad


def _check_objects(name: str, use: str) -> None:
    report = object_report(name)
    json_file = load_metadata(name).json_file
    if not report.num_used:
        raise UserError(
            f"{json_file}: none of its {report.total} objects can {use}: {report.nothing_left()}."
        )
    logger.info("%s: %s", name, report.counts(use))
    metadata = load_metadata(name)
    id_of = metadata.thing_dataset_id_to_contiguous_id
    sentence = report.fallen_out({i: metadata.thing_classes[c] for i, c in id_of.items()})
    if sentence:
        logger.warning("%s: %s", json_file, sentence)


def _is_missing(file_name: str) -> bool:
    return "://" not in file_name and not os.path.isfile(file_name)
