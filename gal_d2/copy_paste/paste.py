"""Copy-paste on arrays: how many objects, and the whole of one image.

The steps have a module each: ``scale`` (how large a cut-out is), ``place`` (where it lies),
``occlude`` (what stays visible) and ``blend`` (how it is drawn). They are functions of their
arguments only; :func:`paste_cutouts` and the blends write into the image that they are given. All
work happens in local windows (:mod:`gal_d2.copy_paste.masks`), so a paste costs what its own pixels
cost. The defaults are those of X-Paste (arXiv 2212.03863) and BSGAL (arXiv 2406.02435).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gal_d2.copy_paste.blend import BLEND_FUNCTIONS
from gal_d2.copy_paste.masks import Box, LocalMask
from gal_d2.copy_paste.occlude import occlude
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.place import Placement


def pick_number(options: PasteOptions, rng: np.random.Generator) -> int:
    """How many objects to paste: uniform in [min_pastes, max_pastes]."""
    return int(rng.integers(options.min_pastes, options.max_pastes, endpoint=True))


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

        >>> from gal_d2.copy_paste.masks import tighten
        >>> from gal_d2.copy_paste.place import place
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
    blend = BLEND_FUNCTIONS[options.blend]
    for placement, visible in zip(placements, visible_pasted, strict=True):
        if visible is not None:
            blend(image, placement, region)
    return visible_real, visible_pasted
