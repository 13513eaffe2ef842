"""Segment and filter: from generated images to cut-outs that can be stored."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol

import numpy as np

from gal_d2.generation.cutting import clean_mask, cut_out, on_white
from gal_d2.generation.filters import Candidate, InstanceFilter
from gal_d2.generation.generator import (
    GeneratedImage,
    GenerationRequest,
    prompt_origin,
)
from gal_d2.generation.prompts import PHOTO_TEMPLATE
from gal_d2.generation.stored_size import reduced
from gal_d2.pool.cut_out import CutOutSource, encode_rgba
from gal_d2.pool.usable import BLANK, FOREGROUND_ALPHA, is_one_color, problem_of

logger = logging.getLogger(__name__)
NO_OBJECT = "no_object"  # the segmenters found nothing


class Segmenter(Protocol):
    """Finds the object in an image.

    Attributes:
        name: short; the score of its mask is stored under it where several compete.
        is_matting: its soft mask is the object's opacity, and not how sure it is.
    """

    name: str
    is_matting: bool

    def segment(
        self, images: Sequence[np.ndarray], requests: Sequence[GenerationRequest]
    ) -> list[np.ndarray]:
        """A soft mask (H, W) uint8, 255 is object, for each image (H, W, 3) uint8 RGB."""
        ...


class TextSimilarity(Protocol):
    """How well pictures fit texts, as CLIP sees it."""

    def text_similarity(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """(n,) float32 cosines of images (H, W, 3) uint8 RGB and their texts, pair by pair."""
        ...


@dataclass(frozen=True, eq=False)
class CheckedImage:
    """An image after segmentation and filters, ready to be stored.

    Attributes:
        request, source: see :class:`gal_d2.generation.generator.GeneratedImage`.
        encoded: the cut-out as the pool stores it; None where the image was dropped.
        height, width: of the cut-out, pixels.
        reason: why it was dropped, or "".
        scores: what segmenters and filters said, by name.
    """

    request: GenerationRequest
    source: CutOutSource
    encoded: bytes | None = field(default=None, repr=False)
    height: int = 0
    width: int = 0
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)


class InstanceCutter:
    """Cuts generated images out and passes them through the filters.

    Args:
        segmenters: run where the generator draws no alpha; of several, the mask whose cut-out fits
            the category's name best is taken, as published.
        filters: in this order; what one has dropped, the next ones do not see.
        similarity: compares cut-outs with names; needed for more than one segmenter.
        threshold: alpha (1 .. 255) from which on a soft mask counts as object.
        largest: by category id, sqrt of the foreground pixels from which on a cut-out is reduced
            (:mod:`gal_d2.generation.stored_size`); others, and finished ones, stay as they are.
    """

    def __init__(
        self,
        segmenters: Sequence[Segmenter],
        filters: Sequence[InstanceFilter],
        *,
        similarity: TextSimilarity | None = None,
        threshold: int = FOREGROUND_ALPHA,
        largest: Mapping[int, float] | None = None,
    ) -> None:
        if len(segmenters) > 1 and similarity is None:
            raise ValueError("to choose between several segmenters, a text similarity is needed")
        self.segmenters = list(segmenters)
        self.filters = list(filters)
        self.threshold = threshold
        self.largest = largest or {}
        self._similarity = similarity
        self._warned_of_blank = False

    def check(self, images: Sequence[GeneratedImage]) -> list[CheckedImage]:
        """What is left of each image, in order.

        Images of one category in a call are a group for the filters. What cannot be pasted
        (:mod:`gal_d2.pool.usable`) is dropped with its problem as the reason.
        """
        reasons = self._without_contrast(images)
        results: list[CheckedImage | None] = [
            CheckedImage(image.request, image.source, reason=reason) if reason else None
            for image, reason in zip(images, reasons, strict=True)
        ]
        drawn = [k for k, reason in enumerate(reasons) if not reason]
        candidates = self._cut([images[k] for k in drawn])
        alive: dict[int, Candidate] = {}
        for k, candidate in zip(drawn, candidates, strict=True):
            problem = NO_OBJECT if candidate is None else problem_of(candidate.rgba)
            if problem is not None:
                image = images[k]
                results[k] = CheckedImage(image.request, image.source, reason=problem)
            else:
                alive[k] = candidate
        by_category = sorted(alive, key=lambda k: images[k].request.category_id)
        for _, members in groupby(by_category, lambda k: images[k].request.category_id):
            group = list(members)
            dropped = self._filter([alive[k] for k in group])
            for k, reason in zip(group, dropped, strict=True):
                results[k] = self._finish(alive[k], reason)
        return results

    def _without_contrast(self, images: Sequence[GeneratedImage]) -> list[str]:
        """The reason of each image's drop so far: its own, ``blank``, or "".

        Cut-outs that come finished are no whole pictures: they may be of one colour.
        """
        drawn = [image for image in images if not image.reason and not image.finished]
        reasons = [
            image.reason or (BLANK if not image.finished and is_one_color(image.rgb) else "")
            for image in images
        ]
        blank = reasons.count(BLANK)
        if blank and blank == len(drawn) and not self._warned_of_blank:
            self._warned_of_blank = True
            logger.warning(
                "All %d images that were drawn together are of one colour, and dropped as '%s': a "
                "model that overflows in half precision draws so; set GAL.GENERATOR.DTYPE to "
                "bfloat16 or float32 (and see that the model is whole).",
                blank,
                BLANK,
            )
        return reasons

    def _cut(self, images: Sequence[GeneratedImage]) -> list[Candidate | None]:
        opaque = [image for image in images if image.alpha is None]
        if opaque and not self.segmenters:
            raise ValueError("the generator draws no alpha channel, and there is no segmenter")
        found = iter(self._segment(opaque)) if opaque else iter(())
        return [next(found) if image.alpha is None else _as_drawn(image) for image in images]

    def _segment(self, images: Sequence[GeneratedImage]) -> list[Candidate | None]:
        pictures = [image.rgb for image in images]
        requests = [image.request for image in images]
        rivals: list[list[tuple[str, Candidate]]] = [[] for _ in images]
        for segmenter in self.segmenters:
            alphas = segmenter.segment(pictures, requests)
            for image, alpha, own in zip(images, alphas, rivals, strict=True):
                mask = clean_mask(alpha, threshold=self.threshold)
                if mask.any():
                    rgba = cut_out(image.rgb, mask, alpha if segmenter.is_matting else None)
                    candidate = Candidate(image, mask, rgba)
                    own.append((segmenter.name, candidate))
        if len(self.segmenters) == 1:
            return [own[0][1] if own else None for own in rivals]
        return self._best(rivals)

    def _best(self, rivals: list[list[tuple[str, Candidate]]]) -> list[Candidate | None]:
        flat = [candidate for own in rivals for _, candidate in own]
        scores = iter(
            self._similarity.text_similarity(
                [on_white(candidate.rgba) for candidate in flat],
                [PHOTO_TEMPLATE.format(name=c.image.request.name) for c in flat],
            )
            if flat
            else ()
        )
        best: list[Candidate | None] = []
        for own in rivals:
            rated = {f"mask_{name}": float(next(scores)) for name, _ in own}
            if not own:
                best.append(None)
                continue
            winner = int(np.argmax(list(rated.values())))
            own[winner][1].scores.update(rated)
            best.append(own[winner][1])
        return best

    def _filter(self, group: list[Candidate]) -> list[str]:
        """The reason of each one's drop; "" for those that passed all filters."""
        reasons = [""] * len(group)
        for check in self.filters:
            alive = [k for k, reason in enumerate(reasons) if not reason]
            if not alive:
                break
            for k, verdict in zip(alive, check.check([group[k] for k in alive]), strict=True):
                group[k].scores[check.name] = verdict.score
                if not verdict.passed:
                    reasons[k] = check.name
        return reasons

    def _finish(self, candidate: Candidate, reason: str) -> CheckedImage:
        request, source = candidate.image.request, candidate.image.source
        scores = {name: score for name, score in candidate.scores.items() if math.isfinite(score)}
        if reason:
            return CheckedImage(request, source, reason=reason, scores=scores)
        if not source.origin:
            source = replace(source, origin=prompt_origin(request))
        rgba = candidate.rgba
        if not candidate.image.finished:
            rgba = reduced(rgba, self.largest.get(request.category_id, math.inf))
        return CheckedImage(
            request, source, encode_rgba(rgba), *rgba.shape[:2], reason="", scores=scores
        )


def _as_drawn(image: GeneratedImage) -> Candidate | None:
    """The cut-out of an image that came with its alpha channel."""
    rgba = np.dstack((image.rgb, image.alpha))
    mask = image.alpha >= FOREGROUND_ALPHA
    if not mask.any():
        return None
    if not image.finished:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Candidate(image, mask, np.ascontiguousarray(rgba))
