"""Contact sheets of training samples and of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from detectron2.structures import Instances

from gal_d2.copy_paste.fields import InstanceSource
from gal_d2.copy_paste.masks import as_bit_masks
from gal_d2.visualization.contact_sheet import BAD, GOOD, PASTED, REAL, draw_instances, tile

if TYPE_CHECKING:
    from gal_d2.scoring.contribution import Contribution
    from gal_d2.selection.decision import Decision


def to_rgb(image: torch.Tensor, image_format: str) -> np.ndarray:
    """(3, H, W) uint8 tensor in ``INPUT.FORMAT`` order -> (H, W, 3) uint8 RGB array."""
    array = image.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(array[..., ::-1] if image_format == "BGR" else array)


def training_sheet(
    samples: Sequence[dict],
    class_names: Sequence[str],
    *,
    image_format: str,
    title: str = "Training images: real instances blue, pasted cut-outs orange",
    columns: int = 6,
    scale: float = 1.5,
) -> np.ndarray:
    """What the model trains on: real instances outlined in blue, pasted ones in orange.

    Args:
        samples: outputs of the mapper.
        class_names: by class index.
        image_format: ``cfg.INPUT.FORMAT``.
        title: above all.
        columns: images per row.
        scale: of the images.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    pictures = []
    for sample in samples:
        instances = sample["instances"]
        sources = instances.instance_source.tolist()
        pictures.append(
            draw_instances(
                to_rgb(sample["image"], image_format),
                as_bit_masks(instances).tensor.numpy(),
                [class_names[c] for c in instances.gt_classes.tolist()],
                [PASTED if source == InstanceSource.PASTED else REAL for source in sources],
                scale=scale,
            )
        )
    return tile(pictures, columns=columns, title=title)


def prediction_sheet(
    images: Sequence[np.ndarray],
    truths: Sequence[tuple[np.ndarray, Sequence[int]]],
    predictions: Sequence[Instances],
    class_names: Sequence[str],
    *,
    min_score: float = 0.3,
    scale: float = 1.5,
) -> np.ndarray:
    """Ground truth in the upper row of each pair, predictions above ``min_score`` in the lower.

    Args:
        images: (H, W, 3) uint8 RGB each.
        truths: per image, (N, H, W) bool masks and N class indices.
        predictions: per image, with ``pred_masks`` at image size, ``pred_classes``, ``scores``.
        class_names: by class index.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    palette = _palette(len(class_names))
    upper, lower = [], []
    for image, (masks, classes), predicted in zip(images, truths, predictions, strict=True):
        names = [class_names[c] for c in classes]
        colors = [palette[c] for c in classes]
        upper.append(draw_instances(image, masks, names, colors, scale=scale))
        kept = predicted[predicted.scores.argsort()]  # the surest are drawn last, on top
        kept = kept[kept.scores >= min_score]
        classes = kept.pred_classes.tolist()
        names = [
            f"{class_names[c]} {score:.2f}"
            for c, score in zip(classes, kept.scores.tolist(), strict=True)
        ]
        colors = [palette[c] for c in classes]
        masks = kept.pred_masks.numpy().astype(bool)
        lower.append(draw_instances(image, masks, names, colors, scale=scale))
    columns = min(6, len(images))
    rows = [
        picture
        for first in range(0, len(images), columns)
        for row in (upper, lower)
        for picture in row[first : first + columns]
    ]
    title = f"Validation images: ground truth above, predictions (score >= {min_score}) below"
    return tile(rows, columns=columns, title=title)


def decision_sheet(
    samples: Sequence[dict],
    contribution: Contribution,
    decision: Decision,
    class_names: Sequence[str],
    *,
    image_format: str,
    title: str,
    most: int = 10,
    cell: int = 96,
) -> np.ndarray:
    """Pasted instances of a batch, cropped from their images, by score, the best first.

    Accepted ones stand above and rejected ones below; where none was rejected, the best above and
    the poorest below.

    Args:
        samples: the batch, outputs of the mapper.
        contribution, decision: of its pasted instances, image by image in target order.
        class_names: by class index.
        image_format: ``cfg.INPUT.FORMAT``.
        title: above all; followed by what the rows are.
        most: pictures per row.
        cell: size of a picture in pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    crops = []
    for sample in samples:
        image = to_rgb(sample["image"].cpu(), image_format)
        instances = sample["instances"].to("cpu")
        pasted = instances[instances.instance_source == InstanceSource.PASTED]
        masks = as_bit_masks(pasted).tensor.numpy() if len(pasted) else ()
        crops += [crop_instance(image, mask, cell) for mask in masks]
    order = contribution.score.nan_to_num(-np.inf).argsort(descending=True).tolist()
    accepted = decision.accept.tolist()
    above = [k for k in order if accepted[k]][:most]
    below = [k for k in order if not accepted[k]][:most]
    meaning = "accepted above, rejected below"
    if not below:
        below = order[len(above) :][-most:]
        meaning = "best scores above, poorest below"
    rows, captions = [], []
    for chosen, color in ((above, GOOD), (below, BAD)):
        for k in chosen:
            frame = crops[k].copy()
            frame[:3], frame[-3:], frame[:, :3], frame[:, -3:] = color, color, color, color
            rows.append(frame)
            name = class_names[int(contribution.gt_class[k])]
            captions.append(f"{name[:9]} {float(contribution.score[k]):+.2f}")
        for _ in range(most - len(chosen)):
            rows.append(np.full((cell, cell, 3), 255, dtype=np.uint8))
            captions.append("")
    return tile(rows, columns=most, captions=captions, title=f"{title}: {meaning}")


def crop_instance(image: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """A square around an instance, with a little of what surrounds it.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, not empty.
        size: side of the result in pixels.

    Returns:
        (size, size, 3) uint8 RGB, grey beyond the image.
    """
    rows, columns = np.nonzero(mask)
    side = int(1.2 * max(np.ptp(rows), np.ptp(columns))) + 4
    top = (rows.min() + rows.max() - side) // 2
    left = (columns.min() + columns.max() - side) // 2
    padded = np.pad(image, ((side, side), (side, side), (0, 0)), constant_values=200)
    crop = padded[top + side : top + 2 * side, left + side : left + 2 * side]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_CUBIC)


def _palette(count: int) -> list[tuple[int, int, int]]:
    """Colours that differ in hue, all dark enough for white text."""
    import colorsys

    hues = (np.arange(count) * 0.618034) % 1.0
    return [tuple(round(255 * v) for v in colorsys.hsv_to_rgb(h, 0.85, 0.75)) for h in hues]
