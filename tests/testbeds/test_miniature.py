from __future__ import annotations

import dataclasses
import filecmp
import json
import logging
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet
import pytest
from lvis import LVIS

from gal_d2.errors import UserError
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.testbeds.miniature import prepare as module
from gal_d2.testbeds.miniature import scenes
from gal_d2.testbeds.miniature.categories import CATEGORIES
from gal_d2.testbeds.miniature.faults import KINDS, kind_counts
from gal_d2.testbeds.miniature.prepare import STAMP, prepare_miniature
from gal_d2.testbeds.miniature.settings import MiniatureConfig

SMALL = MiniatureConfig(
    train_images=20, val_images=10, pool_per_category=20, object_source="digits"
)
TINY = MiniatureConfig(train_images=4, val_images=3, pool_per_category=2, object_source="digits")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small")
    return prepare_miniature(root / "miniature", root / "sources", SMALL)


@pytest.fixture(scope="module")
def long_tailed(tmp_path_factory) -> Path:
    """As many scenes as by default; the pool is small, since drawing it takes long."""
    root = tmp_path_factory.mktemp("long_tailed")
    config = MiniatureConfig(pool_per_category=1, object_source="digits")
    return prepare_miniature(root / "miniature", root / "sources", config)


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / f"annotations/miniature_{split}.json").read_text())


def truth(root: Path) -> list[dict]:
    return pyarrow.parquet.read_table(root / "pool_truth.parquet").to_pylist()


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------- LVIS v1 fields


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_lvis_api_loads_every_record(small, split):
    lvis = LVIS(str(small / f"annotations/miniature_{split}.json"))
    assert lvis.get_cat_ids() == list(range(1, 11))
    assert lvis.get_img_ids() == list(range(1, (20 if split == "train" else 10) + 1))
    for annotation in lvis.load_anns(lvis.get_ann_ids()):
        x, y, width, height = annotation["bbox"]
        assert 0 <= x < x + width <= 128
        assert 0 <= y < y + height <= 128
        assert all(len(p) >= 6 and len(p) % 2 == 0 for p in annotation["segmentation"])
        assert annotation["segmentation"]
        mask = lvis.ann_to_mask(annotation)
        ys, xs = np.nonzero(mask)
        assert annotation["area"] == mask.sum() >= 8
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


def test_polygons_cover_the_visible_pixels(monkeypatch, tmp_path):
    seen = {}

    def annotate(scenes, placed, rule, rng):
        seen[scenes.images[-1]["id"]] = {item.identity: item.visible for item in placed}
        return original(scenes, placed, rule, rng)

    original = scenes._annotate
    monkeypatch.setattr(scenes, "_annotate", annotate)
    config = dataclasses.replace(TINY, train_images=1, val_images=40)
    lvis = LVIS(
        str(
            prepare_miniature(tmp_path / "m", tmp_path / "s", config)
            / "annotations/miniature_val.json"
        )
    )
    ious = []
    for annotation in lvis.load_anns(lvis.get_ann_ids()):
        visible = seen[annotation["image_id"]][annotation["identity"]]
        mask = lvis.ann_to_mask(annotation).astype(bool)
        ious.append((mask & visible).sum() / (mask | visible).sum())
    assert len(ious) > 100
    assert min(ious) > 0.85
    assert np.mean(ious) > 0.97


@pytest.mark.parametrize("split", ["train", "val"])
def test_image_records(small, split):
    content = annotations(small, split)
    for image in content["images"]:
        assert image["coco_url"].split("/")[-2:] == [split, image["file_name"]]
        picture = cv2.imread(str(small / "images" / split / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3) == (128, 128, 3)
        listed = set(image["neg_category_ids"])
        present = {
            a["category_id"]
            for a in content["annotations"] + content["unannotated"]
            if a["image_id"] == image["id"]
        }
        assert not listed & present
        assert set(image["not_exhaustive_category_ids"]) <= present
    assert len(list((small / "images" / split).iterdir())) == len(content["images"])
    assert {"info", "licenses", "images", "annotations", "categories"} <= set(content)


def test_categories_carry_the_names_of_lvis_v1(small):
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    original = {category["name"]: category for category in LVIS_CATEGORIES}
    for category in annotations(small, "val")["categories"]:
        for field in ("synset", "synonyms", "def"):
            assert category[field] == original[category["name"]][field]


def test_partners_are_other_categories():
    names = {category.name for category in CATEGORIES}
    for category in CATEGORIES:
        assert category.partner in names - {category.name}
    assert sorted(category.label for category in CATEGORIES) == list(range(10))


# ------------------------------------------------------------------------------ the long tail


def test_counts_and_frequencies(long_tailed):
    content = annotations(long_tailed, "train")
    images = {(a["category_id"], a["image_id"]) for a in content["annotations"]}
    image_count = Counter(category_id for category_id, _ in images)
    instance_count = Counter(a["category_id"] for a in content["annotations"])
    for category in content["categories"]:
        assert category["image_count"] == image_count[category["id"]] >= 1
        assert category["instance_count"] == instance_count[category["id"]]
        count = category["image_count"]
        assert category["frequency"] == ("r" if count <= 10 else "c" if count <= 100 else "f")
    assert Counter(c["frequency"] for c in content["categories"]) == {"r": 3, "c": 3, "f": 4}
    ambiguous = {c.name for c in CATEGORIES if c.ambiguous}
    assert {c["frequency"] for c in content["categories"] if c["name"] in ambiguous} == set("rcf")
    assert annotations(long_tailed, "val")["categories"] == content["categories"]


def test_validation_has_enough_of_every_category(long_tailed):
    counts = Counter(a["category_id"] for a in annotations(long_tailed, "val")["annotations"])
    assert sorted(counts) == list(range(1, 11))
    assert min(counts.values()) >= 60


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotation_is_federated(long_tailed, split):
    content = annotations(long_tailed, split)
    present, annotated = {}, {}
    for a in content["annotations"]:
        annotated.setdefault(a["image_id"], set()).add(a["category_id"])
    for a in content["annotations"] + content["unannotated"]:
        present.setdefault(a["image_id"], set()).add(a["category_id"])
    seen = Counter()
    left_out = {(a["image_id"], a["category_id"]) for a in content["unannotated"]}
    for image in content["images"]:
        key = image["id"]
        incomplete = set(image["not_exhaustive_category_ids"])
        # Left out is only what the image does not claim to list completely.
        assert incomplete == {c for i, c in left_out if i == key} & annotated[key]
        unlisted = present[key] - annotated[key]
        assert not unlisted & set(image["neg_category_ids"])
        unknown = set(range(1, 11)) - present[key] - set(image["neg_category_ids"])
        seen.update(incomplete=bool(incomplete), unlisted=bool(unlisted), unknown=bool(unknown))
        assert annotated[key]
    # Common enough to matter, too rare to spoil the set.
    count = len(content["images"])
    assert 0.03 * count < seen["incomplete"] < 0.3 * count
    assert 0.01 * count < seen["unlisted"] < 0.25 * count
    assert seen["unknown"] > 0.5 * count


def test_objects_per_scene(long_tailed):
    for split in ("train", "val"):
        content = annotations(long_tailed, split)
        counts = Counter(a["image_id"] for a in content["annotations"] + content["unannotated"])
        assert 3 <= np.mean(list(counts.values())) <= 6
        assert max(counts.values()) <= 6


# --------------------------------------------------------------------------------- identities


def test_individuals_never_meet(long_tailed, small):
    for root in (long_tailed, small):
        train, val = (
            {a["identity"] for a in content["annotations"] + content["unannotated"]}
            for content in (annotations(root, "train"), annotations(root, "val"))
        )
        pool = {row["identity"] for row in truth(root)}
        assert not train & val
        assert not train & pool
        assert not val & pool
        assert all(identity.startswith("test/") for identity in val)


def test_backgrounds_are_from_disjoint_parts(small):
    from gal_d2.testbeds.miniature.sources import load_photographs

    widths = {photograph.name: photograph.rgb.shape[1] for photograph in load_photographs()}
    for split in ("train", "val"):
        for image in annotations(small, split)["images"]:
            background = image["background"]
            x, _, side = background["crop"]
            border = round(0.65 * widths[background["photograph"]])
            assert x + side <= border if split == "train" else x >= border


# --------------------------------------------------------------------------------------- pool


def test_pool_and_truth_agree(small):
    pool = InstancePool(small / "pool")
    rows = truth(small)
    assert len(pool) == len(rows) == len({row["pool_id"] for row in rows}) == 200
    assert list(rows[0]) == [
        "pool_id",
        "category_id",
        "kind",
        "true_category_id",
        "ambiguous",
        "identity",
    ]
    ids = {category.name: index for index, category in enumerate(CATEGORIES, start=1)}
    for row in rows:
        cut_out = pool.get(row["pool_id"])
        category = CATEGORIES[row["category_id"] - 1]
        assert cut_out.category_id == row["category_id"]
        assert row["ambiguous"] == category.ambiguous
        wrong = row["kind"] == "wrong_object"
        assert row["true_category_id"] == (ids[category.partner] if wrong else row["category_id"])
        assert cut_out.source.generator == "imitation"
        assert cut_out.source.model == "digits"
        assert cut_out.source.prompt.startswith("a photo of a single ")
        assert "_" not in cut_out.source.prompt
        assert 20 <= max(cut_out.rgba.shape[:2]) <= 110
        assert (cut_out.rgba[..., 3] >= 128).sum() > 100


def test_shares_of_the_kinds(small):
    counts = Counter((row["category_id"], row["kind"]) for row in truth(small))
    for category_id, category in enumerate(CATEGORIES, start=1):
        found = [counts[category_id, kind] for kind in KINDS]
        # Of 20: good, wrong, noise, misplaced are 25, 65, 5, 5 % or 50, 30, 10, 10 %.
        assert found == ([5, 13, 1, 1] if category.ambiguous else [10, 6, 2, 2]) + [0] * 4


def test_other_faults_are_in_the_pool_and_in_the_truth(tmp_path):
    config = dataclasses.replace(
        TINY,
        **{"pool_per_category": 10, "wrong": 0.1, "noise": 0.0, "misplaced": 0.0},
        **{"blur": 0.2, "colour": 0.1, "cut_off": 0.2, "two_objects": 0.1, "ambiguous_wrong": 0.1},
    )
    output = prepare_miniature(tmp_path / "m", tmp_path / "s", config)
    rows = truth(output)
    counts = Counter(row["kind"] for row in rows)
    assert [counts[kind] for kind in KINDS] == [30, 10, 0, 0, 20, 10, 20, 10]
    pool = InstancePool(output / "pool")
    assert all((pool.get(row["pool_id"]).rgba[..., 3] >= 128).any() for row in rows)
    assert json.loads((output / STAMP).read_text())["config"]["blur"] == 0.2


@pytest.mark.parametrize("bad", [0.0, 0.3, 0.6, 0.8])
def test_the_share_of_bad_ones_can_be_set(bad):
    config = MiniatureConfig(bad=bad)
    counts = np.array([kind_counts(shares, 300) for shares in config.fault_shares()])
    assert counts[:, 1:].sum() / counts.sum() == pytest.approx(bad, abs=0.002)
    default = [kind_counts(shares, 300) for shares in MiniatureConfig().fault_shares()]
    assert (counts.tolist() == default) == (bad == 0.6)
    assert (counts[:, 0] > 0).all()


def test_later_options_leave_what_was_made_before_valid():
    assert module._stamp(MiniatureConfig())["config"] == {
        **{"seed": 0, "train_images": 600, "val_images": 200, "pool_per_category": 300},
        **{"wrong": 0.3, "noise": 0.1, "misplaced": 0.1, "ambiguous_wrong": 0.65},
        "object_source": "auto",
    }
    assert module._stamp(MiniatureConfig(bad=0.0))["config"]["bad"] == 0.0


@pytest.mark.parametrize(
    ("shares", "usual", "ambiguous"),
    [
        (
            {"wrong": 0.0, "noise": 0.0, "misplaced": 0.0, "ambiguous_wrong": 0.0},
            [10, 0, 0, 0],
            [10, 0, 0, 0],
        ),
        ({"wrong": 1.0, "noise": 0.0, "misplaced": 0.0}, [0, 10, 0, 0], [0, 10, 0, 0]),
        (
            {"wrong": 0.35, "noise": 0.35, "misplaced": 0.3, "ambiguous_wrong": 1.0},
            [0, 4, 3, 3],
            [0, 10, 0, 0],
        ),
    ],
)
def test_kind_counts_at_the_limits(shares, usual, ambiguous):
    config = MiniatureConfig(pool_per_category=10, **shares)
    for category, shares_of_faults in zip(CATEGORIES, config.fault_shares(), strict=True):
        counts = kind_counts(shares_of_faults, 10)
        assert counts == (ambiguous if category.ambiguous else usual) + [0] * 4


# -------------------------------------------------------------------------- the folder's life


def test_equal_seeds_give_equal_bytes(tmp_path):
    first = prepare_miniature(tmp_path / "a", tmp_path / "s", TINY)
    second = prepare_miniature(tmp_path / "b", tmp_path / "s", TINY)
    assert files(first) == files(second)
    assert len(files(first)) == 4 + 3 + 2 + 1 + 2
    _match, mismatch, errors = filecmp.cmpfiles(first, second, files(first), shallow=False)
    assert (mismatch, errors) == ([], [])
    other = prepare_miniature(tmp_path / "c", tmp_path / "s", dataclasses.replace(TINY, seed=1))
    assert {row["pool_id"] for row in truth(first)}.isdisjoint(
        row["pool_id"] for row in truth(other)
    )


def test_a_second_run_does_nothing_and_another_config_replaces(tmp_path, monkeypatch):
    output = prepare_miniature(tmp_path / "m", tmp_path / "s", TINY)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", lambda *a: pytest.fail("built again"))
        assert prepare_miniature(output, tmp_path / "s", TINY) == output
    (output / "stale").touch()
    prepare_miniature(output, tmp_path / "s", TINY, force=True)
    assert not (output / "stale").exists()
    prepare_miniature(output, tmp_path / "s", dataclasses.replace(TINY, val_images=2))
    assert len(annotations(output, "val")["images"]) == 2
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    (output / "stale").touch()
    prepare_miniature(output, tmp_path / "s", dataclasses.replace(TINY, val_images=2))
    assert not (output / "stale").exists()


def test_a_damaged_folder_is_made_anew(tmp_path):
    output = prepare_miniature(tmp_path / "m", tmp_path / "s", TINY)
    (output / "pool_truth.parquet").unlink()
    prepare_miniature(output, tmp_path / "s", TINY)
    assert (output / "pool_truth.parquet").exists()
    (output / STAMP).write_text("[")
    assert not module._is_current(output, tmp_path / "s", TINY)


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_run_leaves_nothing_half_made(tmp_path, monkeypatch, before):
    output = tmp_path / "m"
    if before:
        prepare_miniature(output, tmp_path / "s", TINY)
        listed = files(output)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_pool", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_miniature(output, tmp_path / "s", TINY, force=True)
    assert output.exists() == before
    assert not list(tmp_path.glob(".m.partial*"))
    if before:
        assert files(output) == listed
    # What a killed run leaves is tidied up by the next one.
    (tmp_path / ".m.partial").mkdir()
    (tmp_path / ".m.partial" / "half").touch()
    prepare_miniature(output, tmp_path / "s", TINY, force=True)
    assert (output / STAMP).is_file()
    assert not list(tmp_path.glob(".m.partial*"))


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"m exists and is no prepared miniature"):
        prepare_miniature(tmp_path / "m", tmp_path / "s", TINY, force=True)
    with pytest.raises(UserError, match="is no prepared miniature"):
        prepare_miniature(tmp_path / "m" / "thesis.tex", tmp_path / "s", TINY)
    assert (tmp_path / "m" / "thesis.tex").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x cannot be written to \(Not a directory\)"):
        prepare_miniature(tmp_path / "file" / "x" / "m", tmp_path / "s", TINY)


def test_digits_are_replaced_when_the_real_objects_turn_up(tmp_path, monkeypatch, caplog):
    config = dataclasses.replace(TINY, object_source="auto")
    monkeypatch.setattr(
        "gal_d2.testbeds.miniature.sources.find_fashion_mnist", lambda sources: None
    )
    monkeypatch.setattr(module, "has_fashion_mnist", lambda sources: False)
    with caplog.at_level(logging.WARNING):
        output = prepare_miniature(tmp_path / "m", tmp_path / "s", config)
    assert "handwritten digits instead" in caplog.text
    assert json.loads((output / STAMP).read_text())["objects"] == "digits"
    assert module._is_current(output, tmp_path / "s", config)
    monkeypatch.setattr(module, "has_fashion_mnist", lambda sources: True)
    assert not module._is_current(output, tmp_path / "s", config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "seed is -1"),
        ("train_images", 0, "train_images is 0"),
        ("val_images", 0, "val_images is 0"),
        ("pool_per_category", 0, "pool_per_category is 0"),
        ("wrong", 1.5, r"wrong is 1.5: it must lie in \[0, 1\]"),
        ("noise", -0.1, "noise is -0.1"),
        ("misplaced", float("nan"), "misplaced is nan"),
        ("ambiguous_wrong", 2, "ambiguous_wrong is 2"),
        ("wrong", 0.9, r"wrong \+ noise \+ misplaced is 1.1, more than 1"),
        ("object_source", "cats", "object_source is 'cats'"),
    ],
)
def test_bad_config(field, value, message):
    with pytest.raises(UserError, match=message):
        MiniatureConfig(**{field: value})
