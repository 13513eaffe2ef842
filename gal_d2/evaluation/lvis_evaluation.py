"""LVIS metrics (federated AP and AR for boxes and masks), computed by hotcoco.

The 13 figures per task are those of the reference implementation, lvis-api; a test holds one
against the other.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from pycocotools import mask as mask_utils
from tabulate import tabulate

from gal_d2.datasets.annotation_file import FREQUENCIES, AnnotationFile, Category
from gal_d2.datasets.registration import load_annotation_file, load_metadata
from gal_d2.errors import UserError, some_of

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")
RESULTS_FILE = "lvis_instances_results.json"
PER_CATEGORY_FILE = "per_category_ap.csv"

# Index in hotcoco's arrays. IoU thresholds are 0.50, 0.55 ... 0.95.
_IOU_50, _IOU_75 = 0, 5
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
_NAMES_IN_LOG = 100
_TABLE_COLUMNS = 3


class LVISEvaluator(DatasetEvaluator):
    """Evaluates detections on a registered data set as LVIS does; all figures in per cent.

    An image counts for a category only if instances of it are annotated there, or if it is in the
    image's ``neg_category_ids``; if it is in ``not_exhaustive_category_ids``, unmatched detections
    do no harm. A data set without these fields (COCO format) is taken to be annotated
    exhaustively: every category that an image lacks is negative there. Crowds are matched as COCO
    does, so that finding their members neither helps nor harms.

    Frequency groups are those of the data set's own categories (see ``categories_from`` of
    :func:`gal_d2.datasets.registration.register_instances`).
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | Path | None = None,
        *,
        max_dets_per_image: int = 300,
    ) -> None:
        """
        Args:
            dataset_name: a registered data set.
            tasks: of "bbox" and "segm"; default: boxes, and masks if the model predicts any.
            distributed: gather the detections of all ranks; only rank 0 gets results then.
            output_dir: folder for ``lvis_instances_results.json`` (all detections, LVIS format)
                and ``per_category_ap.csv``; nothing is written if None.
            max_dets_per_image: only so many, the highest-scoring, count in an image.

        Raises:
            DatasetNotFoundError: the name is unknown, or its annotation file is missing.
            UserError: an argument or the annotation file is bad.
        """
        unknown = set(tasks or ()) - set(TASKS)
        if unknown:
            raise UserError(f"LVISEvaluator: tasks are {sorted(unknown)}; use 'bbox' and 'segm'.")
        if max_dets_per_image < 1:
            raise UserError(
                f"LVISEvaluator: max_dets_per_image is {max_dets_per_image}; give at least 1."
            )
        self._dataset_name = dataset_name
        self._tasks = tuple(tasks) if tasks else None
        self._distributed = distributed
        self._output_dir = Path(output_dir) if output_dir else None
        self._max_dets = max_dets_per_image
        id_to_class = load_metadata(dataset_name).thing_dataset_id_to_contiguous_id
        self._category_ids = sorted(id_to_class, key=id_to_class.get)
        self._ground_truth: _GroundTruth | None = None
        self.reset()

    def reset(self) -> None:
        self._detections: list[dict[str, Any]] = []
        self._unreadable: set[int] = set()
        self._predicts_masks = False

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep a batch's detections.

        Args:
            inputs: dicts with ``image_id``, and ``unreadable`` where the file could not be read:
                such an image is left out of the evaluation.
            outputs: dicts with ``instances``, in the coordinates of the original image:
                ``pred_boxes, scores, pred_classes`` and maybe ``pred_masks`` ((N, H, W), bool).
        """
        for image, output in zip(inputs, outputs, strict=True):
            instances = self._best(output["instances"]).to("cpu")
            self._predicts_masks |= instances.has("pred_masks")
            if image.get("unreadable"):
                self._unreadable.add(image["image_id"])
                continue
            detections = instances_to_coco_json(instances, image["image_id"])
            for detection in detections:
                detection["category_id"] = self._category_id(detection["category_id"])
            self._detections.extend(detections)

    def evaluate(self) -> OrderedDict[str, OrderedDict[str, float]] | None:
        """Figures by task; None on ranks other than 0 of a distributed evaluation.

        Each task has AP, AP50, AP75, AP by area (APs, APm, APl) and by frequency (APr, APc, APf),
        and AR, all and by area, with the number of detections in the key (``AR@300, ARs@300`` ...).
        A figure that no ground truth defines is NaN. Without any detection, all others are 0.
        """
        detections, unreadable, predicts_masks = self._gather()
        if detections is None:
            return None
        if not detections:
            logger.warning("%s: the model detects nothing; every figure is 0", self._dataset_name)
        tasks = self._tasks or (TASKS if predicts_masks else ("bbox",))
        if "segm" in tasks and detections and not predicts_masks:
            raise UserError(
                "LVISEvaluator: the task 'segm' needs masks, and the model predicts none; switch "
                "MODEL.MASK_ON on or evaluate 'bbox' only."
            )
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            _write_results(self._output_dir / RESULTS_FILE, detections)

        if unreadable:
            logger.warning(
                "%s: %d images could not be read and are left out of these figures",
                self._dataset_name,
                len(unreadable),
            )
        # Once, as a rule, and only on the rank that evaluates.
        if self._ground_truth is None or self._ground_truth.without != unreadable:
            content = load_annotation_file(self._dataset_name)
            self._ground_truth = _GroundTruth.of(content, without=unreadable)
        self._check_image_ids(detections)
        results, category_ap = OrderedDict(), {}
        for task in tasks:
            precision, recall = _evaluate(
                self._ground_truth.dataset, detections, task, self._max_dets
            )
            results[task] = _summarize(
                precision, recall, self._ground_truth.categories, self._max_dets
            )
            category_ap[task] = _mean_by_category(precision[..., _AREAS[""]])
            logger.info(
                "%s, %s (per cent):\n%s",
                self._dataset_name,
                task,
                create_small_table(results[task]),
            )
        self._report_categories(category_ap)
        return results

    def _best(self, instances: Instances) -> Instances:
        if len(instances) <= self._max_dets:
            return instances
        order = torch.argsort(instances.scores, descending=True, stable=True)
        return instances[order[: self._max_dets]]

    def _category_id(self, class_index: int) -> int:
        if not 0 <= class_index < len(self._category_ids):
            raise UserError(
                f"The model predicts class {class_index}, but data set '{self._dataset_name}' has "
                f"{len(self._category_ids)} classes; set MODEL.ROI_HEADS.NUM_CLASSES accordingly."
            )
        return self._category_ids[class_index]

    def _gather(self) -> tuple[list[dict[str, Any]] | None, frozenset[int], bool]:
        """Detections, ids of unreadable images, and whether masks were predicted."""
        own = self._detections, self._unreadable, self._predicts_masks
        gathered = [own]
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(own, dst=0)
            if not comm.is_main_process():
                return None, frozenset(), False
        detections, unreadable, predicts_masks = zip(*gathered, strict=True)
        return (
            list(itertools.chain.from_iterable(detections)),
            frozenset().union(*unreadable),
            any(predicts_masks),
        )

    def _check_image_ids(self, detections: list[dict[str, Any]]) -> None:
        unknown = {d["image_id"] for d in detections} - self._ground_truth.image_ids
        if unknown:
            raise UserError(
                f"{self._ground_truth.path}: image {min(unknown)} was evaluated but is not in this "
                "file; evaluate on the data set that the loader reads."
            )

    def _report_categories(self, category_ap: dict[str, np.ndarray]) -> None:
        rows, missing = [], []
        for index, category in enumerate(self._ground_truth.categories):
            values = [ap[index] for ap in category_ap.values()]
            if all(map(math.isnan, values)):
                missing.append(category.name)
                continue
            rows.append((category, self._ground_truth.instance_count[category.id], values))
        if rows:
            logger.info("AP by category:\n%s", _category_table(rows, list(category_ap)))
        if missing:
            logger.info(
                "%s: %d of %d categories have no ground truth and are left out: %s",
                self._dataset_name,
                len(missing),
                len(missing) + len(rows),
                some_of(missing, _NAMES_IN_LOG),
            )
        if self._output_dir is not None:
            _write_categories(self._output_dir / PER_CATEGORY_FILE, rows, list(category_ap))


@dataclass(frozen=True)
class _GroundTruth:
    """What the metrics need of an annotation file, without its annotations as Python objects."""

    path: Path
    dataset: hotcoco.COCO
    image_ids: frozenset[int]
    categories: tuple[Category, ...]
    instance_count: Counter[int]
    without: frozenset[int]

    @classmethod
    def of(cls, content: AnnotationFile, without: frozenset[int] = frozenset()) -> _GroundTruth:
        """Args: the content of a file, and the ids of images that are left out."""
        images = content.images
        if content.exhaustive:
            images = _with_all_absent_negative(content)
        images = [image for image in images if image["id"] not in without]
        if not images:
            raise UserError(
                f"{content.path}: no image could be read, so there is nothing to evaluate; check "
                "the image folder."
            )
        categories = [dataclasses.asdict(category) for category in content.categories]
        annotations = [a for a in content.annotations if a["image_id"] not in without]
        return cls(
            path=content.path,
            dataset=hotcoco.COCO(
                {"images": images, "annotations": annotations, "categories": categories}
            ),
            image_ids=frozenset(image["id"] for image in images),
            categories=content.categories,
            instance_count=Counter(a["category_id"] for a in annotations if not a["iscrowd"]),
            without=without,
        )


def _with_all_absent_negative(content: AnnotationFile) -> list[dict[str, Any]]:
    present = {image["id"]: set() for image in content.images}
    for annotation in content.annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
    category_ids = {category.id for category in content.categories}
    return [
        {**image, "neg_category_ids": sorted(category_ids - present[image["id"]])}
        for image in content.images
    ]


def _evaluate(
    ground_truth: hotcoco.COCO, detections: list[dict[str, Any]], task: str, max_dets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (IoU, recall level, category, area) and recall (IoU, category, area).

    Both are -1 where no ground truth defines them; categories are in the order of their ids.
    ``detections`` hold no more than ``max_dets`` of an image.
    """
    # With a box in it, a detection's area (for APs, APm, APl) would be that of the box.
    key = "bbox" if task == "bbox" else "segmentation"
    fields = ("image_id", "category_id", "score", key)
    # lvis-api passes over what is empty, such as a mask that nowhere reaches the threshold, instead
    # of taking it for a false positive.
    results = [
        {field: detection[field] for field in fields}
        for detection, area in zip(detections, _areas(detections, task), strict=True)
        if area > 0
    ]
    evaluation = hotcoco.LVISEval(
        ground_truth, hotcoco.LVISResults(ground_truth, results, max_dets=max_dets), task
    )
    evaluation.evaluate()
    evaluation.accumulate()  # not summarize(): it prints
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return np.asarray(precision)[..., 0], np.asarray(recall)[..., 0]


def _areas(detections: list[dict[str, Any]], task: str) -> Iterable[float]:
    if task == "segm":
        # One by one: pycocotools overflows on more than 255 at once.
        return (mask_utils.area(detection["segmentation"]) for detection in detections)
    return (detection["bbox"][2] * detection["bbox"][3] for detection in detections)


def _summarize(
    precision: np.ndarray, recall: np.ndarray, categories: Sequence[Category], max_dets: int
) -> OrderedDict[str, float]:
    everywhere = _AREAS[""]
    summary = OrderedDict(
        AP=_percent(precision[..., everywhere]),
        AP50=_percent(precision[_IOU_50, ..., everywhere]),
        AP75=_percent(precision[_IOU_75, ..., everywhere]),
    )
    for label in "sml":
        summary[f"AP{label}"] = _percent(precision[..., _AREAS[label]])
    for frequency in FREQUENCIES:
        group = [i for i, category in enumerate(categories) if category.frequency == frequency]
        summary[f"AP{frequency}"] = _percent(precision[:, :, group, everywhere])
    for label, area in _AREAS.items():
        summary[f"AR{label}@{max_dets}"] = _percent(recall[..., area])
    return summary


def _percent(values: np.ndarray) -> float:
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else float("nan")


def _mean_by_category(precision: np.ndarray) -> np.ndarray:
    """AP in per cent of each category from precision (IoU, recall level, category)."""
    return np.array([_percent(precision[:, :, k]) for k in range(precision.shape[2])])


_CategoryRow = tuple[Category, int, list[float]]


def _category_table(rows: Iterable[_CategoryRow], tasks: Sequence[str]) -> str:
    """A text table, several categories to the line."""
    headers = ("category", "freq", *(f"{task} AP" for task in tasks))
    cells = [(category.name, category.frequency, *values) for category, _, values in rows]
    columns = min(_TABLE_COLUMNS, len(cells))
    lines = itertools.zip_longest(
        *(cells[i::columns] for i in range(columns)), fillvalue=(None,) * len(headers)
    )
    return tabulate(
        [list(itertools.chain.from_iterable(line)) for line in lines],
        headers=headers * columns,
        tablefmt="pipe",
        floatfmt=".2f",
    )


def _write_results(path: Path, detections: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for index, detection in enumerate(detections):
            file.write(("," if index else "") + "\n" + json.dumps(detection))
        file.write("\n]\n")
    logger.info("%d detections written to %s", len(detections), path)


def _write_categories(path: Path, rows: Iterable[_CategoryRow], tasks: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["category_id", "name", "frequency", "train_images", "instances"]
            + [f"{task}_AP" for task in tasks]
        )
        for category, instances, values in rows:
            writer.writerow(
                [category.id, category.name, category.frequency, category.image_count, instances]
                + [f"{value:.4f}" for value in values]
            )
