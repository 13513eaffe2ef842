"""CLIP and vision-language filters."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image
from tiny_models import CPU

from gal_d2.errors import UserError
from gal_d2.generation.clip import ClipScorer
from gal_d2.generation.cutting import on_white
from gal_d2.generation.filters import Candidate
from gal_d2.generation.generator import GeneratedImage
from gal_d2.generation.model_filters import (
    ClipImageFilter,
    ClipTextFilter,
    RealCrops,
    VisionLanguageFilter,
    class_relative_minimum,
)
from gal_d2.pool.cut_out import CutOutSource

QUESTION = "is this one whole {name}{definition} and nothing else"


def candidate(request, seed: int, size: tuple[int, int] = (20, 30)) -> Candidate:
    rgba = np.random.default_rng(seed).integers(0, 256, (*size, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    image = GeneratedImage(request, rgba[..., :3], CutOutSource("test"))
    return Candidate(image, np.ones(size, bool), rgba)


@pytest.fixture(scope="module")
def clip(models) -> ClipScorer:
    return ClipScorer.load(models("clip"), batch_size=2, **CPU)


def test_similarity_is_what_transformers_itself_computes(models, clip: ClipScorer) -> None:
    from transformers import CLIPModel, CLIPProcessor

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(3)]
    texts = ["a bun", "a photo of a single boot", "x " * 100]  # the last one is cut off
    model, processor = (kind.from_pretrained(models("clip")) for kind in (CLIPModel, CLIPProcessor))
    inputs = processor(
        text=texts, images=images, return_tensors="pt", padding=True, truncation=True
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image / model.logit_scale.exp()
    cosines = clip.text_similarity(images, texts)
    np.testing.assert_allclose(cosines, logits.diagonal().numpy(), atol=1e-5)
    assert clip.embed_images([]).shape == clip.embed_texts([]).shape == (0, 16)
    np.testing.assert_allclose(np.linalg.norm(clip.embed_texts(texts), axis=1), 1, atol=1e-5)


class Cosines:
    """A similarity with given results."""

    def __init__(self, *values: float) -> None:
        self.values = np.array(values, np.float32)
        self.texts: list[str] = []

    def text_similarity(self, images, texts) -> np.ndarray:
        self.texts = list(texts)
        return self.values


@pytest.mark.parametrize(
    ("cosines", "passed"),
    [
        ([0.2, 0.21, 0.3], [False, True, True]),
        # The best is below the minimum: who is within the tolerance of it passes.
        ([0.15, 0.165, 0.17], [False, True, True]),
        # All are so poor that being close to the best means nothing.
        ([0.06, 0.06, 0.061], [False, False, False]),
        # The best is above it, but by less than the tolerance.
        ([0.203, 0.206, 0.215], [False, True, True]),
        # Too few to know what is good for this name.
        ([0.2, 0.21], [False, True]),
        ([0.15], [False]),
    ],
)
def test_text_filter_is_relative_to_the_class(request_for, cosines, passed) -> None:
    similarity = Cosines(*cosines)
    group = [candidate(request_for(1, k), k) for k in range(len(cosines))]
    verdicts = ClipTextFilter(similarity, 0.21 - 1e-6, 0.01, min_group=3).check(group)
    assert [verdict.passed for verdict in verdicts] == passed
    assert [verdict.score for verdict in verdicts] == pytest.approx(cosines)
    assert similarity.texts == ["a photo of a single bun"] * len(cosines)


def test_class_relative_minimum() -> None:
    assert class_relative_minimum(np.array([0.1, 0.3]), 0.21, 0.01) == 0.21
    assert class_relative_minimum(np.array([0.1, 0.19]), 0.21, 0.01) == 0.18
    assert class_relative_minimum(np.array([0.1, 0.12]), 0.2, 0.01) == pytest.approx(0.15)
    assert class_relative_minimum(np.array([-0.5, -0.4]), -0.2, 0.01) == pytest.approx(-0.25)


class Reference:
    def __init__(self, pictures: dict[int, list[np.ndarray]]) -> None:
        self.given = pictures
        self.asked: list[int] = []

    def pictures(self, category_id: int) -> list[np.ndarray]:
        self.asked.append(category_id)
        return self.given.get(category_id, [])


def test_image_filter_is_the_mean_cosine_with_real_objects(clip: ClipScorer, request_for) -> None:
    group = [candidate(request_for(1, k), k) for k in range(3)]
    real = [on_white(candidate(request_for(1, k), 10 + k).rgba) for k in range(2)]
    reference = Reference({1: real})
    image_filter = ClipImageFilter(clip, reference, minimum=-1)
    cosines = clip.embed_images([on_white(c.rgba) for c in group]) @ clip.embed_images(real).T
    scores = [verdict.score for verdict in image_filter.check(group)]
    np.testing.assert_allclose(scores, cosines.mean(axis=1), rtol=1e-5)
    image_filter.minimum = sorted(scores)[1]
    passed = [verdict.passed for verdict in image_filter.check(group)]
    assert passed == [score >= image_filter.minimum for score in scores]
    assert sum(passed) == 2
    assert reference.asked == [1]  # embedded once


def test_category_without_real_objects_passes(clip: ClipScorer, request_for) -> None:
    image_filter = ClipImageFilter(clip, Reference({}), minimum=2)
    ((score, passed),) = image_filter.check([candidate(request_for(1, 0), 0)])
    assert passed and math.isnan(score)


def test_real_crops_are_the_largest_objects(tmp_path: Path) -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[:20], image[20:40], image[40:] = 50, 100, 150
    Image.fromarray(image).save(tmp_path / "a.png")

    def box(class_index: int, x: int, y: int, width: int, height: int) -> dict:
        x1, y1 = x + width, y + height
        return {
            "bbox": [x, y, width, height],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": class_index,
            "segmentation": [[x, y, x1, y, x1, y1, x, y1]],
            "iscrowd": 0,
        }

    record = {"file_name": str(tmp_path / "a.png"), "height": 60, "width": 60}
    first = [box(1, 0, 0, 12, 12), box(1, 0, 20, 16, 16), box(0, 0, 0, 14, 14)]
    records = [
        {**record, "annotations": first},
        {**record, "annotations": [box(1, 0, 40, 14, 14), box(1, 0, 0, 3, 3)]},
    ]
    crops = RealCrops(records, [7, 9, 11], count=2)
    assert [picture[10, 10, 0] for picture in crops.pictures(9)] == [100, 150]
    assert [picture.shape for picture in crops.pictures(7)] == [(16, 16, 3)]
    assert crops.pictures(11) == []


def test_a_crowd_takes_no_place_of_a_real_object(tmp_path: Path) -> None:
    """Crowds are the largest boxes of a category, and cannot be shown as one object."""
    image = np.zeros((60, 60, 3), np.uint8)
    image[:20], image[20:] = 50, 100
    Image.fromarray(image).save(tmp_path / "a.png")

    def square(y: int, side: int, **more: object) -> dict:
        polygon = [0, y, side, y, side, y + side, 0, y + side]
        return {
            "bbox": [0, y, side, side],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": [polygon],
            **more,
        }

    annotations = [
        square(0, 50, iscrowd=1),
        square(0, 40, segmentation=[]),  # boxes alone cannot be cut out either
        square(0, 14, iscrowd=0),
        square(0, 8),  # too small to show anything
        square(25, 12, iscrowd=0),
    ]
    record = {"file_name": str(tmp_path / "a.png"), "annotations": annotations}
    crops = RealCrops([record], [7], count=2)
    assert [picture[10, 10, 0] for picture in crops.pictures(7)] == [50, 100]


def test_unreadable_training_images_are_left_out(tmp_path: Path, caplog) -> None:
    annotation = {
        "bbox": [0, 0, 12, 12],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[0, 0, 12, 0, 12, 12, 0, 12]],
    }
    record = {"file_name": str(tmp_path / "none.png"), "annotations": [annotation]}
    assert RealCrops([record], [7]).pictures(7) == []
    assert "none.png does not exist" in caplog.text


@pytest.fixture(scope="module")
def vlm(models) -> VisionLanguageFilter:
    return VisionLanguageFilter.load(
        models("vision_language"), question=QUESTION, batch_size=3, **CPU
    )


def test_probability_of_yes_is_read_from_the_next_token(models, vlm, request_for) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    one = candidate(request_for(1, 0, "bun"), 0)
    model = AutoModelForImageTextToText.from_pretrained(models("vision_language")).eval()
    processor = AutoProcessor.from_pretrained(models("vision_language"))
    inputs = processor(
        images=[Image.fromarray(on_white(one.rgba))],
        text=["USER : <image> is this one whole bun, small bread and nothing else ASSISTANT :"],
        return_tensors="pt",
    )
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, -1].softmax(dim=0)
    ids = processor.tokenizer.get_vocab()
    yes, no = (sum(probabilities[ids[word]] for word in words)
               for words in (("yes", "Yes"), ("no", "No")))  # fmt: skip
    ((score, passed),) = vlm.check([one])
    assert score == pytest.approx(float(yes / (yes + no)), abs=1e-5)
    assert passed == (score >= 0.5)


def test_answer_does_not_depend_on_the_batch(vlm, request_for) -> None:
    """Questions of different length are padded; the answers must not notice."""
    names = ["bun", "boot and boot and boot", "bun and a boot"]
    group = [candidate(request_for(1, k, name), k) for k, name in enumerate(names)]
    together = [verdict.score for verdict in vlm.check(group)]
    alone = [vlm.check([one])[0].score for one in group]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len(set(np.round(together, 6))) == 3


def test_models_run_in_half_precision(models, vlm, clip: ClipScorer, request_for) -> None:
    half = {"device": torch.device("cpu"), "dtype": torch.bfloat16}
    group = [candidate(request_for(1, k), k) for k in range(2)]
    halved = VisionLanguageFilter.load(models("vision_language"), question=QUESTION, **half)
    for verdict, exact in zip(halved.check(group), vlm.check(group), strict=True):
        assert verdict.score == pytest.approx(exact.score, abs=0.02)
    pictures = [on_white(one.rgba) for one in group]
    texts = ["a bun", "a boot"]
    np.testing.assert_allclose(
        ClipScorer.load(models("clip"), **half).text_similarity(pictures, texts),
        clip.text_similarity(pictures, texts),
        atol=0.03,
    )


def test_minimum_decides(vlm, request_for, monkeypatch) -> None:
    one = candidate(request_for(1, 0), 0)
    score = vlm.check([one])[0].score
    monkeypatch.setattr(vlm, "minimum", score)
    assert vlm.check([one])[0].passed
    monkeypatch.setattr(vlm, "minimum", score + 1e-6)
    assert not vlm.check([one])[0].passed


def test_model_without_chat_template_is_refused(models) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(models("vision_language"))
    processor = AutoProcessor.from_pretrained(models("vision_language"))
    processor.chat_template = None
    with pytest.raises(UserError, match="VLM.MODEL has no chat template"):
        VisionLanguageFilter(model, processor, question=QUESTION)


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"FILTER\.CLIP\.MODEL is '.*', a folder without"):
        ClipScorer.load(str(tmp_path), **CPU)
    with pytest.raises(UserError, match=r"FILTER\.VLM\.MODEL is '.*', a folder without"):
        VisionLanguageFilter.load(str(tmp_path), question=QUESTION, **CPU)
