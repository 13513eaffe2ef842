"""A generator and a segmenter whose every result is known; importable by other processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from gal_d2.generation.generator import GeneratedImage, GenerationRequest
from gal_d2.pool.cut_out import CutOutSource

SIDE = 40
FLAGGED_INDEX = 3  # of each category, the image that the "safety checker" objects to
SMALL_INDEX = 5  # ... and the one on which the disc is too small


class DiscGenerator:
    """Draws a dark disc on white, of a colour that the seed decides."""

    def __init__(self) -> None:
        self.drawn: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GeneratedImage]:
        self.drawn += requests
        return [self._draw(request) for request in requests]

    def _draw(self, request: GenerationRequest) -> GeneratedImage:
        source = CutOutSource("discs", "v1", request.prompt, request.seed)
        if request.index == FLAGGED_INDEX:
            return GeneratedImage(request, None, source, reason="flagged")
        rgb = np.full((SIDE, SIDE, 3), 255, np.uint8)
        color = [request.seed >> shift & 63 for shift in (0, 6, 12)]
        radius = 2 if request.index == SMALL_INDEX else 12
        cv2.circle(rgb, (SIDE // 2, SIDE // 2), radius, color, -1)
        return GeneratedImage(request, rgb, source)


class DyingGenerator(DiscGenerator):
    """Kills its process once, when it meets a certain image; ``marker`` remembers that it did."""

    def __init__(self, marker: Path, category_id: int, index: int) -> None:
        super().__init__()
        self._marker = marker
        self._fatal = category_id, index

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GeneratedImage]:
        met = any((request.category_id, request.index) == self._fatal for request in requests)
        if met and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(requests)


class DarkSegmenter:
    """What is dark is object."""

    name = "dark"
    is_matting = False

    def segment(
        self, images: Sequence[np.ndarray], requests: Sequence[GenerationRequest]
    ) -> list[np.ndarray]:
        return [np.where(image.min(axis=2) < 128, 255, 0).astype(np.uint8) for image in images]
