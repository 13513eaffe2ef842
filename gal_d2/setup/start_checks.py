"""Looks at data sets and pool before a run computes anything."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from gal_d2.datasets.annotation_json import DatasetNotFoundError
from gal_d2.datasets.check import check_evaluation_set, check_training_set
from gal_d2.datasets.records import object_classes
from gal_d2.datasets.registration import load_metadata, require_dataset
from gal_d2.datasets.statistics import category_statistics
from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.preflight import require_usable_pool, warn_of_classes_without_objects

logger = logging.getLogger(__name__)


def check_evaluation_sets(cfg: CfgNode) -> None:
    """Look at ``cfg.DATASETS.TEST`` before anything is computed.

    Raises:
        UserError: a data set is not there, or cannot be evaluated on.
    """
    if not cfg.DATASETS.TEST:
        logger.warning(
            "No data set to evaluate on is given (GAL.DATA.VAL for own data): evaluation is off."
        )
    for name in cfg.DATASETS.TEST:
        try:
            require_dataset(name)
            check_evaluation_set(name)
        except DatasetNotFoundError as error:
            raise UserError(
                f"{error} To train without evaluation, leave GAL.DATA.VAL out where GAL.DATA.TRAIN "
                'is given, or else set DATASETS.TEST "()".'
            ) from error


def load_training_dicts(cfg: CfgNode) -> list[dict]:
    """The dataset dicts of ``cfg.DATASETS.TRAIN``, looked at before they train.

    Raises:
        UserError: a data set is not there, or nothing in it can train.
    """
    dicts = []
    for name in cfg.DATASETS.TRAIN:
        require_dataset(name)
        records = DatasetCatalog.get(name)
        check_training_set(name, records)
        dicts += records
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        with_objects = [record for record in dicts if object_classes(record)]
        logger.info("%d images without an object are left out", len(dicts) - len(with_objects))
        dicts = with_objects
    return dicts


def check_pool(cfg: CfgNode, pool: InstancePool | None) -> None:
    """Look at some cut-outs of the pool that is pasted from, and say what is odd about them.

    Raises:
        UserError: it has cut-outs, and none of them can be pasted.
    """
    if pool is None or not len(pool):
        return
    metadata = load_metadata(cfg.DATASETS.TRAIN[0])
    class_of = metadata.thing_dataset_id_to_contiguous_id
    names = {category_id: metadata.thing_classes[k] for category_id, k in class_of.items()}
    require_usable_pool(pool, [i for i in pool.category_ids.tolist() if i in class_of], names)
    warn_of_classes_without_objects(
        pool,
        class_of,
        metadata.thing_classes,
        sum(category_statistics(name).instance_count for name in cfg.DATASETS.TRAIN),
    )
