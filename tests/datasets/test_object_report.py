"""The sentences on what trains and what does not."""

from __future__ import annotations

from gal_d2.datasets.object_report import ObjectReport, Unusable


def report(total: int, crowds: int = 0, **unusable: int) -> ObjectReport:
    """Objects of category 3, with annotation ids from 1 on and all in image 8."""
    made = ObjectReport(total=total)
    made.objects_of[3] = total
    annotation_id = 0
    for _ in range(crowds):
        annotation_id += 1
        made.add_crowd(annotation_id, 8, 3)
    for reason, count in unusable.items():
        for _ in range(count):
            annotation_id += 1
            made.add_unusable(Unusable[reason], annotation_id, 8, 3)
    return made


def test_counts_with_their_first_examples() -> None:
    assert report(5).counts("train") == ("5 of 5 objects train; 0 crowds, 0 without a usable mask")
    assert report(9, 1, NO_MASK=2, NO_PIXEL=1).counts("train") == (
        "5 of 9 objects train; 1 crowd (first: annotation 1 of image 8), 3 without a usable mask "
        "(2 have no polygons and no RLE, first: annotation 2 of image 8; 1 has polygons that cover "
        "no pixel of the image, first: annotation 4 of image 8)"
    )


def test_an_object_of_no_class_is_counted_apart() -> None:
    made = report(4, 2)
    made.add_foreign({"id": 1, "image_id": 8, "category_id": 3, "iscrowd": 1})
    assert made.num_used == 2
    assert made.counts("train").endswith(", 1 of other categories (first: annotation 1 of image 8)")


def test_categories_that_fall_out_are_named_with_a_remedy() -> None:
    assert report(6, 1, NO_MASK=2).fallen_out({3: "bun"}) is None
    sentence = report(6, 1, NO_MASK=3).fallen_out({3: "bun"})
    assert "bun (4 of 6)" in sentence
    assert "set 'iscrowd' to 0" in sentence and "boxes alone cannot train" in sentence


def test_many_categories_are_cut_short() -> None:
    made = ObjectReport(total=12)
    for category_id in range(12):
        made.objects_of[category_id] = 1
        made.add_crowd(category_id, 0, category_id)
    assert "9 (1 of 1) and 2 more;" in made.fallen_out({})


def test_nothing_left() -> None:
    assert "no annotation" in ObjectReport().nothing_left()
    sentence = report(12, SHARES=12).nothing_left()
    assert sentence.startswith("12 have only coordinates within 0..1")
    assert "multiply each x by the image's width" in sentence
