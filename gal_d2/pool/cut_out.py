"""A cut-out: one object with an alpha channel, what it shows and where it came from."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

# WebP's own limit on height and width.
MAX_SIDE = 16383
# Pillow's modes with a channel of opacity.
ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


class CorruptCutOutError(Exception):
    """A stored cut-out cannot be read back. Training skips it; the message says which and why."""


@dataclass(frozen=True)
class CutOutSource:
    """Where a cut-out came from.

    ``generator``, ``model``, ``prompt`` and ``seed`` (0 .. 2**64 - 1, None: unknown) take part in
    the cut-out's id. ``origin`` does not: it names the file that an import read.
    """

    generator: str
    model: str = ""
    prompt: str = ""
    seed: int | None = None
    origin: str = ""


@dataclass(frozen=True, eq=False)
class CutOut:
    """One object, ready to paste.

    Attributes:
        pool_id: 63-bit id (so that it fits int64), a hash of category, source and pixels.
        category_id: the category's id as in the annotation JSON, not the contiguous class index.
        rgba: (H, W, 4) uint8, channels R, G, B, alpha; alpha 0 is background, 255 is object.
        source: see :class:`CutOutSource`.
        scores: what the filters said about it, by name ("clip", ...).
    """

    pool_id: int
    category_id: int
    rgba: np.ndarray
    source: CutOutSource
    scores: dict[str, float] = field(default_factory=dict)


def cut_out_id(category_id: int, source: CutOutSource, encoded: bytes) -> int:
    """The id of a cut-out: the top 63 bits of a BLAKE2b hash of category, source and image bytes.

    The same cut-out has the same id in every pool, and ids are spread evenly over 0 .. 2**63 - 1.
    """
    seed = None if source.seed is None else int(source.seed)
    header = json.dumps(
        [int(category_id), source.generator, source.model, source.prompt, seed]
    ).encode()
    digest = hashlib.blake2b(digest_size=8, person=b"gal_d2.pool.1")
    digest.update(len(header).to_bytes(4, "big"))
    digest.update(header)
    digest.update(encoded)
    return int.from_bytes(digest.digest(), "big") >> 1


def encode_rgba(rgba: np.ndarray) -> bytes:
    """Lossless WebP of an (H, W, 4) uint8 RGBA array: every pixel comes back as it was.

    Pixels under alpha 0 are kept as well, since resizing and Poisson blending look at them. With
    the fastest of WebP's efforts this is smaller than PNG and decodes 1.2-2 times as fast.

    Raises:
        ValueError: wrong shape or dtype, a side longer than 16,383 px, or alpha 0 everywhere.
    """
    rgba = np.asarray(rgba)
    if rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] != 4:
        raise ValueError(f"a cut-out is (H, W, 4) uint8, got {rgba.shape} {rgba.dtype}")
    height, width = rgba.shape[:2]
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        raise ValueError(f"a cut-out's sides are 1 .. {MAX_SIDE} px, got {height} x {width}")
    if not rgba[..., 3].any():
        raise ValueError("the cut-out is fully transparent (alpha is 0 everywhere)")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgba)).save(
        buffer, "WEBP", lossless=True, exact=True, quality=0, method=0
    )
    return buffer.getvalue()


def decode_rgba(encoded: bytes, height: int, width: int) -> np.ndarray:
    """The (H, W, 4) uint8 RGBA array that :func:`encode_rgba` stored.

    Raises:
        CorruptCutOutError: the bytes are no image, or one of another size.
    """
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # an empty buffer
        image = None
    if image is None:
        raise CorruptCutOutError("the image does not decode")
    if image.shape not in ((height, width, 4), (height, width, 3)) or image.dtype != np.uint8:
        raise CorruptCutOutError(
            f"the image decodes to {image.shape} {image.dtype}, not to ({height}, {width}, 4) uint8"
        )
    # The encoder leaves the alpha channel out of an opaque image.
    opaque = image.shape[2] == 3
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGBA if opaque else cv2.COLOR_BGRA2RGBA)


def crop_to_alpha(rgba: np.ndarray) -> np.ndarray:
    """The smallest crop of ``rgba`` (H, W, 4) that holds every pixel with alpha > 0 (a view).

    Raises:
        ValueError: alpha is 0 everywhere.

    Example:
        >>> rgba = np.zeros((5, 6, 4), np.uint8)
        >>> rgba[1:3, 2:5, 3] = 255
        >>> crop_to_alpha(rgba).shape
        (2, 3, 4)
    """
    visible = rgba[..., 3] > 0
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if not rows.size:
        raise ValueError("the cut-out is fully transparent (alpha is 0 everywhere)")
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
