"""Copy-paste on arrays: how many, how large, where, what stays visible, how it is blended.

Functions of their arguments only; :func:`paste_cutouts` and the blends write into the image that
they are given. All work happens in local windows (:mod:`gal_d2.copy_paste.masks`), so a paste costs
what its own pixels cost. The defaults are those of X-Paste (arXiv 2212.03863) and BSGAL
(arXiv 2406.02435).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from detectron2.config import CfgNode

from gal_d2.copy_paste.augmentation import Frame
from gal_d2.copy_paste.masks import FOREGROUND_ALPHA, Box, LocalMask, tighten
from gal_d2.errors import UserError
from gal_d2.pool.usable import foreground_threshold


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
        raise UserError(f"GAL.COPY_PASTE.{key} is {value!r}; it must be {expected}.")


@dataclass(frozen=True, eq=False)
class Placement:
    """A cut-out at its final size and place.

    Attributes:
        box: window of the whole cut-out; parts of it may lie outside the image.
        color: uint8 (h, w, 3), of the box's size, in the image's channel order.
        alpha: uint8 (h, w), the share of foreground in each pixel.
        mask: the pixels with alpha of at least one half that are in the image.
        opacity: uint8 (h, w), how opaque each pixel is, for blends that are soft; None: ``alpha``.
    """

    box: Box
    color: np.ndarray
    alpha: np.ndarray
    mask: LocalMask
    opacity: np.ndarray | None = None


def pick_number(options: PasteOptions, rng: np.random.Generator) -> int:
    """How many objects to paste: uniform in [min_pastes, max_pastes]."""
    return int(rng.integers(options.min_pastes, options.max_pastes, endpoint=True))


def crop_to_foreground(rgba: np.ndarray) -> tuple[np.ndarray, int]:
    """Take off the transparent margins.

    Args:
        rgba: uint8 (H, W, 4).

    Returns:
        A view of ``rgba``, tight around the pixels that belong to the object (those that are at
        least half opaque; see :func:`gal_d2.pool.usable.foreground_threshold`), and their number:
        0 if there are none.
    """
    foreground = _foreground(cv2.extractChannel(rgba, 3))
    x, y, width, height = cv2.boundingRect(foreground)
    return rgba[y : y + height, x : x + width], cv2.countNonZero(foreground)


def _foreground(alpha: np.ndarray, threshold: int | None = None) -> np.ndarray:
    """uint8 (H, W): 255 where a pixel belongs to the object, else 0."""
    if threshold is None:
        threshold = foreground_threshold(alpha)
    return cv2.threshold(alpha, threshold - 1, 255, cv2.THRESH_BINARY)[1]


def draw_size(
    shape: tuple[int, int],
    foreground: int,
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
        shape: (height, width) of the cut-out, cropped to its foreground.
        foreground: how many of its pixels are at least half opaque; above 0.
        scale: mean and standard deviation of sqrt(relative area) of the class.
        frame: where the scene is in the image.
        options: size limits and aspect jitter.
        rng: source of randomness; two numbers are drawn.

    Returns:
        (height, width) in pixels, each at least 1.

    Example:
        >>> frame = Frame(region=Box(0, 0, 400, 300), full_area=400 * 300)
        >>> exact = PasteOptions(aspect_jitter=0.0)
        >>> draw_size((50, 50), 2500, (0.2, 0.0), frame, exact, np.random.default_rng(0))
        (69, 69)
    """
    region = frame.region
    upper = options.max_relative_size * math.sqrt(region.width * region.height)
    lower = min(options.min_size, upper)
    target = rng.normal(*scale) * math.sqrt(frame.full_area)
    target = min(max(target, lower), upper)
    aspect = rng.uniform(1 - options.aspect_jitter, 1 + options.aspect_jitter)

    factor = target / math.sqrt(foreground)
    height = shape[0] * factor / math.sqrt(aspect)
    width = shape[1] * factor * math.sqrt(aspect)
    shrink = min(1.0, region.height / height, region.width / width)
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def draw_position(
    size: tuple[int, int], region: Box, rng: np.random.Generator, *, inside: bool = False
) -> tuple[int, int]:
    """Top left pixel (x0, y0) of a box of ``size`` (height, width), its centre uniform in region.

    The box may reach out of the region by up to half of its size; with ``inside`` it does not (a
    box as large as the region or smaller), and its place is uniform among those.
    """
    if inside:
        room_x, room_y = region.width - size[1], region.height - size[0]
        return (
            region.x0 + int(rng.integers(max(room_x, 0), endpoint=True)),
            region.y0 + int(rng.integers(max(room_y, 0), endpoint=True)),
        )
    x = rng.uniform(region.x0, region.x1)
    y = rng.uniform(region.y0, region.y1)
    return math.floor(x - size[1] / 2), math.floor(y - size[0] / 2)


def resize_cutout(rgba: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resize the foreground of a cut-out; the background does not mix into its edges.

    Pixels of the object count as opaque, the others as transparent: the labels are binary masks
    too, and what an image holds under transparent pixels is arbitrary.

    Args:
        rgba: uint8 (H, W, 4), straight (not premultiplied) alpha.
        size: (height, width).

    Returns:
        Colour, uint8 (height, width, 3), 0 where no foreground is near; and alpha, uint8
        (height, width), the share of foreground in each new pixel.
    """
    foreground = _foreground(cv2.extractChannel(rgba, 3))
    masked = cv2.bitwise_and(rgba, rgba, mask=foreground)
    cv2.insertChannel(foreground, masked, 3)
    return _divide_by_weight(_resize(masked, size))


def resize_opacity(rgba: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The alpha channel of a cut-out as it is, soft, at another size: uint8 (height, width).

    None where it has no pixel between transparent and opaque: then it is what
    :func:`resize_cutout` gives.
    """
    alpha = cv2.extractChannel(rgba, 3)
    if not cv2.countNonZero(cv2.inRange(alpha, 1, 254)):
        return None
    return _resize(alpha, size)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    # Bilinear. Shrinking by 2 and more ends with halvings, which are exact and fast.
    ratio = min(image.shape[0] / height, image.shape[1] / width)
    halvings = max(0, int(math.log2(ratio)))
    image = cv2.resize(image, (width << halvings, height << halvings))
    for step in range(halvings - 1, -1, -1):
        image = cv2.resize(image, (width << step, height << step), interpolation=cv2.INTER_AREA)
    return image


def _divide_by_weight(averaged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour and weight, of an average of colour (0 in the background) and foreground."""
    weight = cv2.extractChannel(averaged, 3)
    color = cv2.cvtColor(averaged, cv2.COLOR_RGBA2RGB)
    return cv2.divide(color, cv2.merge((weight, weight, weight)), scale=255), weight  # 0 / 0 is 0


def place(
    color: np.ndarray,
    alpha: np.ndarray,
    x0: int,
    y0: int,
    region: Box,
    opacity: np.ndarray | None = None,
) -> Placement | None:
    """Put a cut-out of final size into the image; nothing is drawn yet.

    Args:
        color: uint8 (h, w, 3), in the image's channel order.
        alpha: uint8 (h, w).
        x0, y0: where its top left pixel comes to lie; may be outside the region.
        region: the part of the image to paste into; what is outside is cut off.
        opacity: uint8 (h, w), for soft blends; None: ``alpha``.

    Returns:
        The placement; None if none of its half-opaque pixels is in the region.
    """
    box = Box(x0, y0, x0 + alpha.shape[1], y0 + alpha.shape[0])
    inside = box.intersect(region)
    if inside.is_empty:
        return None
    window = alpha[inside.shift(-x0, -y0).slices]
    mask = tighten(inside.x0, inside.y0, window >= FOREGROUND_ALPHA)
    return None if mask is None else Placement(box, color, alpha, mask, opacity)


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
    sized = draw_sized(rgba, scale, frame, options, rng, bgr=bgr)
    if sized is None:
        return None
    color, alpha, opacity = sized
    x0, y0 = draw_position(alpha.shape, frame.region, rng)
    return place(color, alpha, x0, y0, frame.region, opacity)


def draw_sized(
    rgba: np.ndarray,
    scale: tuple[float, float],
    frame: Frame,
    options: PasteOptions,
    rng: np.random.Generator,
    *,
    bgr: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Draw size and flip of a cut-out and bring it there; arguments as for :func:`prepare_paste`.

    Three numbers are drawn for a usable cut-out.

    Returns:
        Colour, uint8 (h, w, 3), alpha, uint8 (h, w), and opacity as for :func:`place`; None if the
        cut-out is empty.
    """
    cropped, foreground = crop_to_foreground(rgba)
    if foreground == 0:
        return None
    size = draw_size(cropped.shape[:2], foreground, scale, frame, options, rng)
    is_flipped = rng.random() < options.flip_prob
    color, alpha = resize_cutout(cropped, size)
    opacity = resize_opacity(cropped, size) if options.blend in _SOFT_BLENDS else None
    if is_flipped:
        color, alpha = cv2.flip(color, 1), cv2.flip(alpha, 1)
        opacity = None if opacity is None else cv2.flip(opacity, 1)
    if bgr:
        color = cv2.cvtColor(color, cv2.COLOR_RGB2BGR)
    return color, alpha, opacity


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
    window = image[mask.box.slices]
    color = placement.color[_inside(placement, mask.box)]
    window[...] = cv2.copyTo(color, _as_uint8(mask.bitmap), window)


def _inside(placement: Placement, window: Box) -> tuple[slice, slice]:
    """Where a window of the image is in the arrays of a cut-out."""
    return window.shift(-placement.box.x0, -placement.box.y0).slices


def blend_feather(
    image: np.ndarray, placement: Placement, region: Box, options: PasteOptions
) -> None:
    """Mix by opacity, smoothed with a Gaussian of ``feather_sigma`` pixels.

    A soft alpha channel stays soft: what is half transparent lets the scene through. Outside the
    mask the object has the mean colour of its pixels nearby.
    """
    margin = math.ceil(3 * options.feather_sigma)
    side = 2 * margin + 1
    # Only what is near the visible part, with a margin of transparent pixels to fade out in.
    used = placement.mask.box.grow(2 * margin).intersect(placement.box)
    window = used.grow(margin)
    border = (margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    alpha = cv2.copyMakeBorder(placement.alpha[_inside(placement, used)], *border)
    opacity = alpha
    if placement.opacity is not None:
        opacity = cv2.copyMakeBorder(placement.opacity[_inside(placement, used)], *border)
    color = cv2.copyMakeBorder(placement.color[_inside(placement, used)], *border)

    foreground = _foreground(alpha, FOREGROUND_ALPHA)
    masked = cv2.merge((color, foreground))
    masked = cv2.bitwise_and(masked, masked, mask=foreground)
    nearby, _ = _divide_by_weight(cv2.blur(masked, (side, side)))
    cv2.copyTo(color, foreground, nearby)
    weight = cv2.GaussianBlur(opacity, (side, side), options.feather_sigma).astype(np.float32)
    weight *= np.float32(1 / 255)

    target_window = window.intersect(region)
    crop = target_window.shift(-window.x0, -window.y0).slices
    target = image[target_window.slices]
    target[...] = cv2.blendLinear(nearby[crop], target, weight[crop], 1 - weight[crop])


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
    border = (margin, margin, margin, margin)
    color = cv2.copyMakeBorder(
        placement.color[_inside(placement, mask.box)], *border, cv2.BORDER_REPLICATE
    )
    bitmap = cv2.copyMakeBorder(_as_uint8(mask.bitmap) * 255, *border, cv2.BORDER_CONSTANT)
    center = (margin + mask.box.width // 2, margin + mask.box.height // 2)
    scene = np.ascontiguousarray(image[window.slices])
    try:
        # It writes into the mask that it is given (opencv/opencv#12053).
        cloned = cv2.seamlessClone(color, scene, bitmap.copy(), center, cv2.NORMAL_CLONE)
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
# Those that use an opacity between 0 and 1.
_SOFT_BLENDS = frozenset({"feather", "poisson"})


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
        >>> red, opaque = np.full((2, 2, 3), (255, 0, 0), np.uint8), np.full((2, 2), 255, np.uint8)
        >>> placement = place(red, opaque, 2, 1, canvas)
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
