"""The evaluator against lvis-api, the federated rules by hand, and its files and messages."""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
from pathlib import Path

import gal_d2  # noqa: F401  (before detectron2; the processes that a test spawns have no conftest)

# isort: split
import lvis
import lvis.eval
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils

from gal_d2.compat import numpy_aliases
from gal_d2.datasets import registration as datasets
from gal_d2.datasets.annotation_json import DatasetNotFoundError
from gal_d2.datasets.registration import register_instances
from gal_d2.errors import UserError
from gal_d2.evaluation.lvis_evaluation import LVISEvaluator

pytestmark = [  # of pycocotools and lvis-api on NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning"),
]

HEIGHT, WIDTH = 144, 192


@pytest.fixture
def register(tmp_path):
    """register(dict) -> name of a data set with that content, forgotten after the test."""
    names = []

    def add(content: dict, **kwargs) -> str:
        name = f"test_lvis_evaluation_{len(names)}"
        json_file = tmp_path / f"{name}.json"
        json_file.write_text(json.dumps(content))
        register_instances(name, json_file, tmp_path, replace=True, **kwargs)
        names.append(name)
        return name

    yield add
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
        datasets._sources.pop(name)


def polygon(box: np.ndarray) -> list[list[float]]:
    """A hexagon in an XYWH box, so that mask and box metrics differ."""
    x, y, w, h = map(float, box)
    corners = [(0.3, 0), (0.8, 0), (1, 0.5), (0.7, 1), (0.2, 1), (0, 0.4)]
    return [[c for u, v in corners for c in (x + u * w, y + v * h)]]


def area_of(segmentation) -> float:
    rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, HEIGHT, WIDTH))
    return float(mask_utils.area(rle))


def category(category_id: int, image_count: int) -> dict:
    frequency = "r" if image_count <= 10 else "c" if image_count <= 100 else "f"
    return {
        "id": category_id,
        "name": f"thing_{category_id}",
        "frequency": frequency,
        "image_count": image_count,
    }


def image(image_id: int, negative=(), not_exhaustive=()) -> dict:
    return {
        "id": image_id,
        "height": HEIGHT,
        "width": WIDTH,
        "file_name": f"{image_id}.png",
        "neg_category_ids": list(negative),
        "not_exhaustive_category_ids": list(not_exhaustive),
    }


def annotation(annotation_id: int, image_id: int, category_id: int, box) -> dict:
    segmentation = polygon(box)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(v) for v in box],
        "segmentation": segmentation,
        "area": area_of(segmentation),
    }


def generated_dataset(rng: np.random.Generator, num_images: int = 40) -> dict:
    """Objects of all LVIS size ranges; categories 3, 7 ... (gaps in the ids), one never used."""
    category_ids = [3, 7, 8, 20, 21, 40, 77, 90]
    counts = [1, 5, 10, 11, 60, 101, 2000, 400]
    images, annotations = [], []
    for image_id in rng.permutation(1000)[:num_images].tolist():
        for _ in range(rng.integers(0, 7)):
            size = rng.choice([12, 20, 40, 60, 160]) * rng.uniform(0.8, 1.0, 2)
            size = np.minimum(size, [WIDTH - 2, HEIGHT - 2])
            corner = rng.uniform(0, [WIDTH, HEIGHT] - size)
            annotations.append(
                annotation(
                    len(annotations) + 1,
                    image_id,
                    int(rng.choice(category_ids[:-1])),
                    np.concatenate([corner, size]),
                )
            )
        present = {a["category_id"] for a in annotations if a["image_id"] == image_id}
        absent = sorted(set(category_ids) - present)
        negative = rng.choice(absent, size=min(2, len(absent)), replace=False).tolist()
        not_exhaustive = [c for c in sorted(present) if rng.random() < 0.25]
        images.append(image(image_id, negative, not_exhaustive))
    categories = [category(c, n) for c, n in zip(category_ids, counts, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def generated_detections(
    rng: np.random.Generator, content: dict, decimals: int, background: int = 5
) -> list[dict]:
    """Jittered copies, duplicates, wrong classes, false positives; scores with ties."""
    category_ids = [c["id"] for c in content["categories"]]
    detections = []

    def add(image_id, category_id, box):
        box = np.array(box, dtype=float)
        box[:2] = np.clip(box[:2], 0, [WIDTH - 5, HEIGHT - 5])
        box[2:] = np.clip(box[2:], 4, [WIDTH, HEIGHT] - box[:2])
        rle = mask_utils.merge(mask_utils.frPyObjects(polygon(box), HEIGHT, WIDTH))
        detections.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": np.float32(box).tolist(),
                "score": float(np.float32(np.round(rng.random(), decimals))),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )

    for ann in content["annotations"]:
        for _ in range(rng.integers(0, 4)):
            jitter = rng.normal(0, 0.12, 4) * np.array(ann["bbox"])[[2, 3, 2, 3]]
            wrong = rng.random() < 0.2
            chosen = int(rng.choice(category_ids)) if wrong else ann["category_id"]
            add(ann["image_id"], chosen, np.array(ann["bbox"]) + jitter)
    for img in content["images"]:
        for _ in range(background):
            box = np.concatenate([rng.uniform(0, 130, 2), rng.uniform(5, 60, 2)])
            add(img["id"], int(rng.choice(category_ids)), box)
    return detections


def outputs_of(content: dict, detections: list[dict], masks: bool = True):
    """(inputs, outputs) of a detectron2 model that predicts ``detections``."""
    class_of = {c: k for k, c in enumerate(sorted(c["id"] for c in content["categories"]))}
    inputs, outputs = [], []
    for img in content["images"]:
        own = [d for d in detections if d["image_id"] == img["id"]]
        boxes = torch.tensor([d["bbox"] for d in own]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([d["score"] for d in own])
        instances.pred_classes = torch.tensor(
            [class_of[d["category_id"]] for d in own], dtype=torch.int64
        )
        if masks:
            decoded = [mask_utils.decode(d["segmentation"]) for d in own]
            instances.pred_masks = torch.from_numpy(
                np.array(decoded, dtype=bool).reshape(-1, HEIGHT, WIDTH)
            )
        inputs.append({"image_id": img["id"]})
        outputs.append({"instances": instances})
    return inputs, outputs


def evaluate(name: str, content: dict, detections: list[dict], masks: bool = True, **kwargs):
    evaluator = LVISEvaluator(name, **kwargs)
    evaluator.reset()
    evaluator.process(*outputs_of(content, detections, masks))
    return evaluator.evaluate()


def lvis_api(json_file, results_file, task: str, max_dets: int = 300) -> dict[str, float]:
    """The reference, on the detections that the evaluator wrote."""
    detections = json.loads(results_file.read_text())
    if task == "segm":
        for detection in detections:
            del detection["bbox"]  # as detectron2 does: sizes are then those of the masks
    ground_truth = lvis.LVIS(str(json_file))
    results = lvis.LVISResults(ground_truth, detections, max_dets=max_dets)
    reference = lvis.LVISEval(ground_truth, results, task)
    reference.params.max_dets = max_dets
    with numpy_aliases(lvis.eval):
        reference.run()
    return {k: 100 * v if v > -1 else math.nan for k, v in reference.get_results().items()}


class TestAgreementWithLvisApi:
    @pytest.mark.parametrize("task", ["bbox", "segm"])
    @pytest.mark.parametrize("seed,decimals", [(0, 6), (1, 1)])  # 1: many tied scores
    def test_thirteen_figures(self, register, tmp_path, task, seed, decimals):
        rng = np.random.default_rng(seed)
        content = generated_dataset(rng)
        name = register(content)
        found = evaluate(
            name, content, generated_detections(rng, content, decimals), output_dir=tmp_path
        )[task]
        expected = lvis_api(
            tmp_path / f"{name}.json", tmp_path / "lvis_instances_results.json", task
        )
        assert list(found) == list(expected)
        assert len(found) == 13
        assert all(0 < value < 100 for value in found.values())
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)

    @pytest.mark.parametrize("max_dets", [2, 400])
    def test_limit_of_detections(self, register, tmp_path, max_dets):
        rng = np.random.default_rng(2)
        content = generated_dataset(rng, num_images=6)
        name = register(content)
        detections = generated_detections(rng, content, 2, background=350)
        found = evaluate(
            name, content, detections, output_dir=tmp_path, max_dets_per_image=max_dets
        )["bbox"]
        saved = json.loads((tmp_path / "lvis_instances_results.json").read_text())
        assert len(saved) == 6 * max_dets or max_dets == 400
        # The reference sees every detection, and limits them itself.
        (tmp_path / "all.json").write_text(json.dumps(detections))
        expected = lvis_api(
            tmp_path / f"{name}.json", tmp_path / "all.json", "bbox", max_dets=max_dets
        )
        assert f"AR@{max_dets}" in found
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)

    @pytest.mark.parametrize("task", ["bbox", "segm"])
    def test_empty_masks_and_boxes(self, register, tmp_path, task):
        """A mask head often predicts nothing above the threshold: that is no false positive."""
        rng = np.random.default_rng(3)
        content = generated_dataset(rng)
        detections = generated_detections(rng, content, 6)
        nothing = mask_utils.encode(np.zeros((HEIGHT, WIDTH), np.uint8, order="F"))
        for chosen in detections[::4]:
            chosen.update(segmentation=nothing, score=0.99)
        for chosen in detections[1::4]:
            chosen["bbox"][2] = 0.0
            chosen["score"] = 0.98
        name = register(content)
        found = evaluate(name, content, detections, output_dir=tmp_path)[task]
        expected = lvis_api(
            tmp_path / f"{name}.json", tmp_path / "lvis_instances_results.json", task
        )
        assert found["AP"] > 0
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)

    def test_group_without_ground_truth_is_nan(self, register, tmp_path):
        content = {
            "images": [image(1)],
            "annotations": [annotation(1, 1, 3, (10, 10, 20, 20))],
            "categories": [category(3, 1000), category(4, 5)],
        }
        name = register(content)
        detection = generated_detections(np.random.default_rng(0), content, 3)
        found = evaluate(name, content, detection, output_dir=tmp_path)["bbox"]
        expected = lvis_api(
            tmp_path / f"{name}.json", tmp_path / "lvis_instances_results.json", "bbox"
        )
        assert math.isnan(found["APr"]) and math.isnan(found["APl"])
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


def detection(image_id: int, category_id: int, box, score: float) -> dict:
    rle = mask_utils.merge(mask_utils.frPyObjects(polygon(box), HEIGHT, WIDTH))
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(box),
        "score": score,
        "segmentation": rle,
    }


BOX, ELSEWHERE = (10, 10, 20, 20), (70, 50, 20, 20)


class TestFederatedRules:
    """One true positive at score 0.5 and one false alarm at 0.9: AP is 50 if it counts."""

    def false_alarm(self, register, img: dict, category_id: int, federated: bool = True) -> float:
        other = image(2)
        if not federated:
            for i in (img, other):
                del i["neg_category_ids"], i["not_exhaustive_category_ids"]
        content = {
            "images": [img, other],
            "annotations": [annotation(1, 1, 3, BOX), annotation(2, 2, 4, BOX)],
            "categories": [category(3, 50), category(4, 5)],
        }
        name = register(content)
        detections = [
            detection(1, 3, BOX, 0.5),
            detection(2, 4, BOX, 0.5),
            detection(1, category_id, ELSEWHERE, 0.9),
        ]
        return evaluate(name, content, detections)["segm"]

    def test_category_of_unknown_presence_does_not_count(self, register):
        assert self.false_alarm(register, image(1), 4)["APr"] == pytest.approx(100)

    def test_negative_category_counts(self, register):
        assert self.false_alarm(register, image(1, negative=[4]), 4)["APr"] == pytest.approx(50)

    def test_category_with_instances_counts(self, register):
        assert self.false_alarm(register, image(1), 3)["APc"] == pytest.approx(50)

    def test_category_not_exhaustively_annotated_does_not_count(self, register):
        figures = self.false_alarm(register, image(1, not_exhaustive=[3]), 3)
        assert figures["APc"] == pytest.approx(100)

    def test_without_federated_fields_absent_categories_count(self, register):
        assert self.false_alarm(register, image(1), 4, federated=False)["APr"] == pytest.approx(50)

    def test_finding_a_member_of_a_crowd_does_not_count(self, register):
        crowd = {**annotation(2, 1, 3, (60, 40, 50, 50)), "iscrowd": 1}
        content = {
            "images": [image(1)],
            "annotations": [annotation(1, 1, 3, BOX), crowd],
            "categories": [category(3, 50)],
        }
        name = register(content)
        detections = [detection(1, 3, BOX, 0.5), detection(1, 3, (75, 60, 10, 10), 0.9)]
        assert evaluate(name, content, detections)["bbox"]["AP"] == pytest.approx(100)

    def test_finding_an_object_without_usable_mask_does_not_count(self, register):
        content = {
            "images": [image(1, negative=[3])],
            "annotations": [
                annotation(1, 1, 3, BOX),
                {**annotation(2, 1, 3, ELSEWHERE), "segmentation": []},
            ],
            "categories": [category(3, 50)],
        }
        name = register(content)
        detections = [detection(1, 3, BOX, 0.5), detection(1, 3, ELSEWHERE, 0.9)]
        assert evaluate(name, content, detections)["bbox"]["AP"] == pytest.approx(100)


@pytest.fixture
def small():
    """Categories 3 (rare) and 9 (frequent) with an object each, 5 (common) without."""
    return {
        "images": [image(1, negative=[5])],
        "annotations": [annotation(1, 1, 3, BOX), annotation(2, 1, 9, ELSEWHERE)],
        "categories": [category(9, 500), category(3, 2), category(5, 50)],
    }


class TestOutput:
    def test_categories_table(self, register, small, tmp_path, caplog):
        name = register(small)
        with caplog.at_level(logging.INFO, "gal_d2"):
            results = evaluate(
                name, small, [detection(1, 3, BOX, 0.5)], output_dir=tmp_path / "deep" / "er"
            )
        assert list(results) == ["bbox", "segm"]
        assert results["bbox"]["AP"] == pytest.approx(50)
        assert math.isnan(results["bbox"]["APc"])
        with (tmp_path / "deep" / "er" / "per_category_ap.csv").open() as file:
            rows = list(csv.reader(file))
        assert rows == [
            ["category_id", "name", "frequency", "train_images", "instances", "bbox_AP", "segm_AP"],
            ["3", "thing_3", "r", "2", "1", "100.0000", "100.0000"],
            ["9", "thing_9", "f", "500", "1", "0.0000", "0.0000"],
        ]
        assert "1 of 3 categories have no ground truth and are left out: thing_5" in caplog.text
        assert "| thing_3    | r      |    100.00 |    100.00 |" in caplog.text

    def test_saved_detections(self, register, small, tmp_path):
        name = register(small)
        evaluate(name, small, [detection(1, 9, BOX, 0.25)], output_dir=tmp_path)
        (saved,) = json.loads((tmp_path / "lvis_instances_results.json").read_text())
        assert saved["image_id"] == 1 and saved["category_id"] == 9
        assert saved["bbox"] == [10, 10, 20, 20] and saved["score"] == 0.25
        assert mask_utils.area(saved["segmentation"]) == area_of(polygon(BOX))

    def test_boxes_only(self, register, small):
        name = register(small)
        results = evaluate(name, small, [detection(1, 3, BOX, 0.5)], masks=False)
        assert list(results) == ["bbox"]

    @pytest.mark.parametrize("tasks,expected", [(None, ["bbox", "segm"]), (["segm"], ["segm"])])
    def test_no_detections_at_all(self, register, small, tasks, expected, tmp_path, caplog):
        name = register(small)
        results = evaluate(name, small, [], tasks=tasks, output_dir=tmp_path)
        assert list(results) == expected
        assert results["segm"]["AP"] == 0 and results["segm"]["AR@300"] == 0
        assert math.isnan(results["segm"]["APc"])
        assert "detects nothing" in caplog.text
        assert json.loads((tmp_path / "lvis_instances_results.json").read_text()) == []

    def test_prints_nothing(self, register, small, capfd):
        evaluate(register(small), small, [detection(1, 3, BOX, 0.5)])
        assert capfd.readouterr().out == ""

    def test_reset_forgets(self, register, small):
        evaluator = LVISEvaluator(register(small))
        evaluator.process(*outputs_of(small, [detection(1, 3, BOX, 0.5)]))
        assert evaluator.evaluate()["bbox"]["APr"] == pytest.approx(100)
        evaluator.reset()
        evaluator.process(*outputs_of(small, []))
        assert evaluator.evaluate()["bbox"]["APr"] == 0

    def test_frequencies_of_the_training_set(self, register, small):
        train = register(small)
        own = copy.deepcopy(small)
        for c in own["categories"]:
            del c["frequency"], c["image_count"]
        detections = [detection(1, 3, BOX, 0.5)]
        by_itself = evaluate(register(own), own, detections)["bbox"]
        assert by_itself["APr"] == pytest.approx(50) and math.isnan(by_itself["APf"])
        by_train = evaluate(register(own, categories_from=train), own, detections)["bbox"]
        assert by_train["APr"] == pytest.approx(100) and by_train["APf"] == 0

    def test_from_inference_on_dataset(self, register, small):
        inputs, outputs = outputs_of(small, [detection(1, 3, BOX, 0.5)])
        answers = {i["image_id"]: o for i, o in zip(inputs, outputs, strict=True)}
        evaluator = LVISEvaluator(register(small))
        results = inference_on_dataset(
            lambda batch: [answers[i["image_id"]] for i in batch],
            [[i] for i in inputs],
            evaluator,
        )
        assert results["segm"]["APr"] == pytest.approx(100)


def _distributed_rank(rank: int, folder: str, content: dict, detections: list[dict]) -> None:
    """One of two processes, which sees every other image."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        register_instances("distributed", f"{folder}/distributed.json", folder)
        inputs, outputs = outputs_of(content, detections)
        evaluator = LVISEvaluator("distributed", output_dir=folder)
        evaluator.process(inputs[rank::2], outputs[rank::2])
        results = evaluator.evaluate()
        assert (results is None) == (rank == 1)
        if rank == 0:
            Path(folder, "results.json").write_text(json.dumps(results))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(register, tmp_path):
    rng = np.random.default_rng(5)
    content = generated_dataset(rng, num_images=10)
    detections = generated_detections(rng, content, 6)
    expected = evaluate(register(content), content, detections)
    (tmp_path / "distributed.json").write_text(json.dumps(content))
    torch.multiprocessing.spawn(
        _distributed_rank, args=(str(tmp_path), content, detections), nprocs=2
    )
    results = json.loads((tmp_path / "results.json").read_text())
    for task in ("bbox", "segm"):
        assert results[task] == pytest.approx(expected[task], abs=1e-9, nan_ok=True)


class TestBadInput:
    def test_unknown_data_set(self):
        with pytest.raises(DatasetNotFoundError, match="There is no data set 'lvis_v1_vall'"):
            LVISEvaluator("lvis_v1_vall")

    def test_unknown_task(self, register, small):
        with pytest.raises(UserError, match=r"tasks are \['keypoints'\]"):
            LVISEvaluator(register(small), tasks=["bbox", "keypoints"])

    def test_limit_below_one(self, register, small):
        with pytest.raises(UserError, match="max_dets_per_image is 0"):
            LVISEvaluator(register(small), max_dets_per_image=0)

    def test_class_that_does_not_exist(self, register, small):
        evaluator = LVISEvaluator(register(small))
        inputs, outputs = outputs_of(small, [detection(1, 3, BOX, 0.5)])
        outputs[0]["instances"].pred_classes += 3
        with pytest.raises(UserError, match=r"predicts class 3, but .* has 3 classes"):
            evaluator.process(inputs, outputs)

    def test_image_of_another_data_set(self, register, small):
        evaluator = LVISEvaluator(register(small))
        _, outputs = outputs_of(small, [detection(1, 3, BOX, 0.5)])
        evaluator.process([{"image_id": 12}], outputs)
        with pytest.raises(UserError, match="image 12 was evaluated but is not in this file"):
            evaluator.evaluate()

    def test_masks_asked_for_but_not_predicted(self, register, small):
        with pytest.raises(UserError, match=r"MODEL\.MASK_ON"):
            evaluate(
                register(small), small, [detection(1, 3, BOX, 0.5)], masks=False, tasks=["segm"]
            )


class TestUnreadableImages:
    """A file that goes bad while a run trains costs its image, not the run."""

    def evaluate(self, register, unreadable: set[int]):
        content = {
            "images": [image(1), image(2)],
            "annotations": [annotation(k, k, 3, (10, 10, 40, 30)) for k in (1, 2)],
            "categories": [category(3, 5)],
        }
        detections = [
            {**content["annotations"][0], "score": 0.9},
            {**content["annotations"][1], "score": 0.9, "bbox": [90.0, 90.0, 30.0, 20.0]},
        ]
        inputs, outputs = outputs_of(content, detections, masks=False)
        for sample in inputs:
            if sample["image_id"] in unreadable:
                sample["unreadable"] = True
        evaluator = LVISEvaluator(register(content))
        evaluator.process(inputs, outputs)
        return evaluator.evaluate()["bbox"]

    def test_are_left_out_with_their_objects(self, register, caplog):
        assert self.evaluate(register, set())["AP"] == pytest.approx(50, abs=2)
        assert self.evaluate(register, {2})["AP"] == pytest.approx(100)
        assert "1 images could not be read and are left out" in caplog.text

    def test_all_of_them_is_one_sentence(self, register):
        with pytest.raises(UserError, match="no image could be read"):
            self.evaluate(register, {1, 2})


def test_an_area_of_zero_is_evaluated(register):
    """Exporters that write area 0 for all (mmpose issue 2248) gave NaN for every figure."""
    content = {
        "images": [image(1)],
        "annotations": [{**annotation(1, 1, 3, (10, 10, 40, 30)), "area": 0}],
        "categories": [category(3, 5)],
    }
    detections = [{**content["annotations"][0], "score": 0.9}]
    found = evaluate(register(content), content, detections, masks=False)["bbox"]
    assert found["AP"] == pytest.approx(100)
