"""CLIP as a judge of cut-outs: how well they fit a text, and how much they look like others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gal_d2.generation.hub import load_transformer


class ClipScorer:
    """Embeds pictures and texts with a CLIP model of transformers.

    Args:
        model: a ``CLIPModel`` on its device.
        processor: its ``CLIPProcessor``.
        batch_size: pictures or texts in a forward pass.
    """

    def __init__(self, model: Any, processor: Any, *, batch_size: int = 8) -> None:
        self._model = model.eval()
        self._processor = processor
        self._batch_size = batch_size
        self._texts: dict[str, np.ndarray] = {}

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int = 8,
        key: str = "GAL.GENERATOR.FILTER.CLIP.MODEL",
    ) -> ClipScorer:
        """Load a model that ``key`` of the config names.

        Raises:
            UserError: transformers or the model is missing.
        """
        loaded = load_transformer(
            "CLIPModel", "CLIPProcessor", model, key, device=device, dtype=dtype
        )
        return cls(*loaded, batch_size=batch_size)

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors (n, d) float32 of pictures (H, W, 3) uint8 RGB."""
        parts = []
        for start in range(0, len(images), self._batch_size):
            batch = list(images[start : start + self._batch_size])
            inputs = self._processor(images=batch, return_tensors="pt")
            pixels = inputs["pixel_values"].to(self._model.device, self._model.dtype)
            vision = self._model.vision_model(pixel_values=pixels)
            parts.append(self._model.visual_projection(vision.pooler_output))
        return _unit(parts, self._model.config.projection_dim)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, d) float32 of texts; what exceeds CLIP's 77 tokens is cut off."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        for start in range(0, len(new), self._batch_size):
            batch = new[start : start + self._batch_size]
            inputs = self._processor(
                text=batch, return_tensors="pt", padding="max_length", truncation=True
            ).to(self._model.device)
            encoded = self._model.text_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
            projected = self._model.text_projection(encoded.pooler_output)
            unit = _unit([projected], self._model.config.projection_dim)
            self._texts.update(zip(batch, unit, strict=True))
        if not texts:
            return np.zeros((0, self._model.config.projection_dim), np.float32)
        return np.stack([self._texts[text] for text in texts])

    def text_similarity(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """(n,) float32 cosines of pictures and texts, pair by pair."""
        return np.sum(self.embed_images(images) * self.embed_texts(texts), axis=1)


def _unit(parts: list[torch.Tensor], dim: int) -> np.ndarray:
    if not parts:
        return np.zeros((0, dim), np.float32)
    vectors = torch.cat(parts).float()
    return (vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)).cpu().numpy()
