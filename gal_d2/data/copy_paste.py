"""Copy-paste on arrays: how many, how large, where, what stays visible, how it is blended.

Functions of their arguments only; :func:`paste_cutouts` and the blends write into the image that
they are given. All work happens in local windows (:mod:`gal_d2.data.masks`), so a paste costs what
its own pixels cost. The defaults are those of X-Paste and BSGAL (arXiv 2212.03863, 2406.02435).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode

from gal_d2.data.augmentation import Frame
from gal_d2.data.masks import FOREGROUND_ALPHA, Box, LocalMask, tighten
from gal_d2.errors import UserError


@dataclass(frozen=True)
class PasteOptions:
    """The keys of ``GAL.COPY_PASTE`` that say how to paste; ``gal_d2/config.py`` explains each.

    Raises:
        UserError: a value makes no sense.
    """

    min_pastes: int = 0
    max_pastes: int = 19
    blend: str = "basic"
    feather_sigma: float = 1.0
    min_size: float = 10
    max_relative_size: float = 0.5
    aspect_jitter: float = 0.2
    flip_prob: float = 0.5
    min_visible_area: int = 300
    max_box_shift: int = 10

    def __post_init__(self) -> None:
        _require(self.min_pastes >= 0, "MIN_PASTES", self.min_pastes, "at least 0")
        _require(
            self.min_pastes <= self.max_pastes,
            "MAX_PASTES",
            self.max_pastes,
            f"at least MIN_PASTES, {self.min_pastes}",
        )
        _require(self.blend in BLENDS, "BLEND", self.blend, f"one of {', '.join(BLENDS)}")
        _require(self.feather_sigma > 0, "FEATHER_SIGMA", self.feather_sigma, "above 0")
        _require(self.min_size > 0, "MIN_SIZE", self.min_size, "above 0")
        _require(
            0 < self.max_relative_size <= 1,
            "MAX_RELATIVE_SIZE",
            self.max_relative_size,
            "in (0, 1]",
        )
        _require(0 <= self.aspect_jitter < 1, "ASPECT_JITTER", self.aspect_jitter, "in [0, 1)")
        _require(0 <= self.flip_prob <= 1, "FLIP_PROB", self.flip_prob, "in [0, 1]")
        _require(
            self.min_visible_area >= 0, "MIN_VISIBLE_AREA", self.min_visible_area, "at least 0"
        )
        _require(self.max_box_shift >= 0, "MAX_BOX_SHIFT", self.max_box_shift, "at least 0")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PasteOptions:
        """Read the options from a whole config."""
        node = cfg.GAL.COPY_PASTE
        return cls(
            min_pastes=node.MIN_PASTES,
            max_pastes=node.MAX_PASTES,
            blend=node.BLEND,
            feather_sigma=node.FEATHER_SIGMA,
            min_size=node.MIN_SIZE,
            max_relative_size=node.MAX_RELATIVE_SIZE,
            aspect_jitter=node.ASPECT_JITTER,
            flip_prob=node.FLIP_PROB,
            min_visible_area=node.MIN_VISIBLE_AREA,
            max_box_shift=node.MAX_BOX_SHIFT,
        )


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise UserError(f"GAL.COPY_PASTE.{key} is {value}; it must be {expected}.")


@dataclass(frozen=True, eq=False)
class Placement:
    """A cut-out at its final size and place.

    Attributes:
        box: window of the whole cut-out; parts of it may lie outside the image.
        color: uint8 (h, w, 3), of the box's size, in the image's channel order.
        alpha: uint8 (h, w).
        mask: the pixels with alpha of at least one half that are in the image.
    """

    box: Box
    color: np.ndarray
    alpha: np.ndarray
    mask: LocalMask


def pick_number(options: PasteOptions, rng: np.random.Generator) -> int:
    """How many objects to paste: uniform in [min_pastes, max_pastes]."""
    return int(rng.integers(options.min_pastes, options.max_pastes, endpoint=True))


def crop_to_foreground(rgba: np.ndarray) -> np.ndarray | None:
    """The cut-out without its transparent margins (a view); None if no pixel is half opaque.

    Args:
        rgba: uint8 (H, W, 4).
    """
    mask = tighten(0, 0, rgba[..., 3] >= FOREGROUND_ALPHA)
    return None if mask is None else rgba[mask.box.slices]


def draw_size(
    rgba: np.ndarray,
    scale: tuple[float, float],
    frame: Frame,
    options: PasteOptions,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """The size at which a cut-out is pasted.

    sqrt(foreground pixels) is drawn as Normal(mean, std) * sqrt(frame.full_area), clipped to
    [min_size, max_relative_size * sqrt(area of the region)]. Then the aspect ratio is jittered at
    constant area, and a box that is longer than the region (a thin object) is shrunk to fit.

    Args:
        rgba: uint8 (H, W, 4), cropped to its foreground.
        scale: mean and standard deviation of sqrt(relative area) of the class.
        frame: where the scene is in the image.
        options: size limits and aspect jitter.
        rng: source of randomness; two numbers are drawn.

    Returns:
        (height, width) in pixels, each at least 1.

    Example:
        >>> square = np.full((50, 50, 4), 255, np.uint8)
        >>> frame = Frame(region=Box(0, 0, 400, 300), full_area=400 * 300)
        >>> exact = PasteOptions(aspect_jitter=0.0)
        >>> draw_size(square, (0.2, 0.0), frame, exact, np.random.default_rng(0))
        (69, 69)
    """
    region = frame.region
    upper = options.max_relative_size * math.sqrt(region.width * region.height)
    lower = min(options.min_size, upper)
    target = rng.normal(*scale) * math.sqrt(frame.full_area)
    target = min(max(target, lower), upper)
    aspect = rng.uniform(1 - options.aspect_jitter, 1 + options.aspect_jitter)

    foreground = np.count_nonzero(rgba[..., 3] >= FOREGROUND_ALPHA)
    factor = target / math.sqrt(foreground)
    height = rgba.shape[0] * factor / math.sqrt(aspect)
    width = rgba.shape[1] * factor * math.sqrt(aspect)
    shrink = min(1.0, region.height / height, region.width / width)
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def draw_position(size: tuple[int, int], region: Box, rng: np.random.Generator) -> tuple[int, int]:
    """Top left pixel (x0, y0) of a box of ``size`` (height, width), its centre uniform in region.

    The box may reach out of the region by up to half of its size.
    """
    x = rng.uniform(region.x0, region.x1)
    y = rng.uniform(region.y0, region.y1)
    return math.floor(x - size[1] / 2), math.floor(y - size[0] / 2)


def resize_cutout(rgba: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an RGBA image without mixing the colour of transparent pixels into its edges.

    Args:
        rgba: uint8 (H, W, 4), straight (not premultiplied) alpha.
        size: (height, width).

    Returns:
        uint8 (height, width, 4), straight alpha, a new array.
    """
    height, width = size
    # Colour that is weighted by alpha may be averaged; cv2's fast paths do not do that.
    rgba = cv2.bitwise_and(rgba, rgba, mask=cv2.extractChannel(rgba, 3))
    _scale_soft_pixels(rgba, lambda color, alpha: color * alpha / 255)

    # Halving is exact and fast, so bilinear sampling only has to shrink by less than 2.
    halvings = max(0, int(math.log2(min(rgba.shape[0] / height, rgba.shape[1] / width))))
    start = (width << halvings, height << halvings)
    rgba = cv2.resize(rgba, start, interpolation=cv2.INTER_LINEAR)
    for step in range(halvings - 1, -1, -1):
        rgba = cv2.resize(rgba, (width << step, height << step), interpolation=cv2.INTER_AREA)

    _scale_soft_pixels(rgba, lambda color, alpha: color * 255 / alpha)
    return rgba


def _scale_soft_pixels(rgba: np.ndarray, scale: Callable) -> None:
    """Change, in place, the colour of the pixels that are neither opaque nor transparent."""
    found = cv2.findNonZero(cv2.inRange(cv2.extractChannel(rgba, 3), 1, 254))
    if found is None:
        return
    x, y = found[:, 0].T
    pixels = rgba[y, x].astype(np.float32)
    color = scale(pixels[:, :3], pixels[:, 3:])
    pixels[:, :3] = np.minimum(color + 0.5, 255)
    rgba[y, x] = pixels.astype(np.uint8)


def place(
    rgba: np.ndarray, x0: int, y0: int, region: Box, *, bgr: bool = False
) -> Placement | None:
    """Put a cut-out of final size into the image; nothing is drawn yet.

    Args:
        rgba: uint8 (h, w, 4).
        x0, y0: where its top left pixel comes to lie; may be outside the region.
        region: the part of the image to paste into; what is outside is cut off.
        bgr: the image's channels are B, G, R.

    Returns:
        The placement; None if none of its half-opaque pixels is in the region.
    """
    box = Box(x0, y0, x0 + rgba.shape[1], y0 + rgba.shape[0])
    inside = box.intersect(region)
    if inside.is_empty:
        return None
    alpha = cv2.extractChannel(rgba, 3)
    window = alpha[inside.shift(-x0, -y0).slices]
    mask = tighten(inside.x0, inside.y0, window >= FOREGROUND_ALPHA)
    if mask is None:
        return None
    color = cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGR if bgr else cv2.COLOR_RGBA2RGB)
    return Placement(box, color, alpha, mask)


def prepare_paste(
    rgba: np.ndarray,
    scale: tuple[float, float],
    frame: Frame,
    options: PasteOptions,
    rng: np.random.Generator,
    *,
    bgr: bool = False,
) -> Placement | None:
    """Draw size, flip and position of a cut-out and bring it there.

    Five numbers are drawn for a usable cut-out. See :func:`draw_size` and :func:`draw_position`.

    Args:
        rgba: uint8 (H, W, 4), R, G, B and alpha.
        scale: mean and standard deviation of sqrt(relative area) of the class.
        frame: where the scene is in the image.
        options: what the draws depend on.
        rng: source of randomness.
        bgr: the image's channels are B, G, R.

    Returns:
        The placement; None if the cut-out is empty or nothing of it is in the image.
    """
    cropped = crop_to_foreground(rgba)
    if cropped is None:
        return None
    size = draw_size(cropped, scale, frame, options, rng)
    is_flipped = rng.random() < options.flip_prob
    x0, y0 = draw_position(size, frame.region, rng)
    resized = resize_cutout(cropped, size)
    if is_flipped:
        resized = cv2.flip(resized, 1)
    return place(resized, x0, y0, frame.region, bgr=bgr)


def stays(original: LocalMask, visible: LocalMask | None, options: PasteOptions) -> bool:
    """Whether an occluded object is still worth a label.

    It is if more than ``min_visible_area`` pixels of it are visible, or no side of its box moved by
    more than ``max_box_shift`` pixels; never if nothing is visible.
    """
    if visible is None:
        return False
    shift = max(abs(a - b) for a, b in zip(original.box, visible.box, strict=True))
    return shift <= options.max_box_shift or visible.area > options.min_visible_area


def occlude(
    real: Sequence[LocalMask],
    pasted: Sequence[LocalMask],
    shape: tuple[int, int],
    options: PasteOptions,
) -> tuple[list[LocalMask | None], list[LocalMask | None]]:
    """What remains visible when ``pasted`` are laid over ``real``, each over those before it.

    The topmost paste is looked at first. A paste that would not stay is not pasted at all, so it
    hides nothing either, and leaves no unlabelled pixels behind. A real object that does
    not stay only loses its label.

    Args:
        real: masks of the objects in the scene; they do not occlude each other.
        pasted: in the order in which they are pasted.
        shape: (height, width) of the image.
        options: the rule of :func:`stays`.

    Returns:
        The visible masks of ``real`` and of ``pasted``; None for those that go.
    """
    visible_pasted: list[LocalMask | None] = [None] * len(pasted)
    covered = np.zeros(shape, dtype=bool)
    for index in range(len(pasted) - 1, -1, -1):
        mask = pasted[index]
        visible = _visible(mask, covered)
        if stays(mask, visible, options):
            visible_pasted[index] = visible
            covered[mask.box.slices] |= mask.bitmap
    if all(mask is None for mask in visible_pasted):
        return list(real), visible_pasted

    visible_real: list[LocalMask | None] = []
    for mask in real:
        visible = _visible(mask, covered)
        visible_real.append(visible if stays(mask, visible, options) else None)
    return visible_real, visible_pasted


def _visible(mask: LocalMask, covered: np.ndarray) -> LocalMask | None:
    window = covered[mask.box.slices]
    if not window.any():
        return mask
    return tighten(mask.box.x0, mask.box.y0, mask.bitmap & ~window)


def blend_basic(
    image: np.ndarray, placement: Placement, region: Box, options: PasteOptions
) -> None:
    """Copy the pixels of the mask; a hard edge."""
    mask = placement.mask
    source = mask.box.shift(-placement.box.x0, -placement.box.y0)
    window = image[mask.box.slices]
    window[...] = cv2.copyTo(placement.color[source.slices], _as_uint8(mask.bitmap), window)


def blend_feather(
    image: np.ndarray, placement: Placement, region: Box, options: PasteOptions
) -> None:
    """Mix by alpha, smoothed with a Gaussian of ``feather_sigma`` pixels.

    Outside the mask the object's colour is the smoothed one of its edge: what an image holds under
    transparent pixels is arbitrary and must not show.
    """
    margin = math.ceil(3 * options.feather_sigma)
    window = placement.box.grow(margin).intersect(region)
    soft = np.dstack((placement.color, placement.alpha))
    _scale_soft_pixels(soft, lambda color, alpha: color * alpha / 255)
    soft = cv2.bitwise_and(soft, soft, mask=placement.alpha)
    soft = cv2.copyMakeBorder(soft, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    soft = cv2.GaussianBlur(soft, (2 * margin + 1, 2 * margin + 1), options.feather_sigma)
    soft = soft[window.shift(margin - placement.box.x0, margin - placement.box.y0).slices]
    alpha = cv2.extractChannel(soft, 3)

    # Everything opaque is a plain copy; what is left to mix is a narrow band.
    target = image[window.slices]
    inside = np.zeros(alpha.shape, dtype=bool)
    inside[placement.mask.box.shift(-window.x0, -window.y0).slices] = placement.mask.bitmap
    band = cv2.findNonZero(cv2.inRange(alpha, 1, 254))
    mixed = None
    if band is not None:
        x, y = band[:, 0].T
        weight = alpha[y, x, None].astype(np.float32) / 255
        to_cutout = window.shift(-placement.box.x0, -placement.box.y0)
        object_color = soft[y, x, :3].astype(np.float32)
        is_inside = inside[y, x]
        object_color[is_inside] = (
            placement.color[y[is_inside] + to_cutout.y0, x[is_inside] + to_cutout.x0]
            * weight[is_inside]
        )
        mixed = object_color + target[y, x] * (1 - weight) + 0.5
    blend_basic(image, placement, region, options)
    if mixed is not None:
        target[y, x] = np.minimum(mixed, 255).astype(np.uint8)


def blend_poisson(
    image: np.ndarray, placement: Placement, region: Box, options: PasteOptions
) -> None:
    """Keep the object's gradients and take the colour at its edge from the scene (Perez 2003).

    The scene must surround the object: at a border of the region, and for objects of less than
    three pixels, the feathered blend takes over.
    """
    mask = placement.mask
    margin = 2
    window = mask.box.grow(margin)
    if window.intersect(region) != window or min(mask.box.width, mask.box.height) < 3:
        blend_feather(image, placement, region, options)
        return
    source = mask.box.shift(-placement.box.x0, -placement.box.y0)
    border = (margin, margin, margin, margin)
    color = cv2.copyMakeBorder(placement.color[source.slices], *border, cv2.BORDER_REPLICATE)
    bitmap = cv2.copyMakeBorder(_as_uint8(mask.bitmap) * 255, *border, cv2.BORDER_CONSTANT)
    center = (margin + mask.box.width // 2, margin + mask.box.height // 2)
    scene = np.ascontiguousarray(image[window.slices])
    try:
        cloned = cv2.seamlessClone(color, scene, bitmap, center, cv2.NORMAL_CLONE)
    except cv2.error:  # masks whose eroded inside is empty
        blend_feather(image, placement, region, options)
        return
    image[window.slices] = cv2.copyTo(cloned, bitmap, scene)


Blend = Callable[[np.ndarray, Placement, Box, PasteOptions], None]
BLENDS: dict[str, Blend] = {
    "basic": blend_basic,
    "feather": blend_feather,
    "poisson": blend_poisson,
}


def _as_uint8(bitmap: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bitmap).view(np.uint8)


def paste_cutouts(
    image: np.ndarray,
    region: Box,
    real: Sequence[LocalMask],
    placements: Sequence[Placement],
    options: PasteOptions,
) -> tuple[list[LocalMask | None], list[LocalMask | None]]:
    """Paste cut-outs into an image, one over the other, and say what is visible of every object.

    Args:
        image: uint8 (H, W, 3), changed in place.
        region: the part of the image to paste into (not its padding).
        real: masks of the objects that are in the scene.
        placements: the cut-outs, in the order in which they are pasted.
        options: blend and occlusion rule.

    Returns:
        Per real object and per placement the mask of its visible pixels; None where the object is
        dropped (:func:`occlude`). A placement that is dropped is not drawn.

    Example: a red 2 x 2 cut-out covers the right half of an object that is 4 pixels wide.

        >>> image = np.zeros((4, 6, 3), np.uint8)
        >>> canvas = Box(0, 0, 6, 4)
        >>> scene = tighten(0, 1, np.ones((2, 4), bool))
        >>> red = np.full((2, 2, 4), (255, 0, 0, 255), np.uint8)
        >>> placement = place(red, 2, 1, canvas)
        >>> real, pasted = paste_cutouts(image, canvas, [scene], [placement], PasteOptions())
        >>> real[0].box, pasted[0].box
        (Box(x0=0, y0=1, x1=2, y1=3), Box(x0=2, y0=1, x1=4, y1=3))
        >>> image[..., 0]
        array([[  0,   0,   0,   0,   0,   0],
               [  0,   0, 255, 255,   0,   0],
               [  0,   0, 255, 255,   0,   0],
               [  0,   0,   0,   0,   0,   0]], dtype=uint8)
    """
    masks = [placement.mask for placement in placements]
    visible_real, visible_pasted = occlude(real, masks, image.shape[:2], options)
    blend = BLENDS[options.blend]
    for placement, visible in zip(placements, visible_pasted, strict=True):
        if visible is not None:
            blend(image, placement, region, options)
    return visible_real, visible_pasted
