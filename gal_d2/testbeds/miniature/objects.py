"""Draws the miniature's objects: a small grey picture becomes a coloured cut-out, or a spoilt one.

All functions are pure but for the generator that they draw from.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from gal_d2.pool.cut_out import crop_to_alpha

# Fashion-MNIST's background is exactly 0; the faintest cloth is just above it.
_OCCUPIED = 8
_SUPERSAMPLING = 4
# One slip in a few is as wished; an odd object for which none is gets the last one.
_MAX_SLIPS = 100
_SMALLEST_FRAGMENT = 8.0  # px^2


def draw_object(
    grey: np.ndarray,
    longest_side: float,
    rng: np.random.Generator,
    *,
    max_rotation: float = 15.0,
    aspect_jitter: float = 0.1,
) -> np.ndarray:
    """Enlarge, turn, mask and tint one object.

    Args:
        grey: (h, w) uint8, an object on black with at least one pixel of it.
        longest_side: of the upright object's box after enlargement, in pixels.
        rng: gives flip, rotation, aspect and colour.
        max_rotation: degrees, either way.
        aspect_jitter: the aspect ratio is multiplied by 1 +- this, at most.

    Returns:
        (H, W, 4) uint8 RGBA with a soft edge, a pixel or two larger than the object. Colour goes
        on beneath the edge, so that no dark rim shows where it is blended.

    Raises:
        ValueError: ``grey`` holds no object.
    """
    ys, xs = np.nonzero(grey > _OCCUPIED)
    if not len(ys):
        raise ValueError("there is no object in the image: every pixel is black")
    grey = grey[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    if rng.random() < 0.5:
        grey = grey[:, ::-1]
    occupied = (grey > _OCCUPIED).astype(np.float32)
    transform, size = _placement(grey.shape, longest_side, rng, max_rotation, aspect_jitter)
    pixel = longest_side / max(grey.shape)

    def enlarge(image: np.ndarray, blur: float) -> np.ndarray:
        large = cv2.warpAffine(image, transform, size, flags=cv2.INTER_CUBIC)
        return cv2.GaussianBlur(large, (0, 0), sigmaX=blur * pixel)

    mask = _largest_filled(enlarge(occupied, 0.35) > 0.5)
    alpha = cv2.GaussianBlur(mask * np.float32(255), (0, 0), sigmaX=0.9)
    light = _beyond_edge(enlarge(grey.astype(np.float32), 0.2), mask, rim=pixel)
    light = np.clip(light / max(np.percentile(light[mask > 0], 97), 1.0), 0, 1)
    rgb = (0.25 + 0.75 * light[..., None]) * random_tint(rng)
    return crop_to_alpha(np.dstack([np.clip(rgb, 0, 255), alpha]).round().astype(np.uint8))


def random_tint(rng: np.random.Generator) -> np.ndarray:
    """A random colour, (3,) float32 RGB in [0, 255]: any hue, neither black nor glaring."""
    hue, saturation, value = rng.uniform((0, 0.15, 0.6), (360, 0.85, 1.0))
    hsv = np.array([[[hue, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def add_noise(rgba: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of ``sigma`` grey levels to the colour of a cut-out."""
    noisy = rgba.astype(np.float32)
    noisy[..., :3] += rng.normal(0, sigma, noisy[..., :3].shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def misplace_mask(
    rgba: np.ndarray, background: np.ndarray, rng: np.random.Generator, max_iou: float = 0.45
) -> np.ndarray:
    """Cut an object out of a picture with a mask that has slipped.

    The object lies on ``background``; its mask is shifted by up to half of its size and scaled,
    until it covers part object, part background.

    Args:
        rgba: (h, w, 4) uint8 cut-out.
        background: (H, W, 3) uint8, at least twice as high and wide as the cut-out.
        rng: gives the slip.
        max_iou: of the slipped mask and the true one; at least 0.1.

    Returns:
        (h', w', 4) uint8: what lies beneath the slipped mask.
    """
    height, width = background.shape[:2]
    top, left = (height - rgba.shape[0]) // 2, (width - rgba.shape[1]) // 2
    picture = background.copy()
    paste(picture, rgba, top, left)
    alpha = np.zeros((height, width), np.uint8)
    alpha[top : top + rgba.shape[0], left : left + rgba.shape[1]] = rgba[..., 3]
    mask = alpha >= 128
    centre = np.array([left + rgba.shape[1] / 2, top + rgba.shape[0] / 2])
    for _ in range(_MAX_SLIPS):
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.5)
        shift = distance * np.array([np.cos(angle), np.sin(angle)]) * rgba.shape[1::-1]
        scale = rng.uniform(0.75, 1.3)
        transform = np.hstack([np.eye(2) * scale, (centre + shift - scale * centre)[:, None]])
        slipped = cv2.warpAffine(alpha, transform, (width, height))
        overlap = np.sum(mask & (slipped >= 128)) / np.sum(mask | (slipped >= 128))
        if 0.1 <= overlap <= max_iou:
            break
    return crop_to_alpha(np.dstack([picture, slipped]))


def paste(picture: np.ndarray, rgba: np.ndarray, top: int, left: int) -> None:
    """Alpha-blend a cut-out into ``picture`` (H, W, 3 uint8), in place, cut off at the border."""
    inside, part = _overlap(picture.shape[:2], rgba.shape[:2], top, left)
    colour, alpha = rgba[part][..., :3], rgba[part][..., 3:] / np.float32(255)
    picture[inside] = (alpha * colour + (1 - alpha) * picture[inside]).round().astype(np.uint8)


def place_mask(alpha: np.ndarray, shape: tuple[int, int], top: int, left: int) -> np.ndarray:
    """The mask (``shape``, bool) of a cut-out in a picture: where alpha is at least one half."""
    inside, part = _overlap(shape, alpha.shape, top, left)
    mask = np.zeros(shape, bool)
    mask[inside] = alpha[part] >= 128
    return mask


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask as COCO polygons.

    Coordinates are on pixel edges: pixel (x, y) covers [x, x + 1] x [y, y + 1]. Holes are filled
    (a list of polygons cannot say them), fragments under 8 px are left out.

    Args:
        mask: (H, W) bool.

    Returns:
        [[x0, y0, x1, y1, ...], ...], each of at least 3 points, rounded to 1/100 px.
    """
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return []
    top, left = ys.min(), xs.min()
    tight = mask[top : ys.max() + 1, left : xs.max() + 1].astype(np.uint8)
    # Contours run through pixel centres: on finer pixels these lie close to the coarse ones' edges.
    fine = cv2.resize(
        tight, None, fx=_SUPERSAMPLING, fy=_SUPERSAMPLING, interpolation=cv2.INTER_NEAREST
    )
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        outline = (contour[:, 0].astype(np.float32) + 0.5) / _SUPERSAMPLING
        outline = cv2.approxPolyDP(outline[:, None], 0.4, closed=True)[:, 0]
        if len(outline) >= 3 and cv2.contourArea(outline) >= _SMALLEST_FRAGMENT:
            polygons.append((outline + (left, top)).round(2).ravel().tolist())
    return polygons


def _placement(
    shape: tuple[int, int],
    longest_side: float,
    rng: np.random.Generator,
    max_rotation: float,
    aspect_jitter: float,
) -> tuple[np.ndarray, tuple[int, int]]:
    """The affine map from the small picture to the large one, and the large one's (w, h)."""
    height, width = shape
    scale = longest_side / max(height, width)
    stretch = rng.uniform(1 - aspect_jitter, 1 + aspect_jitter) ** 0.5
    angle = np.deg2rad(rng.uniform(-max_rotation, max_rotation))
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([scale * stretch, scale / stretch])
    corners = linear @ np.array([[0, width, width, 0], [0, 0, height, height]], float)
    margin = 4
    low = corners.min(axis=1) - margin
    size = np.ceil(corners.max(axis=1) + margin - low).astype(int)
    # warpAffine speaks of pixel centres: half a pixel less on both sides.
    shift = linear @ [0.5, 0.5] - low - 0.5
    return np.hstack([linear, shift[:, None]]), (int(size[0]), int(size[1]))


def _beyond_edge(light: np.ndarray, mask: np.ndarray, rim: float) -> np.ndarray:
    """Continue the light of the cloth over its edge; (H, W) float32.

    The outermost ``rim`` pixels of the mask are dark, being half cloth, half black background.
    They are lit as the cloth next to them, unless the cloth is all rim. Gaps further inside, as
    between trouser legs, stay dark.
    """
    width = 2 * math.ceil(rim) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    core = cv2.erode(mask, kernel).astype(np.float32)
    near = cv2.GaussianBlur(light * core, (0, 0), 1.5 * rim)
    near /= np.maximum(cv2.GaussianBlur(core, (0, 0), 1.5 * rim), 1e-4)
    return np.where(core > 0, light, np.maximum(light, near))


def _largest_filled(mask: np.ndarray) -> np.ndarray:
    """The largest connected part, its holes filled; (H, W) uint8 of 0 and 1."""
    closed = cv2.morphologyEx(
        mask.astype(np.uint8), cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    )
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    if contours:
        cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return filled


def _overlap(
    shape: tuple[int, int], part_shape: tuple[int, int], top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a part at (top, left) lies in the whole, and which of its own pixels those are."""
    inside, part = [], []
    for size, part_size, start in zip(shape, part_shape, (top, left), strict=True):
        low, high = min(max(start, 0), size), max(min(start + part_size, size), 0)
        inside.append(slice(low, high))
        part.append(slice(low - start, high - start))
    return tuple(inside), tuple(part)
