"""Pictures of instances: overlays, and sheets that tile them under captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (255, 255, 255)
INK = (34, 34, 34)
REAL = (52, 120, 246)  # blue
PASTED = (255, 136, 0)  # orange
GOOD = (30, 160, 70)
BAD = (214, 40, 40)


def draw_instances(
    image: np.ndarray,
    masks: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    *,
    scale: float = 1.0,
    alpha: float = 0.25,
) -> np.ndarray:
    """Outline instances on an image and write their labels.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool.
        labels: N texts, "" for none.
        colors: N RGB triples.
        scale: the image is enlarged by this factor first, for thin outlines on small images.
        alpha: opacity of the fill, 0 to 1.

    Returns:
        (scale * H, scale * W, 3) uint8 RGB.
    """
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    anchors = []
    for mask, color in zip(masks, colors, strict=True):
        big = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        inside = big.astype(bool)
        canvas[inside] = (canvas[inside] * (1 - alpha) + np.array(color) * alpha).astype(np.uint8)
        contours, _ = cv2.findContours(big, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, contours, -1, color, 1, cv2.LINE_AA)
        rows, columns = np.nonzero(inside)
        anchors.append((columns.min(), rows.min()) if len(rows) else None)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    for anchor, label, color in zip(anchors, labels, colors, strict=True):
        if anchor is None or not label:
            continue
        left, _, right, bottom = draw.textbbox((0, 0), label, font=font)
        width, height = right - left + 4, bottom + 2
        x = int(np.clip(anchor[0], 0, max(size[0] - width, 0)))
        y = int(np.clip(anchor[1] - height, 0, max(size[1] - height, 0)))
        draw.rectangle((x, y, x + width, y + height), fill=color)
        draw.text((x + 2, y), label, fill=BACKGROUND, font=font)
    return np.asarray(picture)


def tile(
    pictures: Sequence[np.ndarray],
    *,
    columns: int,
    title: str = "",
    captions: Sequence[str] | None = None,
    gap: int = 6,
) -> np.ndarray:
    """Arrange pictures in rows on white, each with an optional caption below.

    Args:
        pictures: (Hi, Wi, 3) uint8 RGB each; cells are as large as the largest.
        columns: pictures per row.
        title: a line above all.
        captions: one text per picture.
        gap: pixels between cells.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if not pictures:
        raise ValueError("there are no pictures to tile")
    columns = min(columns, len(pictures))
    caption_height = 16 if captions else 0
    cell_height = max(p.shape[0] for p in pictures) + caption_height + gap
    cell_width = max(p.shape[1] for p in pictures) + gap
    title_height = 26 if title else 0
    rows = -(-len(pictures) // columns)
    size = columns * cell_width + gap, rows * cell_height + gap + title_height
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, 5), title, fill=INK, font=ImageFont.load_default(14))
    for k, picture in enumerate(pictures):
        x = gap + k % columns * cell_width
        y = gap + title_height + k // columns * cell_height
        sheet.paste(Image.fromarray(picture), (x, y))
        if captions:
            y += picture.shape[0] + 1
            draw.text((x, y), captions[k], fill=INK, font=ImageFont.load_default(12))
    return np.asarray(sheet)


def save_png(picture: np.ndarray, path: str | Path, max_colors: int | None = None) -> Path:
    """Write an RGB picture as PNG, making its folder; with ``max_colors``, as a palette image."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture)
    if max_colors:
        image = image.quantize(max_colors)
    image.save(path, optimize=True)
    return path
