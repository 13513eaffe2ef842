"""The street set, from scikit-image's photographs with labels drawn here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from scipy.io import savemat
from skimage import data

from gal_d2.datasets.annotation_file import read_annotation_file
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.writer import PoolWriter
from gal_d2.testbeds.street.candidates import (
    draw_candidates,
    prepare_candidates,
    read_garments,
    write_pool_truth,
)
from gal_d2.testbeds.street.categories import CANDIDATES, CATEGORIES, STRAYS
from gal_d2.testbeds.street.photographs import (
    prepare_photographs,
    split_instances,
    split_photographs,
)
from gal_d2.testbeds.street.settings import StreetConfig, street_categories
from gal_d2.testbeds.truth import PoolTruth

LABELS = ["null", "skin", "hair"] + [label for c in CATEGORIES for label in c.labels]
SIZE = (120, 80)  # height and width of a small photograph


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(data.astronaut()).resize(SIZE[::-1])


def write_photographs(root: Path, photograph: Image.Image, drawn: list[dict[str, list]]) -> None:
    """A copy of Clothing Co-Parsing's layout; ``drawn``: by label, boxes (top, left, side)."""
    (root / "photos").mkdir(parents=True)
    (root / "annotations/pixel-level").mkdir(parents=True)
    names = np.empty((1, len(LABELS)), object)
    names[0] = LABELS
    savemat(root / "label_list.mat", {"label_list": names})
    for number, boxes in enumerate(drawn, start=1):
        scale = photograph.height // SIZE[0]
        labels = np.zeros((photograph.height, photograph.width), np.uint8)
        for label, squares in boxes.items():
            for box in squares:
                top, left, side = (scale * value for value in box)
                labels[top : top + side, left : left + side] = LABELS.index(label)
        savemat(root / f"annotations/pixel-level/{number:04d}.mat", {"groundtruth": labels})
        photograph.save(root / f"photos/{number:04d}.jpg")


def write_garments(root: Path, photograph: Image.Image, counts: dict[str, int]) -> None:
    (root / "images").mkdir(parents=True)
    with (root / "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "sender_id", "label", "kids"])
        for label, count in counts.items():
            for k in range(count):
                name = f"{label}-{k}".replace(" ", "_")
                photograph.save(root / f"images/{name}.jpg")
                table.writerow([name, 1, label, "False"])
        table.writerow(["not-there", 1, "Hat", "False"])


def test_pairs_are_split_and_slips_of_the_brush_are_left_out():
    mask = np.zeros((40, 40), bool)
    mask[:10, :10] = mask[:10, 20:30] = True
    mask[30, 30] = True  # a hundredth of the others
    both = split_instances(mask, pairs=True)
    assert [m.sum() for m in both] == [100, 100]
    (one,) = split_instances(mask, pairs=False)
    assert one.sum() == 200 and not one[30, 30]


def test_near_synonyms_are_united_or_kept():
    united, apart = street_categories(), street_categories(merge=False)
    labels = [label for c in united for label in c.labels]
    assert len(labels) == len(set(labels)) == len(apart)
    assert {c.labels for c in apart} == {(label,) for label in labels}
    names = [c.name for c in apart]
    assert names == sorted(set(names))
    assert {"bag", "purse", "shoe", "sneakers", "pants", "jeans"} <= set(names)


def test_annotations_of_photographs(tmp_path, photograph):
    write_photographs(
        tmp_path / "in",
        photograph,
        [
            {
                "bag": [(5, 5, 10)],
                "purse": [(5, 30, 10)],
                "shoes": [(100, 10, 12), (100, 50, 12)],
                "tie": [(60, 60, 2)],  # 4 of 9,600 pixels: too small
                "skin": [(40, 40, 10)],
            },
            {"bag": [(5, 5, 10)], "hat": [(0, 60, 12)], "tie": [(60, 60, 8)]},
        ],
    )
    config = StreetConfig(min_images=1, val_share=0.5)
    prepare_photographs(tmp_path / "in", tmp_path / "out", config)
    files = {
        split: read_annotation_file(tmp_path / f"out/annotations/street_{split}.json")
        for split in ("train", "val")
    }
    by_name = {}
    for split, content in files.items():
        assert [c.name for c in content.categories] == ["bag", "hat", "shoe", "tie"]
        for image in content.images:
            assert (tmp_path / f"out/images/{split}" / image["file_name"]).is_file()
            own = [a for a in content.annotations if a["image_id"] == image["id"]]
            by_name[image["file_name"]] = image, own
    image, annotations = by_name["0001.jpg"]
    found = [(a["category_id"], a["bbox"], a["area"]) for a in annotations]
    assert found == [
        (1, [5, 5, 35, 10], 200),  # bag and purse are one bag
        (3, [10, 100, 12, 12], 144),
        (3, [50, 100, 12, 12], 144),
    ]
    # Bystanders have bags, too; of the tie that is too small nothing is said.
    assert image["not_exhaustive_category_ids"] == [1, 3]
    assert image["neg_category_ids"] == [2]
    image, annotations = by_name["0002.jpg"]
    assert image["neg_category_ids"] == [3]
    mask = mask_utils.decode(annotations[1]["segmentation"])
    assert mask[:12, 60:72].all() and mask.sum() == 144


def test_large_photographs_are_shrunk_with_their_labels(tmp_path, photograph):
    large = photograph.resize((640, 960))
    write_photographs(tmp_path / "in", large, [{"dress": [(30, 15, 60)]}] * 2)
    config = StreetConfig(min_images=1, val_share=0.5)
    contents = prepare_photographs(tmp_path / "in", tmp_path / "out", config)
    (image,), (annotation,) = contents["train"]["images"], contents["train"]["annotations"]
    assert (image["height"], image["width"]) == (448, 299)
    with Image.open(tmp_path / "out/images/train" / image["file_name"]) as written:
        assert written.size == (299, 448)
    left, top, width, height = annotation["bbox"]
    assert (left, top, width, height) == pytest.approx((56, 112, 224, 224), abs=1.5)


def present_in(**counts: int) -> list[set[str]]:
    """Photographs of which so many have a category each, and ``n`` have none."""
    return [{name} - {"n"} for name, count in counts.items() for _ in range(count)]


def test_the_split_is_stratified():
    photographs = present_in(coat=100, dress=30, tie=4, belt=2, ring=1, n=13)
    validates = split_photographs(photographs, StreetConfig(val_share=0.3))
    shares = {}
    for name in ("coat", "dress", "tie", "belt", "ring"):
        chosen = validates[[name in names for names in photographs]]
        shares[name] = (int(chosen.sum()), len(chosen))
    assert shares["coat"] == (30, 100) and shares["dress"] == (9, 30)
    assert shares["tie"] == (1, 4) and shares["belt"] == (1, 2)
    assert shares["ring"] == (0, 1)  # something to learn from comes first
    assert int(validates.sum()) == pytest.approx(45, abs=2)
    again = split_photographs(photographs, StreetConfig(val_share=0.3))
    assert (again == validates).all()
    other = split_photographs(photographs, StreetConfig(val_share=0.3, seed=1))
    assert (other != validates).any()


def test_rare_categories_validate_beyond_their_places():
    photographs = present_in(hat=40, coat=60) + [{"hat", "scarf"}] * 10
    config = StreetConfig(rare=("hat", "scarf"), rare_images=5)
    validates = split_photographs(photographs, config)
    for name in config.rare:
        trains = sum(name in n for n, val in zip(photographs, validates, strict=True) if not val)
        assert trains <= 5
    assert sum("hat" in n for n, v in zip(photographs, validates, strict=True) if not v) == 5


def test_no_photograph_is_a_candidate_twice_and_scarce_labels_are_shared():
    labels = sorted({label for plan in CANDIDATES.values() for label in (*plan.good, *plan.wrong)})
    garments = {label: [Path(f"{label}-{k}.jpg") for k in range(60)] for label in labels}
    garments |= {label: [Path(f"{label}-{k}.jpg") for k in range(20)] for label in STRAYS}
    candidates = draw_candidates(garments, seed=0)
    paths = [c["path"] for c in candidates]
    assert len(paths) == len(set(paths))
    assert candidates == draw_candidates(garments, seed=0)
    assert candidates != draw_candidates(garments, seed=1)
    for category, plan in CANDIDATES.items():
        own = [c for c in candidates if c["category"] == category]
        good = {c["label"] for c in own if c["kind"] == "good"}
        wrong = {c["label"] for c in own if c["kind"] == "wrong_object"}
        assert good == set(plan.good) and wrong <= set(plan.wrong)
        assert {c["label"] for c in own if c["kind"] == "stray"} <= set(STRAYS)
    # Shirts are wanted for several categories: each gets its share of the sixty.
    wanted = {
        name: plan.good.get("Shirt", 0) + plan.wrong.get("Shirt", 0)
        for name, plan in CANDIDATES.items()
    }
    for name, count in wanted.items():
        got = sum(c["category"] == name and c["label"] == "Shirt" for c in candidates)
        assert got == count * 60 // sum(wanted.values())


def test_the_plan_is_as_bad_as_it_says():
    good, bad = {}, {}
    for name, plan in CANDIDATES.items():
        good[name] = sum(plan.good.values())
        bad[name] = sum(plan.wrong.values()) + plan.strays
        assert plan.ambiguous == (name in ("t-shirt", "shorts", "sweatshirt", "blouse"))
        if plan.ambiguous:
            assert 0.7 <= bad[name] / (good[name] + bad[name]) <= 0.75
    assert 0.5 <= sum(bad.values()) / (sum(good.values()) + sum(bad.values())) <= 0.61
    assert CANDIDATES.keys() <= {category.name for category in CATEGORIES}


def test_the_truth_about_a_pool_of_candidates(tmp_path, photograph):
    counts = {"T-Shirt": 45, "Longsleeve": 45, "Hat": 17, "Not sure": 30}
    write_garments(tmp_path / "in", photograph, counts)
    assert {k: len(v) for k, v in read_garments(tmp_path / "in").items()} == counts
    output = tmp_path / "out"
    candidates = prepare_candidates(tmp_path / "in", output, StreetConfig())
    files = sorted(p.relative_to(output / "candidates") for p in output.glob("candidates/*/*"))
    table = pq.read_table(output / "candidates.parquet").to_pylist()
    assert sorted(row["file"] for row in table) == [f.as_posix() for f in files]
    assert len(files) == len(candidates)

    stored = {}
    rgba = np.full((12, 12, 4), 255, np.uint8)
    with PoolWriter(output / "pool", names={1: "t-shirt", 2: "hat"}) as writer:
        for k, row in enumerate(r for r in table if r["category"] in ("t-shirt", "hat")):
            rgba[..., 0] = k
            category_id = 1 if row["category"] == "t-shirt" else 2
            source = CutOutSource("folder", origin=row["file"])
            pool_id = writer.add(category_id, rgba, source=source, scores={})
            stored[pool_id] = row
    counts = write_pool_truth(output)
    truth = PoolTruth.read(output / "pool_truth.parquet")
    assert truth.pool_id.tolist() == sorted(stored)
    assert truth.kind.tolist() == [stored[i]["kind"] for i in sorted(stored)]
    assert truth.ambiguous.tolist() == [stored[i]["category"] == "t-shirt" for i in sorted(stored)]
    assert sum(counts["t-shirt"].values()) + sum(counts["hat"].values()) == len(stored)

    with PoolWriter(output / "pool", names={1: "t-shirt", 2: "hat"}) as writer:
        source = CutOutSource("folder", origin="hat/other.jpg")
        writer.add(2, np.full((9, 9, 4), 255, np.uint8), source=source, scores={})
    with pytest.raises(UserError, match=r"'hat/other.jpg'.*made of other candidates"):
        write_pool_truth(output)


def test_a_second_call_leaves_nothing_of_the_first(tmp_path, photograph):
    write_photographs(tmp_path / "in", photograph, [{"dress": [(30, 15, 40)]}] * 4)
    prepare_photographs(tmp_path / "in", tmp_path / "out", StreetConfig(min_images=1))
    first = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (tmp_path / "out/images/train/stale.jpg").touch()
    prepare_photographs(tmp_path / "in", tmp_path / "out", StreetConfig(min_images=1))
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_share": 1.0}, "--val-share is 1.0"),
        ({"rare_images": 0}, "--rare-images is 0"),
        ({"min_images": 0}, "--min-images is 0"),
        ({"rare": ("hats",)}, "--rare has hats: choose from bag, belt"),
        ({"rare": ("purse",)}, "--rare has purse"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        StreetConfig(**change)


def test_folders_that_are_no_copies(tmp_path, photograph):
    config = StreetConfig(min_images=1)
    with pytest.raises(UserError, match=r"label_list.mat does not exist: give --photos"):
        prepare_photographs(tmp_path, tmp_path / "out", config)
    with pytest.raises(UserError, match=r"images.csv does not exist: give --garments"):
        prepare_candidates(tmp_path, tmp_path / "out", config)
    with pytest.raises(UserError, match="run tools/prepare_street.py without --truth"):
        write_pool_truth(tmp_path)
    write_photographs(tmp_path / "in", photograph, [{"dress": [(30, 15, 40)]}])
    with pytest.raises(UserError, match="no category is in 4 of the 1 photographs"):
        prepare_photographs(tmp_path / "in", tmp_path / "out", StreetConfig())
    (tmp_path / "in/annotations/pixel-level/0001.mat").write_bytes(b"no .mat file")
    with pytest.raises(UserError, match=r"0001.mat cannot be read as a .mat file"):
        prepare_photographs(tmp_path / "in", tmp_path / "out", config)
    (tmp_path / "in/photos/0001.jpg").unlink()
    with pytest.raises(UserError, match=r"0001.jpg is missing"):
        prepare_photographs(tmp_path / "in", tmp_path / "out", config)


def test_json_has_every_field_of_lvis(tmp_path, photograph):
    write_photographs(tmp_path / "in", photograph, [{"dress": [(30, 15, 40)]}] * 2)
    prepare_photographs(tmp_path / "in", tmp_path / "out", StreetConfig(min_images=1))
    content = json.loads((tmp_path / "out/annotations/street_train.json").read_text())
    (category,) = content["categories"]
    assert category == {
        **{"id": 1, "name": "dress", "synonyms": ["dress"], "frequency": "r"},
        **{"image_count": 1, "instance_count": 1},
    }
