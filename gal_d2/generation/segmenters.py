"""Models that find the object in a generated image: rembg's, CLIPSeg, SAM."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from gal_d2.errors import UserError
from gal_d2.generation.generator import GenerationRequest
from gal_d2.generation.hub import load_transformer, require_package


class RembgSegmenter:
    """A salient-object model of rembg (U2-Net, IS-Net, BiRefNet ...), run by ONNX Runtime.

    Args:
        session: a rembg session.
        name: of the model.
    """

    is_matting = True

    def __init__(self, session: Any, name: str) -> None:
        self.name = name
        self._session = session

    @classmethod
    def load(cls, model: str, *, file: str = "", device: torch.device) -> RembgSegmenter:
        """Load one of ``GAL.GENERATOR.SEGMENTER.REMBG.MODELS``.

        Args:
            model: what rembg calls it. Models that send the image to a remote service are refused.
            file: an ONNX file to use in place of a download, for "u2net_custom" and other models
                that rembg calls custom.
            device: the CPU, or a GPU if ONNX Runtime can use it.

        Raises:
            UserError: rembg is missing, has no such model, or cannot load it.
        """
        key = "GAL.GENERATOR.SEGMENTER.REMBG"
        rembg = require_package("rembg", key)
        from rembg.sessions import sessions_class

        local = [s.name() for s in sessions_class if getattr(s, "is_local", lambda: True)()]
        if model not in local:
            raise UserError(
                f"{key}.MODELS has '{model}': choose from rembg's local models, {', '.join(local)}."
            )
        options: dict[str, Any] = {}
        if device.type == "cpu":
            options["providers"] = ["CPUExecutionProvider"]
        if file:
            if not Path(file).is_file():
                raise UserError(f"{key}.FILE is '{file}', which does not exist; correct the path.")
            options["model_path"] = str(Path(file).absolute())
        try:
            with _models_allowed_in(Path(file).absolute().parent if file else None):
                return cls(rembg.new_session(model, **options), model)
        except Exception as error:  # download clients and ONNX Runtime raise what they like
            reason = " ".join(str(error).split())[:300]
            remedy = (
                "see whether the file is whole and of this kind"
                if file
                else "it is downloaded on first use, so fetch it on a machine with a network and "
                "copy the folder ~/.rembg (or set REMBG.FILE and a custom model)"
            )
            raise UserError(f"rembg cannot load the model '{model}' ({reason}): {remedy}.") from (
                error
            )

    def segment(
        self, images: Sequence[np.ndarray], requests: Sequence[GenerationRequest]
    ) -> list[np.ndarray]:
        """See :class:`.instance_cutter.Segmenter`; the requests are not looked at."""
        return [
            np.asarray(self._session.predict(Image.fromarray(image))[0].convert("L"))
            for image in images
        ]


@contextmanager
def _models_allowed_in(folder: Path | None) -> Iterator[None]:
    """rembg takes custom models only from its own folder, which U2NET_HOME names."""
    before = os.environ.get("U2NET_HOME")
    if folder is not None:
        os.environ["U2NET_HOME"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            if before is None:
                del os.environ["U2NET_HOME"]
            else:
                os.environ["U2NET_HOME"] = before


class ClipSegSegmenter:
    """CLIPSeg: finds what the category's name describes.

    Args:
        model: a ``CLIPSegForImageSegmentation`` on its device.
        processor: its ``CLIPSegProcessor``.
        batch_size: images in a forward pass.
    """

    name = "clipseg"
    is_matting = False

    def __init__(self, model: Any, processor: Any, *, batch_size: int = 8) -> None:
        self._model = model.eval()
        self._processor = processor
        self._batch_size = batch_size

    @classmethod
    def load(
        cls, model: str, *, device: torch.device, dtype: torch.dtype, batch_size: int = 8
    ) -> ClipSegSegmenter:
        """Load ``GAL.GENERATOR.SEGMENTER.CLIPSEG.MODEL``.

        Raises:
            UserError: transformers or the model is missing.
        """
        key = "GAL.GENERATOR.SEGMENTER.CLIPSEG.MODEL"
        loaded = load_transformer(
            "CLIPSegForImageSegmentation",
            "CLIPSegProcessor",
            model,
            key,
            device=device,
            dtype=dtype,
        )
        return cls(*loaded, batch_size=batch_size)

    @torch.no_grad()
    def segment(
        self, images: Sequence[np.ndarray], requests: Sequence[GenerationRequest]
    ) -> list[np.ndarray]:
        """See :class:`gal_d2.generation.instance_cutter.Segmenter`."""
        alphas: list[np.ndarray] = []
        for start in range(0, len(images), self._batch_size):
            batch = list(images[start : start + self._batch_size])
            names = [request.name for request in requests[start : start + self._batch_size]]
            inputs = self._processor(
                text=names, images=batch, return_tensors="pt", padding="max_length", truncation=True
            ).to(self._model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            logits = self._model(**inputs).logits.float()
            # One image comes without its batch dimension.
            probabilities = logits.sigmoid().reshape(len(batch), *logits.shape[-2:]).cpu().numpy()
            for image, probability in zip(batch, probabilities, strict=True):
                size = image.shape[1], image.shape[0]
                resized = cv2.resize(probability, size, interpolation=cv2.INTER_LINEAR)
                alphas.append(np.round(255 * resized.clip(0, 1)).astype(np.uint8))
        return alphas


class SamBackgroundSegmenter:
    """SAM, asked for the background: points in the image's corners; the object is the rest.

    After DiverGen (Fan et al. 2024): generated objects stand in the middle, so the corners are
    background far more surely than any point is object.

    Args:
        model: a ``SamModel`` on its device.
        processor: its ``SamProcessor``.
        margin: distance of the points from the corners, as a share of each side.
        batch_size: images in a forward pass.
    """

    name = "sam"
    is_matting = False

    def __init__(
        self, model: Any, processor: Any, *, margin: float = 0.02, batch_size: int = 8
    ) -> None:
        self._model = model.eval()
        self._processor = processor
        self._margin = margin
        self._batch_size = batch_size

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        margin: float = 0.02,
        batch_size: int = 8,
    ) -> SamBackgroundSegmenter:
        """Load ``GAL.GENERATOR.SEGMENTER.SAM.MODEL``.

        Raises:
            UserError: transformers or the model is missing.
        """
        key = "GAL.GENERATOR.SEGMENTER.SAM.MODEL"
        loaded = load_transformer(
            "SamModel", "SamProcessor", model, key, device=device, dtype=dtype
        )
        return cls(*loaded, margin=margin, batch_size=batch_size)

    @torch.no_grad()
    def segment(
        self, images: Sequence[np.ndarray], requests: Sequence[GenerationRequest]
    ) -> list[np.ndarray]:
        """See :class:`.instance_cutter.Segmenter`; the requests are not looked at."""
        alphas: list[np.ndarray] = []
        for start in range(0, len(images), self._batch_size):
            batch = list(images[start : start + self._batch_size])
            points = [[corner_points(*image.shape[:2], self._margin)] for image in batch]
            inputs = self._processor(batch, input_points=points, return_tensors="pt")
            outputs = self._model(
                pixel_values=inputs["pixel_values"].to(self._model.device, self._model.dtype),
                # In single precision: half of it cannot tell pixels of a large image apart.
                input_points=inputs["input_points"].to(self._model.device, torch.float32),
            )
            masks = self._processor.image_processor.post_process_masks(
                outputs.pred_masks.float().cpu(),
                inputs["original_sizes"],
                inputs["reshaped_input_sizes"],
            )
            # Of SAM's three proposals the one that it trusts most; one set of points per image.
            best = outputs.iou_scores[:, 0].argmax(dim=1).tolist()
            for mask, proposal in zip(masks, best, strict=True):
                background = mask[0, proposal].numpy().astype(bool)
                alphas.append(np.where(background, 0, 255).astype(np.uint8))
        return alphas


def corner_points(height: int, width: int, margin: float) -> list[list[float]]:
    """Four points (x, y), pixels, near the corners of an image.

    Example:
        >>> corner_points(101, 201, 0.1)
        [[20.0, 10.0], [180.0, 10.0], [20.0, 90.0], [180.0, 90.0]]
    """
    left, top = round(margin * (width - 1)), round(margin * (height - 1))
    right, bottom = width - 1 - left, height - 1 - top
    return [[float(x), float(y)] for y in (top, bottom) for x in (left, right)]
