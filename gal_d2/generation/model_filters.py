"""Filters that ask a model: CLIP on text, CLIP on real objects, a vision-language model."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.structures import BoxMode
from PIL import Image

from gal_d2.copy_paste.real_instances import RealInstances, can_be_cut_out
from gal_d2.errors import UserError
from gal_d2.files.image_file import UnreadableImageError
from gal_d2.generation.cutting import on_white
from gal_d2.generation.filters import Candidate, Verdict
from gal_d2.generation.hub import load_transformer
from gal_d2.generation.instance_cutter import TextSimilarity
from gal_d2.generation.prompts import PHOTO_TEMPLATE

logger = logging.getLogger(__name__)

# How far the class-relative minimum may lie below the minimum, as a share of it.
_BELOW_MINIMUM = 0.25
# Real objects that are smaller, in pixels, show nothing.
_MIN_REAL_SIZE = 10


class ClipTextFilter:
    """The cut-out fits "a photo of a single {name}".

    A name that CLIP does not know gives low cosines to good pictures too. So where the best of a
    group falls short of the minimum, those that come close to the best pass all the same, down to a
    floor of three quarters of the minimum: below it nothing speaks for the name, and all are
    equally bad. A small group, as in training, says nothing of the name: its best may be the only
    one, and would always pass.

    Args:
        similarity: CLIP.
        minimum: lowest cosine (published: 0.21).
        tolerance: how far below the best of the group is close.
        min_group: a group of fewer is held to the minimum.
    """

    name = "clip_text"

    def __init__(
        self,
        similarity: TextSimilarity,
        minimum: float = 0.21,
        tolerance: float = 0.01,
        *,
        min_group: int = 4,
    ) -> None:
        self.minimum = minimum
        self.tolerance = tolerance
        self.min_group = min_group
        self._similarity = similarity

    def check(self, group: Sequence[Candidate]) -> list[Verdict]:
        """See :class:`gal_d2.generation.filters.InstanceFilter`."""
        cosines = self._similarity.text_similarity(
            [on_white(candidate.rgba) for candidate in group],
            [PHOTO_TEMPLATE.format(name=candidate.image.request.name) for candidate in group],
        )
        needed = self.minimum
        if len(group) >= self.min_group:
            needed = class_relative_minimum(cosines, self.minimum, self.tolerance)
        return [Verdict(float(cosine), bool(cosine >= needed)) for cosine in cosines]


def class_relative_minimum(cosines: np.ndarray, minimum: float, tolerance: float) -> float:
    """The lowest cosine that passes in a group of one category.

    Example:
        >>> class_relative_minimum(np.array([0.1, 0.3]), 0.21, 0.01)
        0.21
        >>> class_relative_minimum(np.array([0.1, 0.19]), 0.21, 0.01)
        0.18
        >>> class_relative_minimum(np.array([0.05, 0.06]), 0.2, 0.01)
        0.15
    """
    floor = minimum - _BELOW_MINIMUM * abs(minimum)
    return min(minimum, max(floor, round(float(np.max(cosines)) - tolerance, 9)))


class ImageEmbedder(Protocol):
    """Makes vectors of pictures, as CLIP does."""

    def embed_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors (n, d) float32 of pictures (H, W, 3) uint8 RGB."""
        ...


class RealReference(Protocol):
    """Pictures of real objects of a category."""

    def pictures(self, category_id: int) -> list[np.ndarray]:
        """(H, W, 3) uint8 RGB each; perhaps none."""
        ...


class RealCrops:
    """The largest real objects of each category, cut out of the training images.

    Large ones, since what is a few pixels high says little about looks.

    Args:
        dataset_dicts: the training set in detectron2's format.
        category_ids: the category's id as in the JSON, by contiguous class index.
        count: objects of a category.

    Raises:
        UserError: the training set has no object that can be cut out.
    """

    def __init__(
        self, dataset_dicts: Iterable[dict], category_ids: Sequence[int], *, count: int = 10
    ) -> None:
        self._instances = RealInstances(_largest(dataset_dicts, count), min_size=_MIN_REAL_SIZE)
        self._class_of = {category_id: k for k, category_id in enumerate(category_ids)}

    def pictures(self, category_id: int) -> list[np.ndarray]:
        """See :class:`RealReference`; an image that cannot be read is left out, and logged."""
        found = []
        for index in self._instances.indices_of(self._class_of[category_id]):
            try:
                real = self._instances.cut_out(int(index))
            except UnreadableImageError as error:
                logger.warning("%s", error)
                continue
            if real is not None:
                found.append(on_white(real.rgba))
        return found


def _largest(dataset_dicts: Iterable[dict], count: int) -> list[dict]:
    """Records with the ``count`` objects of each class that have the largest boxes; no crowds."""
    heaps: dict[int, list[tuple[float, int, dict, dict]]] = {}
    number = 0
    for record in dataset_dicts:
        for annotation in record.get("annotations", ()):
            if not can_be_cut_out(annotation, _MIN_REAL_SIZE):
                continue  # it would take the place of one that can be shown
            x0, y0, x1, y1 = BoxMode.convert(
                annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
            )
            number += 1
            # Of equal ones the first; the number also keeps dicts from being compared.
            entry = ((x1 - x0) * (y1 - y0), -number, record, annotation)
            heap = heaps.setdefault(annotation["category_id"], [])
            if len(heap) < count:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    chosen = [entry for heap in heaps.values() for entry in heap]
    return [
        {**record, "annotations": [annotation]}
        for _, _, record, annotation in sorted(chosen, key=lambda entry: -entry[1])
    ]


class ClipImageFilter:
    """The cut-out looks like real objects of its category.

    The score is the mean cosine of CLIP's embeddings (after DiverGen, Fan et al. 2024). Categories
    without a real object pass.

    Args:
        clip: the model, or another one that embeds pictures.
        reference: gives the real objects.
        minimum: lowest mean cosine.
    """

    name = "clip_image"

    def __init__(self, clip: ImageEmbedder, reference: RealReference, minimum: float = 0.6) -> None:
        self.minimum = minimum
        self._clip = clip
        self._reference = reference
        self._known: dict[int, np.ndarray | None] = {}

    def check(self, group: Sequence[Candidate]) -> list[Verdict]:
        """See :class:`gal_d2.generation.filters.InstanceFilter`."""
        cosines = self.likeness(
            group[0].image.request.category_id, [candidate.rgba for candidate in group]
        )
        return [Verdict(float(c), bool(np.isnan(c) or c >= self.minimum)) for c in cosines]

    def likeness(self, category_id: int, cut_outs: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) mean cosine of each cut-out (h, w, 4) uint8 with real objects; NaN without any."""
        mean = self._mean_of(category_id)
        if mean is None:
            return np.full(len(cut_outs), np.nan, np.float32)
        return self._clip.embed_images([on_white(rgba) for rgba in cut_outs]) @ mean

    def _mean_of(self, category_id: int) -> np.ndarray | None:
        # The mean of cosines is the cosine with the mean of unit vectors, left unnormalised.
        if category_id not in self._known:
            pictures = self._reference.pictures(category_id)
            self._known[category_id] = (
                self._clip.embed_images(pictures).mean(axis=0) if pictures else None
            )
        return self._known[category_id]


class VisionLanguageFilter:
    """A vision-language model says yes to the question whether the cut-out shows the category.

    The score is P("yes") / (P("yes") + P("no")) of the next token. Gen-n-Val (arXiv 2506.04676)
    reports that such a check lowers the share of invalid instances from 50 % to 7 %.

    Args:
        model: an image-text-to-text model of transformers, on its device.
        processor: its processor, with a chat template.
        question: with the fields {name} and {definition}; the latter comes with ", " before it.
        minimum: lowest score.
        batch_size: images in a forward pass.

    Raises:
        UserError: the processor has no chat template, or its tokenizer no words for yes and no.
    """

    name = "vlm"

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        question: str,
        minimum: float = 0.5,
        batch_size: int = 8,
    ) -> None:
        if not getattr(processor, "chat_template", None):
            raise UserError(
                "GAL.GENERATOR.FILTER.VLM.MODEL has no chat template: choose an instruction-tuned "
                "image-text-to-text model."
            )
        self.minimum = minimum
        self._model = model.eval()
        self._processor = processor
        self._question = question
        self._batch_size = batch_size
        # The answer is what follows the last token, so padding has to come first.
        processor.tokenizer.padding_side = "left"
        yes, no = (_first_tokens(processor.tokenizer, word) for word in ("yes", "no"))
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise UserError(
                "GAL.GENERATOR.FILTER.VLM.MODEL: its tokenizer does not tell 'yes' from 'no'; "
                "choose another model."
            )

    @classmethod
    def load(
        cls, model: str, *, device: torch.device, dtype: torch.dtype, **options: Any
    ) -> VisionLanguageFilter:
        """Load ``GAL.GENERATOR.FILTER.VLM.MODEL``; ``options`` as of the class.

        Raises:
            UserError: transformers or the model is missing, or it is of another kind.
        """
        key = "GAL.GENERATOR.FILTER.VLM.MODEL"
        loaded = load_transformer(
            "AutoModelForImageTextToText",
            "AutoProcessor",
            model,
            key,
            device=device,
            dtype=dtype,
        )
        return cls(*loaded, **options)

    def check(self, group: Sequence[Candidate]) -> list[Verdict]:
        """See :class:`gal_d2.generation.filters.InstanceFilter`."""
        verdicts: list[Verdict] = []
        for start in range(0, len(group), self._batch_size):
            batch = group[start : start + self._batch_size]
            verdicts += [Verdict(p, p >= self.minimum) for p in self._probability_of_yes(batch)]
        return verdicts

    @torch.no_grad()
    def _probability_of_yes(self, candidates: Sequence[Candidate]) -> list[float]:
        texts, pictures = [], []
        for candidate in candidates:
            request = candidate.image.request
            definition = f", {request.definition}" if request.definition else ""
            question = self._question.format(name=request.name, definition=definition)
            content = [{"type": "image"}, {"type": "text", "text": question}]
            texts.append(
                self._processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
            )
            pictures.append([Image.fromarray(on_white(candidate.rgba))])
        inputs = self._processor(text=texts, images=pictures, return_tensors="pt", padding=True).to(
            self._model.device
        )
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(self._model.dtype)
        log_odds = self._model(**inputs).logits[:, -1].float()
        yes = log_odds[:, self._yes].logsumexp(dim=1)
        no = log_odds[:, self._no].logsumexp(dim=1)
        return torch.sigmoid(yes - no).tolist()


def _first_tokens(tokenizer: Any, word: str) -> set[int]:
    """Ids of the tokens that an answer of this word can begin with."""
    spellings = (
        spelling for w in (word, word.capitalize(), word.upper()) for spelling in (w, f" {w}")
    )
    ids = {
        tokens[0]
        for tokens in (tokenizer.encode(s, add_special_tokens=False) for s in spellings)
        if tokens
    }
    return ids - {tokenizer.unk_token_id}
