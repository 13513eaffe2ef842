"""The normalising pass: what is kept, put right, left out or refused, by hand."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from gal_d2.datasets import annotation_objects
from gal_d2.datasets.annotation_objects import normalise_annotations
from gal_d2.datasets.object_report import Correction, ObjectReport, Unusable
from gal_d2.errors import UserError

HEIGHT, WIDTH = 60, 80
# 20 x 10 pixels from (30, 40) on.
RECTANGLE = [[30, 40, 50, 40, 50, 50, 30, 50]]
BOX, AREA = [30, 40, 20, 10], 200


def fail(sentence: str) -> None:
    raise UserError(sentence)


def normalise(*changes: dict, size: tuple[int, int] = (HEIGHT, WIDTH)) -> tuple[list, ObjectReport]:
    """One annotation for each dict of changes to a right one; None takes a field away."""
    annotations = []
    for number, change in enumerate(changes):
        annotation = {
            "id": number,
            "image_id": 4,
            "category_id": 9,
            "bbox": BOX,
            "area": AREA,
            "segmentation": RECTANGLE,
        }
        annotation |= copy.deepcopy(change)
        annotations.append({k: v for k, v in annotation.items() if v is not ...})
    image = {"id": 4, "height": size[0], "width": size[1], "not_exhaustive_category_ids": []}
    kept, report = normalise_annotations(annotations, {4: image}, {9}, fail)
    report.image = image
    return kept, report


class TestArea:
    @pytest.mark.parametrize("area", [AREA, 190.5, 240])
    def test_that_agrees_is_kept(self, area: float) -> None:
        kept, report = normalise({"area": area})
        assert kept[0]["area"] == area and not report.corrections

    @pytest.mark.parametrize(
        "area", [0, -1, 100, 300.5, 1e6, math.nan, math.inf, 10**400, -(10**400)]
    )
    def test_that_contradicts_is_the_masks(self, area: float) -> None:
        kept, report = normalise({}, {"area": area})
        assert kept[1]["area"] == AREA
        assert report.corrections[Correction.AREA].ids == [1]

    @pytest.mark.parametrize("area", [..., None])
    def test_that_is_missing_is_the_masks(self, area: object) -> None:
        kept, report = normalise({"area": area})
        assert kept[0]["area"] == AREA and not report.corrections

    def test_of_overlapping_polygons_counts_each_pixel_once(self) -> None:
        kept, _ = normalise({"segmentation": RECTANGLE * 2, "area": 2 * AREA})
        assert kept[0]["area"] == AREA

    @pytest.mark.parametrize("area", ["200", True, [200]])
    def test_that_is_no_number_is_refused(self, area: object) -> None:
        with pytest.raises(
            UserError, match=r"annotation 0 \(image 4\): area is .*; give its pixels"
        ):
            normalise({"area": area})


class TestBox:
    @pytest.mark.parametrize("box", [BOX, [29.3, 40, 21, 9.5]])
    def test_that_agrees_is_kept(self, box: list) -> None:
        kept, report = normalise({"bbox": box})
        assert kept[0]["bbox"] == box and not report.corrections

    @pytest.mark.parametrize(
        "box",
        [
            [0, 0, 20, 10],
            [30, 40, 0, 0],
            [0.4, 0.6, 0.2, 0.1],
            [math.nan] * 4,
            [30, 40, 20, 10**400],
        ],
    )
    def test_that_contradicts_is_the_masks(self, box: list) -> None:
        kept, report = normalise({"bbox": box})
        assert kept[0]["bbox"] == BOX
        assert report.corrections.keys() == {Correction.BOX}

    def test_of_two_corners_is_named(self) -> None:
        kept, report = normalise({"bbox": [30, 40, 50, 50]})
        assert kept[0]["bbox"] == BOX
        assert report.corrections.keys() == {Correction.XYXY}

    @pytest.mark.parametrize("box", [..., None, []])
    def test_that_is_missing_is_the_masks(self, box: object) -> None:
        kept, report = normalise({"bbox": box})
        assert kept[0]["bbox"] == BOX and not report.corrections

    def test_of_an_object_that_leaves_the_image_is_that_of_what_is_seen(self) -> None:
        kept, _ = normalise({"segmentation": [[70, 40, 100, 40, 100, 50, 70, 50]], "area": 100})
        assert kept[0]["bbox"] == [70, 40, 10, 10] and kept[0]["area"] == 100

    @pytest.mark.parametrize("box", [[1, 2, 3], "30 40 20 10", [1, 2, 3, "4"], [[1, 2], [3, 4]]])
    def test_that_is_no_box_is_refused(self, box: object) -> None:
        with pytest.raises(UserError, match=r"annotation 0 \(image 4\): bbox is .*\[x, y, width"):
            normalise({"bbox": box})


class TestCrowd:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [(0, 0), (1, 1), (True, 1), (False, 0), ("0", 0), ("1", 1), (None, 0)],
    )
    def test_known_values(self, value: object, expected: int) -> None:
        kept, report = normalise({"iscrowd": value})
        assert kept[0]["iscrowd"] == expected and type(kept[0]["iscrowd"]) is int
        assert (report.num_used, report.crowds.count) == (1 - expected, expected)

    def test_missing(self) -> None:
        assert normalise({})[0][0]["iscrowd"] == 0

    @pytest.mark.parametrize("value", [2, -1, 0.5, "yes", "", [], {}, math.nan])
    def test_others_are_refused(self, value: object) -> None:
        with pytest.raises(UserError, match=r"annotation 0 \(image 4\): iscrowd is .*; use 0"):
            normalise({"iscrowd": value})


class TestMask:
    @pytest.mark.parametrize(
        "segmentation", [RECTANGLE[0], [[30, 40], [50, 40], [50, 50], [30, 50]]]
    )
    def test_other_forms_become_flat_polygons(self, segmentation: list) -> None:
        assert normalise({"segmentation": segmentation})[0][0]["segmentation"] == RECTANGLE

    def test_short_polygons_are_dropped(self) -> None:
        kept, report = normalise({"segmentation": [[1, 2, 3, 4], *RECTANGLE, [1] * 7]})
        assert kept[0]["segmentation"] == RECTANGLE
        assert report.corrections[Correction.POINTS].count == 1

    @pytest.mark.parametrize(
        ("segmentation", "reason"),
        [
            (..., Unusable.NO_MASK),
            (None, Unusable.NO_MASK),
            ([], Unusable.NO_MASK),
            ({}, Unusable.NO_MASK),
            ([[]], Unusable.NO_MASK),
            ([[30, 40, 50, 40]], Unusable.FEW_POINTS),
            ([[0.4, 0.6, 0.6, 0.6, 0.6, 0.8]], Unusable.SHARES),
            ([[0, 0, 1, 0, 1, 1, 0, 1]], Unusable.SHARES),
            ([[90, 40, 95, 40, 95, 50]], Unusable.NO_PIXEL),
            ([[-30, -40, -50, -40, -50, -50]], Unusable.NO_PIXEL),
            ([[30, 40, 50, 40, 30, 40]], Unusable.NO_PIXEL),
            ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, Unusable.EMPTY_RLE),
        ],
    )
    def test_unusable_ones_are_left_out_and_counted(
        self, segmentation: object, reason: Unusable
    ) -> None:
        kept, report = normalise({}, {"segmentation": segmentation})
        assert [a["id"] for a in kept] == [0]
        assert report.unusable.keys() == {reason} and report.unusable[reason].ids == [1]
        assert (report.total, report.num_used, report.num_unusable) == (2, 1, 1)
        assert report.image["not_exhaustive_category_ids"] == [9]

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e9, -801, 10**400])
    def test_far_or_infinite_coordinates_are_refused(self, value: float) -> None:
        polygon = [30, 40, value, 40, 50, 50]
        with pytest.raises(UserError, match=r"annotation 1 \(image 4\): a polygon has the coordin"):
            normalise({}, {"segmentation": [polygon]})

    @pytest.mark.parametrize("value", ["30", None, True, [30]])
    def test_what_is_no_number_is_refused(self, value: object) -> None:
        with pytest.raises(UserError, match=r"annotation 1 \(image 4\): bad segmentation"):
            normalise({}, {"segmentation": [[30, 40, 50, 40, 50, value]]})

    def test_rle_of_another_size_is_refused(self) -> None:
        rle = {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}
        with pytest.raises(UserError, match=r"size is \[80, 60\], the image's is \[60, 80\]"):
            normalise({"segmentation": rle})

    def test_one_pixel_images_have_no_shares(self) -> None:
        one = {"segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]], "bbox": None, "area": None}
        kept, _ = normalise(one, size=(1, 1))
        assert kept[0]["area"] == 1 and kept[0]["bbox"] == [0, 0, 1, 1]


def test_nothing_changes_with_the_size_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [{}, {"area": 0}, {"segmentation": []}, {"iscrowd": 1}, {"bbox": [30, 40, 50, 50]}]
    whole = normalise(*changes)
    monkeypatch.setattr(annotation_objects, "CHUNK", 2)
    parts = normalise(*changes)
    assert whole[0] == parts[0] and whole[1].counts("train") == parts[1].counts("train")


def test_right_annotations_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """LVIS has 1.27 million: drawing each would take minutes."""
    drawn = []
    original = annotation_objects.draw_polygons

    def count(*args: object) -> dict:
        drawn.append(args)
        return original(*args)

    monkeypatch.setattr(annotation_objects, "draw_polygons", count)
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.stack([40 + 15 * np.cos(angles), 30 + 15 * np.sin(angles)], axis=1)
    box = [*circle.min(0).tolist(), *np.ptp(circle, axis=0).tolist()]
    round_one = {"segmentation": [circle.ravel().tolist()], "bbox": box, "area": 700}
    halves = [[30, 40, 40, 40, 40, 50, 30, 50], [40, 40, 50, 40, 50, 50, 40, 50]]
    normalise({}, round_one, {"segmentation": halves})
    assert not drawn
    normalise({"area": 0})
    assert len(drawn) == 1
