"""Text-to-image models of diffusers as generators."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gal_d2.errors import UserError
from gal_d2.generation.generator import FLAGGED, GeneratedImage, GenerationRequest
from gal_d2.generation.hub import load_pretrained, require_package
from gal_d2.pool.cut_out import CutOutSource

logger = logging.getLogger(__name__)

GENERATOR_NAME = "diffusers"


class StableDiffusionGenerator:
    """Draws with any pipeline that diffusers' ``AutoPipelineForText2Image`` knows.

    That is Stable Diffusion 1.x, 2.x and XL, their Turbo and LCM versions, and others. Every image
    has a random generator of its own on the CPU, so that it depends on its seed and not on
    the batch or the GPU it was drawn on, up to rounding. A pipeline that returns RGBA images
    (transparent-layer diffusion) gives the alpha channel, and no segmenter runs.

    Args:
        pipeline: on its device, in its data type.
        model: the model's name, as the pool records it.
        batch_size: images in a forward pass.
        size: height and width, pixels.
        steps: denoising steps.
        guidance: scale of classifier-free guidance.
        negative_prompt: what not to draw; "" for nothing.
    """

    def __init__(
        self,
        pipeline: Any,
        model: str,
        *,
        batch_size: int = 8,
        size: int = 512,
        steps: int = 50,
        guidance: float = 7.5,
        negative_prompt: str = "",
    ) -> None:
        self.pipeline = pipeline
        self.model = model
        self.batch_size = batch_size
        self._options = {
            "height": size,
            "width": size,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
        }
        self._negative_prompt = negative_prompt

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GeneratedImage]:
        """See :class:`gal_d2.generation.generator.InstanceGenerator`."""
        images: list[GeneratedImage] = []
        for start in range(0, len(requests), self.batch_size):
            images += self._generate_batch(requests[start : start + self.batch_size])
        return images

    def _generate_batch(self, requests: Sequence[GenerationRequest]) -> list[GeneratedImage]:
        options = dict(self._options)
        if self._negative_prompt:
            options["negative_prompt"] = [self._negative_prompt] * len(requests)
        output = self.pipeline(
            prompt=[request.prompt for request in requests],
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            output_type="pil",
            **options,
        )
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        return [
            self._to_image(request, picture, flagged)
            for request, picture, flagged in zip(requests, output.images, flags, strict=True)
        ]

    def _to_image(
        self, request: GenerationRequest, picture: Image.Image, flagged: bool
    ) -> GeneratedImage:
        source = CutOutSource(GENERATOR_NAME, self.model, request.prompt, request.seed)
        if flagged:
            return GeneratedImage(request, None, source, reason=FLAGGED)
        if picture.mode == "RGBA":
            rgba = np.asarray(picture)
            return GeneratedImage(request, rgba[..., :3].copy(), source, rgba[..., 3].copy())
        return GeneratedImage(request, np.asarray(picture.convert("RGB")).copy(), source)


def load_text_to_image(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    variant: str = "",
    scheduler: str = "",
    safety_checker: bool = True,
    compile_denoiser: bool = False,
) -> Any:
    """A diffusers text-to-image pipeline, ready to draw.

    Args:
        model: name on the hub, or a local folder that ``save_pretrained`` wrote. Safetensors only:
            pickled weights can run code.
        device, dtype: of all its parts.
        variant: of the weight files, such as "fp16"; "" for the plain ones.
        scheduler: class name of a diffusers scheduler in place of the model's; "" for that one.
        safety_checker: keep it, where the model has one.
        compile_denoiser: torch.compile the U-Net or transformer; the first batch takes minutes.

    Raises:
        UserError: diffusers or the model is missing, or there is no such scheduler.
    """
    diffusers = require_package("diffusers", "GAL.GENERATOR.NAME stable_diffusion")
    options: dict[str, Any] = {"use_safetensors": True}
    if variant:
        options["variant"] = variant
    # diffusers renames the option in 1.0, and says so until then.
    options["torch_dtype" if int(diffusers.__version__.split(".")[0]) < 1 else "dtype"] = dtype
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch_dtype.*", FutureWarning)
        pipeline = load_pretrained(
            diffusers.AutoPipelineForText2Image,
            model,
            "GAL.GENERATOR.MODEL",
            "model_index.json",
            **options,
        )
    if scheduler:
        pipeline.scheduler = _scheduler_class(diffusers, scheduler).from_config(
            pipeline.scheduler.config
        )
    if getattr(pipeline, "safety_checker", None) is None:
        if safety_checker:
            logger.warning(
                "%s has no safety checker: look at what it draws (GAL.GENERATOR.SAFETY_CHECKER "
                "False silences this)",
                model,
            )
    elif not safety_checker:
        pipeline.safety_checker = None
        pipeline.register_to_config(requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(device)
    name = "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
    denoiser = getattr(pipeline, name)
    # Some pipelines draw pixels, or call their decoder otherwise.
    for part in filter(None, (denoiser, getattr(pipeline, "vae", None))):
        part.to(memory_format=torch.channels_last)
    if compile_denoiser:
        setattr(pipeline, name, torch.compile(denoiser))
    return pipeline


def model_label(model: str) -> str:
    """What the pool records of a model: its name on the hub, or its folder's name.

    Not the folder's path, which differs between machines and would give each its own pool ids.
    """
    return Path(model).resolve().name if Path(model).is_dir() else model


def _scheduler_class(diffusers: Any, name: str) -> Any:
    found = getattr(diffusers, name, None)
    if found is None or not hasattr(found, "from_config") or "Scheduler" not in name:
        raise UserError(
            f"GAL.GENERATOR.SCHEDULER is '{name}': name a scheduler class of diffusers, such as "
            "DPMSolverMultistepScheduler or EulerAncestralDiscreteScheduler."
        )
    return found
