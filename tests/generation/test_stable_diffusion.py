"""A real diffusers pipeline, tiny and random, loaded as a user's is."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CPU

from gal_d2.errors import UserError
from gal_d2.generation.stable_diffusion import (
    StableDiffusionGenerator,
    load_text_to_image,
    model_label,
)
from gal_d2.pool.cut_out import CutOutSource

OPTIONS = {"size": 32, "steps": 2}


@pytest.fixture(scope="module")
def pipeline(models):
    return load_text_to_image(models("stable_diffusion"), **CPU)


def test_draws_an_image_for_each_request(pipeline, request_for) -> None:
    generator = StableDiffusionGenerator(pipeline, "tiny", batch_size=2, **OPTIONS)
    requests = [request_for(1, index) for index in range(3)]
    images = generator.generate(requests)
    assert [image.request for image in images] == requests
    for image, request in zip(images, requests, strict=True):
        assert image.rgb.shape == (32, 32, 3) and image.rgb.dtype == np.uint8
        assert image.alpha is None and not image.finished and not image.reason
        assert image.source == CutOutSource("diffusers", "tiny", request.prompt, request.seed)
    assert len({image.rgb.tobytes() for image in images}) == 3


@pytest.mark.parametrize("scheduler", ["", "EulerAncestralDiscreteScheduler"])
def test_an_image_depends_on_its_seed_not_on_its_batch(models, request_for, scheduler: str) -> None:
    """The ancestral scheduler draws noise at every step, from each image's own generator."""
    loaded = load_text_to_image(models("stable_diffusion"), scheduler=scheduler, **CPU)
    requests = [request_for(1, index) for index in range(3)]
    together = StableDiffusionGenerator(loaded, "tiny", batch_size=3, **OPTIONS).generate(requests)
    alone = StableDiffusionGenerator(loaded, "tiny", batch_size=1, **OPTIONS)
    for image, request in reversed(list(zip(together, requests, strict=True))):
        (again,) = alone.generate([request])
        # Up to rounding: a matrix product may depend on the number of its rows.
        difference = np.abs(again.rgb.astype(int) - image.rgb.astype(int))
        assert difference.max() <= 1
    repeated = StableDiffusionGenerator(loaded, "tiny", batch_size=3, **OPTIONS).generate(requests)
    for image, again in zip(together, repeated, strict=True):
        np.testing.assert_array_equal(image.rgb, again.rgb)


def test_scheduler_steps_and_guidance_take_effect(models, pipeline, request_for) -> None:
    def draw(loaded, **options) -> bytes:
        generator = StableDiffusionGenerator(loaded, "tiny", **{**OPTIONS, **options})
        return generator.generate([request_for(1, 0)])[0].rgb.tobytes()

    other = load_text_to_image(
        models("stable_diffusion"), scheduler="DPMSolverMultistepScheduler", **CPU
    )
    assert type(other.scheduler).__name__ == "DPMSolverMultistepScheduler"
    drawn = [
        draw(pipeline),
        draw(other),
        draw(pipeline, steps=3),
        draw(pipeline, guidance=1.0),
        draw(pipeline, negative_prompt="blurred"),
    ]
    assert len(set(drawn)) == len(drawn)


def test_flagged_images_are_dropped_unless_the_checker_is_off(models, request_for) -> None:
    checked = load_text_to_image(models("stable_diffusion"), **CPU)
    with torch.no_grad():  # so that everything resembles the concepts
        checked.safety_checker.concept_embeds_weights.fill_(-10.0)
    generator = StableDiffusionGenerator(checked, "tiny", **OPTIONS)
    (image,) = generator.generate([request_for(1, 0)])
    assert image.flagged and image.reason == "flagged" and image.rgb is None

    free = load_text_to_image(models("stable_diffusion"), safety_checker=False, **CPU)
    assert free.safety_checker is None
    generator = StableDiffusionGenerator(free, "tiny", **OPTIONS)
    assert not generator.generate([request_for(1, 0)])[0].flagged


def test_model_without_a_checker_is_named(models, tmp_path: Path, caplog) -> None:
    import tiny_models

    folder = tiny_models.save_stable_diffusion(tmp_path / "bare", safety_checker=False)
    load_text_to_image(str(folder), **CPU)
    assert "bare has no safety checker" in caplog.text
    caplog.clear()
    load_text_to_image(str(folder), safety_checker=False, **CPU)
    assert "safety checker" not in caplog.text


def test_transparent_images_bring_their_alpha(request_for) -> None:
    """What transparent-layer diffusion returns: RGBA pictures."""
    rgba = np.arange(4 * 5 * 4, dtype=np.uint8).reshape(4, 5, 4)

    def pipeline(prompt, **options):
        return SimpleNamespace(images=[Image.fromarray(rgba)] * len(prompt))

    (image,) = StableDiffusionGenerator(pipeline, "layers").generate([request_for(1, 0)])
    np.testing.assert_array_equal(image.rgb, rgba[..., :3])
    np.testing.assert_array_equal(image.alpha, rgba[..., 3])
    assert not image.finished


def test_folder_s_name_and_not_its_path_is_recorded(models) -> None:
    assert model_label(models("stable_diffusion")) == "tiny-stable_diffusion"
    assert model_label("owner/name") == "owner/name"


def test_missing_models_say_what_to_do(models, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"MODEL is 'owner/name'.*hf download owner/name.*folder"):
        load_text_to_image("owner/name", **CPU)
    with pytest.raises(UserError, match="MODEL is './nowhere', which is no folder"):
        load_text_to_image("./nowhere", **CPU)
    with pytest.raises(UserError, match="a folder without model_index.json"):
        load_text_to_image(str(tmp_path), **CPU)
    with pytest.raises(UserError, match="SCHEDULER is 'DDIM'"):
        load_text_to_image(models("stable_diffusion"), scheduler="DDIM", **CPU)


def test_pickled_weights_are_refused(models, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(models("stable_diffusion"), folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="pickled.*cannot be loaded.*safetensors"):
        load_text_to_image(str(folder), **CPU)
