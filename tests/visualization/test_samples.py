from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from scored import scored

from gal_d2.selection.decision import Decision
from gal_d2.visualization.contact_sheet import BAD, GOOD, PASTED, REAL
from gal_d2.visualization.samples import (
    crop_instance,
    decision_sheet,
    prediction_sheet,
    to_rgb,
    training_sheet,
)

SIZE = 40


def make_sample(sources: list[int]) -> dict:
    masks = torch.zeros(len(sources), SIZE, SIZE, dtype=torch.bool)
    for k in range(len(sources)):
        masks[k, 20:36, 4 + 12 * k : 12 + 12 * k] = True
    return {
        "image": torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),
        "instances": Instances(
            (SIZE, SIZE),
            gt_boxes=Boxes(torch.zeros(len(sources), 4)),
            gt_classes=torch.zeros(len(sources), dtype=torch.int64),
            gt_masks=BitMasks(masks),
            instance_source=torch.tensor(sources),
        ),
    }


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(color)).all(axis=2).any())


def test_channels_come_out_as_rgb():
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[0] = 200
    assert to_rgb(image, "BGR")[0, 0].tolist() == [0, 0, 200]
    assert to_rgb(image, "RGB")[0, 0].tolist() == [200, 0, 0]


def test_real_and_pasted_have_their_colours():
    real = training_sheet([make_sample([0])], ["bun"], image_format="BGR")
    both = training_sheet([make_sample([0, 1])], ["bun"], image_format="BGR")
    assert has_color(real, REAL) and not has_color(real, PASTED)
    assert has_color(both, REAL) and has_color(both, PASTED)


def test_unsure_predictions_are_left_out():
    masks = torch.zeros(2, SIZE, SIZE)
    masks[:, 5:30, 5:30] = 1
    predicted = Instances(
        (SIZE, SIZE),
        pred_masks=masks,
        pred_classes=torch.tensor([0, 1]),
        scores=torch.tensor([0.9, 0.1]),
    )
    image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    truth = np.zeros((0, SIZE, SIZE), dtype=bool), []
    sheet = prediction_sheet([image], [truth], [predicted], ["bun", "bunny"])
    sure = prediction_sheet([image], [truth], [predicted[:1]], ["bun", "bunny"])
    assert (sheet == sure).all()


@pytest.mark.parametrize("accept", [[True, False, True], [True, True, True]])
def test_accepted_or_best_above_the_others_below(accept: list[bool]):
    contribution = scored(range(3), [0.1, float("nan"), 0.9], image_index=[0, 0, 1])
    decision = Decision.uniform(torch.tensor(accept), "test")
    sheet = decision_sheet(
        [make_sample([0, 1, 1]), make_sample([1])],
        contribution,
        decision,
        ["bun"],
        image_format="BGR",
        title="t",
        most=2,
        cell=32,
    )
    half = sheet.shape[0] // 2
    assert has_color(sheet[:half], GOOD) and not has_color(sheet[:half], BAD)
    assert has_color(sheet[half:], BAD) and not has_color(sheet[half:], GOOD)


def test_a_crop_at_the_border_is_padded():
    image = np.full((SIZE, SIZE, 3), 50, dtype=np.uint8)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[0:4, 36:40] = True
    crop = crop_instance(image, mask, 16)
    assert crop.shape == (16, 16, 3)
    assert crop[0, -1, 0] > 150 and crop[8, 7, 0] < 70  # grey outside, the image inside
