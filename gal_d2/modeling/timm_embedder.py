"""Pictures as vectors, by a network of timm that no training here changes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import timm
import torch
import torch.nn.functional as F

from gal_d2.errors import UserError
from gal_d2.modeling.timm_weights import read_timm_weights

_BATCH_SIZE = 32
_SIDE = 0.7  # of the side of the pictures that the network was trained on


class TimmEmbedder:
    """Pooled features of a timm network that classifies, before any training here.

    Args:
        name: a timm model name.
        weights: a local weight file; empty: those that timm downloads.
        device: computes.
        keys: config keys of weights and name, for messages.

    Raises:
        UserError: there is no such network or file, or it is of another network.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        device: torch.device,
        keys: tuple[str, str] = ("MODEL.TIMM.WEIGHTS", "MODEL.TIMM.NAME"),
    ) -> None:
        if not timm.is_model(name):
            raise UserError(
                f"{keys[1]} is '{name}', which is no model of timm: timm.list_models() has the "
                "names."
            )
        overlay = {"state_dict": read_timm_weights(weights, name, keys)} if weights else {}
        try:
            model = timm.create_model(
                name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
            )
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"timm cannot load {keys[1]} '{name}' with its pretrained weights ({reason}): "
                f"download its weight file on a machine with a network, and name it in {keys[0]}."
            ) from error
        self._model = model.to(device).eval()
        self._device = device
        config = timm.data.resolve_data_config(model=model)
        self._side = config["input_size"][-1]
        if not model.pretrained_cfg.get("fixed_input_size"):
            # The object fills the picture, so that less will do, at half the cost.
            self._side = max(round(_SIDE * self._side / 32), 1) * 32
        self._mean, self._std = (
            torch.tensor(config[key]).reshape(3, 1, 1) for key in ("mean", "std")
        )

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors (n, d) float32 of square pictures (S, S, 3) uint8 RGB."""
        size = (self._side, self._side)
        vectors = []
        for start in range(0, len(images), _BATCH_SIZE):
            pixels = torch.stack(
                [
                    torch.from_numpy(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
                    for image in images[start : start + _BATCH_SIZE]
                ]
            )
            normal = (pixels.permute(0, 3, 1, 2) / 255 - self._mean) / self._std
            vectors.append(F.normalize(self._model(normal.to(self._device)), dim=1).cpu())
        return torch.cat(vectors).numpy()
