"""Candidates as a generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.generation.cutout_generator import (
    CutoutGenerator,
    FolderCandidates,
    PoolCandidates,
    open_candidates,
)
from gal_d2.generation.generator import NO_CANDIDATE
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.shard import shard_names
from gal_d2.pool.writer import PoolWriter

NAMES = CategoryNames([{"id": 3, "name": "bun"}, {"id": 5, "name": "boot"}])


@pytest.fixture
def pool(tmp_path: Path) -> InstancePool:
    """20 cut-outs of category 3, one of 5."""
    with PoolWriter(tmp_path / "candidates") as writer:
        for number in range(21):
            rgba = np.full((4, 5, 4), 10 * number + 5, np.uint8)
            source = CutOutSource("imitation", "m", "a bun", seed=number)
            writer.add(3 if number < 20 else 5, rgba, source=source)
    return InstancePool(tmp_path / "candidates")


def test_each_candidate_is_drawn_once_and_keeps_its_source(pool: InstancePool, request_for) -> None:
    generator = CutoutGenerator(PoolCandidates(pool))
    images = generator.generate([request_for(3, index) for index in range(20)])
    assert sorted(image.source.seed for image in images) == list(range(20))
    assert [image.request.index for image in images] == list(range(20))
    for image in images:
        assert image.finished and not image.reason
        assert (image.rgb == 10 * image.source.seed + 5).all()
        assert (image.alpha == 10 * image.source.seed + 5).all()
    assert generator.draws_alpha


def test_what_is_drawn_depends_on_the_request_alone(pool: InstancePool, request_for) -> None:
    def seeds(generator: CutoutGenerator, indices) -> list[int]:
        images = generator.generate([request_for(3, index) for index in indices])
        return [image.source.seed for image in images]

    whole = seeds(CutoutGenerator(PoolCandidates(pool)), range(20))
    again = CutoutGenerator(PoolCandidates(InstancePool(pool.root)))
    assert [seeds(again, [index])[0] for index in reversed(range(20))] == whole[::-1]
    assert seeds(CutoutGenerator(PoolCandidates(pool), seed=1), range(20)) != whole
    assert whole != list(range(20))


def test_nothing_beyond_the_last_candidate(pool: InstancePool, request_for) -> None:
    generator = CutoutGenerator(PoolCandidates(pool))
    images = generator.generate([request_for(5, 0), request_for(5, 1), request_for(9, 0)])
    assert [image.reason for image in images] == ["", NO_CANDIDATE, NO_CANDIDATE]
    assert images[1].rgb is None


def test_damaged_rows_are_reported(pool: InstancePool, request_for) -> None:
    (name,) = shard_names(pool.root)
    path = pool.root / name
    content = bytearray(path.read_bytes())
    content[content.find(b"WEBPVP8L") + 20] ^= 0xFF
    path.write_bytes(content)
    generator = CutoutGenerator(PoolCandidates(InstancePool(pool.root)))
    images = generator.generate([request_for(3, index) for index in range(20)])
    assert [image.reason for image in images].count("unreadable") == 1


def test_folder_of_images_with_and_without_transparency(tmp_path: Path, request_for) -> None:
    (tmp_path / "bun").mkdir()
    Image.new("RGB", (6, 4), (9, 8, 7)).save(tmp_path / "bun" / "a.png")
    cut_out = Image.new("RGBA", (6, 4), (1, 2, 3, 200))
    cut_out.putpixel((5, 3), (0, 0, 0, 0))
    cut_out.save(tmp_path / "bun" / "b.png")
    # An alpha channel that hides nothing is no cut-out.
    opaque = Image.new("RGBA", (6, 4), (1, 2, 3, 255))
    opaque.putpixel((0, 0), (90, 90, 90, 255))
    opaque.save(tmp_path / "bun" / "d.png")
    (tmp_path / "bun" / "c.png").write_text("no image")
    generator = CutoutGenerator(open_candidates(tmp_path, NAMES))
    assert not generator.draws_alpha
    images = {
        image.source.origin: image
        for image in generator.generate([request_for(3, index) for index in range(4)])
    }
    plain, transparent = images["bun/a.png"], images["bun/b.png"]
    assert plain.alpha is None and not plain.finished
    assert plain.rgb.shape == (4, 6, 3) and plain.rgb[0, 0].tolist() == [9, 8, 7]
    assert transparent.finished and (transparent.alpha[:3] == 200).all()
    assert images["bun/d.png"].alpha is None and not images["bun/d.png"].finished
    assert transparent.rgb[0, 0].tolist() == [1, 2, 3]
    assert images["bun/c.png"].reason == "unreadable"


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CANDIDATES is '.*none', which is no folder"):
        open_candidates(tmp_path / "none", NAMES)
    (tmp_path / "pizza").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "pizza" / "a.png")
    with pytest.raises(UserError, match="CANDIDATES.*has no image in a folder"):
        FolderCandidates(tmp_path, NAMES)


def test_candidates_of_another_export_are_drawn_by_name(tmp_path: Path, request_for) -> None:
    with PoolWriter(tmp_path, names={2: "bun", 3: "boot"}) as writer:
        for category_id, value in ((2, 20), (3, 30)):
            rgba = np.full((4, 5, 4), value, np.uint8)
            writer.add(category_id, rgba, source=CutOutSource("imitation"))
    generator = CutoutGenerator(open_candidates(tmp_path, NAMES))
    bun, boot = generator.generate([request_for(3, 0), request_for(5, 0)])
    assert (bun.rgb == 20).all() and (boot.rgb == 30).all()
