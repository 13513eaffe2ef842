"""Segmenters: a real one on photographs, and the code around tiny random ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tiny_models import CPU

from gal_d2.errors import UserError
from gal_d2.generation.cutting import clean_mask
from gal_d2.generation.segmenters import (
    ClipSegSegmenter,
    RembgSegmenter,
    SamBackgroundSegmenter,
    corner_points,
)

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def u2netp(repository: Path) -> str:
    path = repository / ".setup" / "u2netp.onnx"
    if not path.is_file():
        pytest.skip("run tools/fetch_u2netp.py (or make setup) first")
    return str(path)


def draw_ellipse(mask: np.ndarray) -> None:
    cv2.ellipse(mask, (160, 165), (90, 70), 20, 0, 360, 255, -1)


def draw_bottle(mask: np.ndarray) -> None:
    cv2.rectangle(mask, (110, 120), (210, 280), 255, -1)
    cv2.rectangle(mask, (140, 50), (180, 120), 255, -1)


@pytest.mark.parametrize(
    ("photograph", "draw"),
    [("chelsea", draw_ellipse), ("coffee", draw_bottle), ("rocket", draw_ellipse)],
)
def test_real_segmenter_on_an_object_of_known_outline(u2netp: str, photograph: str, draw) -> None:
    from skimage import data

    truth = np.zeros((320, 320), np.uint8)
    draw(truth)
    texture = cv2.resize(getattr(data, photograph)(), (320, 320))
    image = np.where(truth[..., None] > 0, texture, np.uint8([225, 228, 230]))
    segmenter = RembgSegmenter.load("u2net_custom", file=u2netp, device=torch.device("cpu"))
    (alpha,) = segmenter.segment([image], [None])
    assert alpha.shape == (320, 320) and alpha.dtype == np.uint8
    mask = clean_mask(alpha)
    iou = (mask & (truth > 0)).sum() / (mask | (truth > 0)).sum()
    assert iou >= 0.9


def test_rembg_leaves_the_environment_as_it_was(u2netp: str, monkeypatch) -> None:
    import os

    monkeypatch.setenv("U2NET_HOME", "/somewhere")
    RembgSegmenter.load("u2net_custom", file=u2netp, device=torch.device("cpu"))
    assert os.environ["U2NET_HOME"] == "/somewhere"


def test_wrong_rembg_models_are_named(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="MODELS has 'u3net': choose from .*isnet-general-use"):
        RembgSegmenter.load("u3net", device=cpu)
    with pytest.raises(UserError, match=r"FILE is 'none\.onnx', which does not exist"):
        RembgSegmenter.load("u2net_custom", file="none.onnx", device=cpu)
    broken = tmp_path / "broken.onnx"
    broken.write_text("no model")
    with pytest.raises(UserError, match="cannot load the model 'u2net_custom'.*whole"):
        RembgSegmenter.load("u2net_custom", file=str(broken), device=cpu)


def test_models_that_send_images_away_are_refused() -> None:
    from rembg.sessions import sessions_class

    remote = [s.name() for s in sessions_class if not getattr(s, "is_local", lambda: True)()]
    for name in remote:
        with pytest.raises(UserError, match=f"has '{name}': choose from rembg's local models"):
            RembgSegmenter.load(name, device=torch.device("cpu"))


def test_clipseg_follows_the_name_and_not_the_batch(models, request_for) -> None:
    requests = [request_for(1, k, name) for k, name in enumerate(["bun", "boot", "bun"])]
    images = [IMAGES[0], IMAGES[0], IMAGES[1]]
    segmenter = ClipSegSegmenter.load(models("clipseg"), batch_size=2, **CPU)
    alphas = segmenter.segment(images, requests)
    for alpha in alphas:
        assert alpha.shape == (40, 48) and alpha.dtype == np.uint8
    assert (alphas[0] != alphas[1]).any()
    single = ClipSegSegmenter.load(models("clipseg"), batch_size=1, **CPU)
    for alpha, again in zip(alphas, single.segment(images, requests), strict=True):
        assert np.abs(alpha.astype(int) - again.astype(int)).max() <= 1


def test_sam_gives_a_mask_of_each_image_s_size(models, request_for) -> None:
    segmenter = SamBackgroundSegmenter.load(models("sam"), batch_size=2, **CPU)
    images = [*IMAGES[:2], RNG.integers(0, 256, (30, 20, 3), dtype=np.uint8)]
    alphas = segmenter.segment(images, [request_for(1, k) for k in range(3)])
    assert [alpha.shape for alpha in alphas] == [(40, 48), (40, 48), (30, 20)]
    assert {*np.unique(np.concatenate([alpha.ravel() for alpha in alphas]))} <= {0, 255}


def test_models_run_in_half_precision(models, request_for) -> None:
    """As on a GPU; there it is float16, which CPUs lack."""
    half = {"device": torch.device("cpu"), "dtype": torch.bfloat16}
    for kind, name in ((SamBackgroundSegmenter, "sam"), (ClipSegSegmenter, "clipseg")):
        (alpha,) = kind.load(models(name), **half).segment(IMAGES[:1], [request_for(1, 0)])
        assert alpha.shape == (40, 48) and alpha.dtype == np.uint8


def test_sam_s_best_background_is_turned_into_the_object(models, request_for) -> None:
    """A model that finds the left half with its second proposal: the right half is the object."""
    points = []

    class LeftHalf:
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, pixel_values, input_points):
            points.append(input_points.tolist())
            masks = torch.full((1, 1, 3, 16, 16), -10.0)
            masks[0, 0, 1, :, :8] = 10.0
            return SimpleNamespace(pred_masks=masks, iou_scores=torch.tensor([[[0.1, 0.9, 0.3]]]))

    segmenter = SamBackgroundSegmenter.load(models("sam"), **CPU)
    segmenter._model = LeftHalf()
    (alpha,) = segmenter.segment([np.zeros((64, 64, 3), np.uint8)], [request_for(1, 0)])
    assert (alpha[:, :30] == 0).all() and (alpha[:, 34:] == 255).all()
    assert points == [[[corner_points(64, 64, 0.02)]]]


def test_corner_points() -> None:
    assert corner_points(100, 50, 0.0) == [[0, 0], [49, 0], [0, 99], [49, 99]]
    assert corner_points(101, 201, 0.1) == [[20, 10], [180, 10], [20, 90], [180, 90]]


@pytest.mark.parametrize(
    ("segmenter", "key"),
    [
        (ClipSegSegmenter, "CLIPSEG.MODEL"),
        (SamBackgroundSegmenter, "SAM.MODEL"),
    ],
)
def test_missing_models_are_named(tmp_path: Path, segmenter, key: str) -> None:
    with pytest.raises(UserError, match=rf"SEGMENTER.{key} is '.*', a folder without config.json"):
        segmenter.load(str(tmp_path), **CPU)
