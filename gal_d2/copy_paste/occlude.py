"""What remains visible of the objects of an image when cut-outs are laid over them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gal_d2.copy_paste.masks import LocalMask, tighten
from gal_d2.copy_paste.options import PasteOptions


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
