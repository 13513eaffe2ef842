"""Small pictures for HTML pages that need no other file: thumbnails and dots over time."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from gal_d2.copy_paste.resize import crop_to_foreground


def thumbnail(rgba: np.ndarray | None, size: int) -> str:
    """An ``img`` element with a cut-out in it, without its transparent margin.

    Args:
        rgba: (H, W, 4) uint8; None where it cannot be read.
        size: longer side at most, in pixels.
    """
    if rgba is None:
        return "unreadable"
    cropped, foreground = crop_to_foreground(rgba)
    picture = Image.fromarray(np.ascontiguousarray(cropped if foreground else rgba))
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/webp;base64,{encoded}" alt="">'


def dots(
    points: Sequence[tuple[int, float, str, str]],
    *,
    steps: tuple[int, int] | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """An ``svg`` element with a dot for each score: time to the right, score upwards.

    Args:
        points: (step, score, colour, what it was), in order of time; none: no element.
        steps, limits: first and last step, lowest and highest score of the picture; None: those of
            the points.
    """
    if not points:
        return ""
    width, height, margin = 120, 34, 4
    first, last = steps or (points[0][0], points[-1][0])
    low, high = limits or (min(p[1] for p in points), max(p[1] for p in points))
    circles = []
    for step, score, color, what in points:
        x = margin + (width - 2 * margin) * (step - first) / max(last - first, 1)
        level = min(max((score - low) / max(high - low, 1e-9), 0.0), 1.0)
        y = height - margin - (height - 2 * margin) * level
        circles.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}">'
            f"<title>step {step}: {score:+.3f}, {html.escape(what)}</title></circle>"
        )
    return f'<svg width="{width}" height="{height}">{"".join(circles)}</svg>'
