"""What a source of instances is asked for, what it returns, and the protocol that it follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gal_d2.pool.cut_out import CutOutSource

# Why a request led to nothing, as far as a generator can tell; the filters add their own names.
FLAGGED = "flagged"  # the safety checker blacked it out
NO_CANDIDATE = "no_candidate"  # nothing of this category to draw from


@dataclass(frozen=True)
class GenerationRequest:
    """One image to draw.

    Attributes:
        category_id: the category's id as in the annotation JSON.
        index: which of the category's images this is, from 0 on. Category, index and the run's seed
            name a request: they alone decide what is drawn.
        prompt: the text that is sent to the model.
        seed: 0 .. 2**63 - 1, of this image alone; see :func:`request_seed`.
        template: the prompt template that ``prompt`` was made from.
        name: what the category is called in plain words.
        definition: what it is, in a phrase; may be empty.
    """

    category_id: int
    index: int
    prompt: str
    seed: int
    template: str = ""
    name: str = ""
    definition: str = ""


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """What came of a request.

    Attributes:
        request: which one.
        rgb: (H, W, 3) uint8, or None where there is nothing.
        source: generator, model, prompt and seed, as the pool records them.
        alpha: (H, W) uint8 where the generator draws transparency itself; no segmenter runs then.
        finished: it is a cut-out already: with an alpha channel, cropped to it, and to be stored as
            it is.
        reason: why there is nothing (:data:`FLAGGED`, :data:`NO_CANDIDATE`); "" if there is.
    """

    request: GenerationRequest
    rgb: np.ndarray | None
    source: CutOutSource = field(repr=False)
    alpha: np.ndarray | None = None
    finished: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.rgb is None) != bool(self.reason):
            raise ValueError("a generated image has pixels, or a reason why there are none")

    @property
    def flagged(self) -> bool:
        """Whether the safety checker objected."""
        return self.reason == FLAGGED


class InstanceGenerator(Protocol):
    """A source of images that show one object each.

    What it draws for a request depends on that request (and on the generator's own settings) alone:
    generation is interrupted, spread over machines and resumed, and must not notice.

    One whose every image has an alpha channel says so with an attribute ``draws_alpha = True``, and
    no segmenter is loaded.
    """

    def generate(self, requests: Sequence[GenerationRequest]) -> list[GeneratedImage]:
        """One image for each request, in the same order."""
        ...


def request_seed(seed: int, category_id: int, index: int) -> int:
    """The seed of one image: a 63-bit mix of the run's seed, its category and its index there.

    Example:
        >>> request_seed(0, 12, 0) == request_seed(0, 12, 0) != request_seed(0, 12, 1)
        True
    """
    # The length keeps (1, 2) and (1, 2, 0) apart, which SeedSequence does not.
    mixed = np.random.SeedSequence([3, seed, category_id, index])
    return int(mixed.generate_state(1, np.uint64)[0] >> 1)


def prompt_origin(request: GenerationRequest) -> str:
    """What the pool's ``origin`` column says of a generated cut-out: its template and index."""
    return f"{request.template}#{request.index}"


def template_of(origin: str) -> str:
    """The prompt template in an ``origin`` that :func:`prompt_origin` wrote."""
    return origin.rpartition("#")[0]
