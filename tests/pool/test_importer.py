"""Importing folders and X-Paste lists into a pool."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gal_d2.pool.importer
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.importer import ImageFile, import_files, list_folder, list_xpaste
from gal_d2.pool.instance_pool import InstancePool

NAMES = CategoryNames(
    [
        {"id": 5, "name": "bun", "synonyms": ["bun", "roll"]},
        {"id": 2, "name": "sandal_(type_of_shoe)", "synonyms": ["sandal"]},
        {"id": 9, "name": "boot"},
    ]
)
SOURCE = CutOutSource("test", "model", "a photo")


def save(path: Path, seed: int, border: int = 2) -> np.ndarray:
    """Save an image whose visible part is (4, 3); returns that part, (4, 3, 4) uint8."""
    visible = np.random.default_rng(seed).integers(1, 256, (4, 3, 4)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    pad = ((border, border), (border, border), (0, 0))
    Image.fromarray(np.pad(visible, pad)).save(path)
    return visible


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "cutouts"
    save(root / "bun" / "a.png", 0)
    save(root / "bun" / "deeper" / "b.PNG", 1)
    save(root / "Sandal (type of shoe)" / "a.png", 2)
    save(root / "9" / "a.webp", 3)
    save(root / "bunn" / "a.png", 4)
    (root / "bun" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    return root


def labels(files: list[ImageFile]) -> dict[str, int]:
    return {file.label: file.category_id for file in files}


def test_folders_are_called_by_name_or_id(folder: Path) -> None:
    found = list_folder(folder, NAMES)
    assert labels(found.files) == {
        "9/a.webp": 9,
        "Sandal (type of shoe)/a.png": 2,
        "bun/a.png": 5,
        "bun/deeper/b.PNG": 5,
    }
    assert found.unknown == {"bunn": (1, ["bun"])}
    assert all(file.crop for file in found.files)


def test_a_folder_that_is_called_by_an_id_is_named(folder: Path, caplog) -> None:
    list_folder(folder, NAMES)
    (record,) = caplog.records
    assert "/9 has only an id for a name: it is taken as 'boot'" in record.message


def test_the_pool_keeps_the_names(folder: Path, tmp_path: Path) -> None:
    files = list_folder(folder, NAMES).files
    import_files(files, tmp_path / "pool", SOURCE, names=NAMES)
    assert InstancePool(tmp_path / "pool").category_names == NAMES.names
    other = CategoryNames([{"id": 5, "name": "boot"}, {"id": 9, "name": "bun"}])
    with pytest.raises(UserError, match="id 5 is 'bun'.*choose another folder"):
        import_files(list_folder(folder, other).files, tmp_path / "pool", SOURCE, names=other)


def test_folder_with_chosen_categories(folder: Path) -> None:
    assert labels(list_folder(folder, NAMES, {9}).files) == {"9/a.webp": 9}


def test_folder_is_cropped_to_alpha_and_stored(folder: Path, tmp_path: Path) -> None:
    report = import_files(list_folder(folder, NAMES).files, tmp_path / "pool", SOURCE)
    assert report.added == {5: 2, 2: 1, 9: 1}
    assert (report.already_stored, report.failed) == (0, {})
    pool = InstancePool(tmp_path / "pool")
    cut_out = pool.get(pool.ids(2)[0])
    expected = save(tmp_path / "again.png", 2)
    np.testing.assert_array_equal(cut_out.rgba, expected)
    assert cut_out.source.generator == "test"
    assert cut_out.source.model == "model"
    assert cut_out.source.prompt == "a photo"
    assert cut_out.source.origin.startswith("Sandal (type of shoe)/a.png#")


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_folder_that_is_none(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("")
    elif kind == "empty":
        root.mkdir()
    message = "has no category folders" if kind == "empty" else "is not a folder"
    with pytest.raises(UserError, match=f"root {message}"):
        list_folder(root, NAMES)


def test_import_goes_on_where_it_stopped_without_decoding(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = list_folder(folder, NAMES).files
    import_files(files[:2], tmp_path / "pool", SOURCE)
    encoded: list[tuple[int, ...]] = []
    encode = gal_d2.pool.importer.encode_rgba
    monkeypatch.setattr(
        gal_d2.pool.importer,
        "encode_rgba",
        lambda rgba: encoded.append(rgba.shape) or encode(rgba),
    )
    report = import_files(files, tmp_path / "pool", SOURCE)
    assert (report.added.total(), report.already_stored) == (2, 2)
    assert len(encoded) == 2
    assert len(InstancePool(tmp_path / "pool")) == 4


def test_changed_file_is_imported_and_a_copy_is_not(folder: Path, tmp_path: Path) -> None:
    files = list_folder(folder, NAMES, {2}).files
    import_files(files, tmp_path / "pool", SOURCE)
    save(files[0].path, 77)
    assert import_files(files, tmp_path / "pool", SOURCE).added == {2: 1}
    # The same pixels in another file, with another border: the same cut-out.
    save(files[0].path.with_name("copy.png"), 77, border=5)
    report = import_files(list_folder(folder, NAMES, {2}).files, tmp_path / "pool", SOURCE)
    assert (report.added, report.already_stored) == ({}, 2)


def test_bad_images_are_named_and_skipped(tmp_path: Path) -> None:
    root = tmp_path / "cutouts" / "bun"
    good = save(root / "good.png", 0)
    content = (root / "good.png").read_bytes()
    (root / "truncated.png").write_bytes(content[: len(content) * 2 // 3])
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("no image")
    Image.new("RGB", (4, 4)).save(root / "rgb.png")
    Image.new("RGB", (4, 4)).save(root / "photo.jpg")
    Image.new("RGBA", (4, 4)).save(root / "transparent.png")
    (root / "link.png").symlink_to("nowhere")
    report = import_files(list_folder(root.parent, NAMES).files, tmp_path / "pool", SOURCE)
    assert report.added == {5: 1}
    reasons = {Path(path).name: reason for path, reason in report.failed.items()}
    assert reasons.keys() == {
        "truncated.png",
        "empty.png",
        "text.png",
        "rgb.png",
        "photo.jpg",
        "transparent.png",
        "link.png",
    }
    assert "no alpha channel" in reasons["rgb.png"]
    assert "no alpha channel" in reasons["photo.jpg"]
    assert "fully transparent" in reasons["transparent.png"]
    assert "No such file" in reasons["link.png"]
    assert all(reasons.values())
    (pool_id,) = InstancePool(tmp_path / "pool").all_ids()
    np.testing.assert_array_equal(InstancePool(tmp_path / "pool").get(pool_id).rgba, good)


def test_other_modes_with_transparency(tmp_path: Path) -> None:
    root = tmp_path / "cutouts" / "bun"
    root.mkdir(parents=True)
    grey = Image.new("LA", (4, 3), (90, 255))
    grey.putpixel((0, 0), (0, 0))
    grey.save(root / "grey.png")
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    palette.save(root / "palette.png", transparency=0)
    report = import_files(list_folder(root.parent, NAMES).files, tmp_path / "pool", SOURCE)
    assert (report.added, report.failed) == ({5: 2}, {})
    pool = InstancePool(tmp_path / "pool")
    pixels = {tuple(pool.get(i).rgba[2, 3].tolist()) for i in pool.all_ids()}
    assert pixels == {(90, 90, 90, 255), (10, 20, 30, 255)}


def test_xpaste_list(tmp_path: Path) -> None:
    cropped = save(tmp_path / "images" / "a.png", 0)
    save(tmp_path / "images" / "b.png", 1)
    save(tmp_path / "c.png", 2)
    listing = {
        "0": ["images/a.png", "*images/b.png"],  # smallest id: 2
        "2": [f"*{tmp_path / 'c.png'}"],
        "3": ["x.png", "y.png"],
        "boots": ["z.png"],
    }
    (tmp_path / "pool.json").write_text(json.dumps(listing))
    found = list_xpaste(tmp_path / "pool.json", NAMES)
    assert [(f.category_id, f.crop) for f in found.files] == [(2, True), (2, False), (9, False)]
    assert found.unknown == {"3": (2, []), "boots": (1, ["boot"])}
    report = import_files(found.files, tmp_path / "pool", SOURCE)
    assert (report.added, report.failed) == ({2: 2, 9: 1}, {})
    pool = InstancePool(tmp_path / "pool")
    by_shape = {pool.get(i).rgba.shape: pool.get(i).rgba for i in pool.ids(2)}
    assert by_shape.keys() == {(4, 3, 4), (8, 7, 4)}
    np.testing.assert_array_equal(by_shape[4, 3, 4], cropped)


def test_xpaste_image_root_and_chosen_categories(tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_text(json.dumps({"0": ["a.png"], "1": ["*b.png"]}))
    found = list_xpaste(tmp_path / "pool.json", NAMES, {5}, tmp_path / "elsewhere")
    assert [file.path for file in found.files] == [tmp_path / "elsewhere" / "b.png"]


def test_file_listed_with_and_without_star_is_two_cut_outs(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    (tmp_path / "pool.json").write_text(json.dumps({"0": ["a.png", "*a.png"]}))
    files = list_xpaste(tmp_path / "pool.json", NAMES).files
    assert import_files(files, tmp_path / "pool", SOURCE).added == {2: 2}
    assert import_files(files, tmp_path / "pool", SOURCE).already_stored == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list"),
        ('{"0": "a.png"}', "'0' is not a list of paths"),
        ('{"0": [3]}', "'0' is not a list of paths"),
        ("{", "is not JSON"),
    ],
)
def test_bad_xpaste_lists_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pool.json").write_text(content)
    with pytest.raises(UserError, match=rf"pool\.json.*{message}"):
        list_xpaste(tmp_path / "pool.json", NAMES)


def test_many_files_keep_their_order_and_all_arrive(tmp_path: Path) -> None:
    for seed in range(70):
        save(tmp_path / "cutouts" / "bun" / f"{seed:03}.png", seed)
    seen: list[str] = []

    def progress(results):
        for result in results:
            seen.append(result[0].label)
            yield result

    files = list_folder(tmp_path / "cutouts", NAMES).files
    report = import_files(files, tmp_path / "pool", SOURCE, workers=1, progress=progress)
    assert report.added == {5: 70}
    assert seen == [file.label for file in files]
