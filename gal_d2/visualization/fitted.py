"""A cut-out drawn on a background, as large as fits."""

from __future__ import annotations

import cv2
import numpy as np


def draw_fitted(canvas: np.ndarray, rgba: np.ndarray, margin: float = 0.0) -> None:
    """Draw a cut-out in the middle of a square, enlarged or shrunk to fill it.

    Args:
        canvas: (S, S, 3) uint8 RGB, changed in place.
        rgba: (H, W, 4) uint8, straight alpha; what is transparent shows the canvas.
        margin: share of the side that stays free all around.
    """
    size = canvas.shape[0]
    factor = size * (1 - 2 * margin) / max(rgba.shape[:2])
    width, height = (max(1, round(side * factor)) for side in rgba.shape[1::-1])
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    alpha = rgba[..., 3:].astype(np.float32) / 255
    # Premultiplied: colours under transparent pixels do not bleed into the edge.
    both = np.concatenate([rgba[..., :3] * alpha, alpha], axis=2).astype(np.float32)
    both = cv2.resize(both, (width, height), interpolation=how)
    color, alpha = both[..., :3], both[..., 3:].clip(0, 1)
    top, left = (size - height) // 2, (size - width) // 2
    window = canvas[top : top + height, left : left + width]
    window[...] = (color + (1 - alpha) * window).clip(0, 255).round()
