"""A JSON that is read piece by piece gives what it gives as a whole, or is read as a whole."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from annotation_mutations import mutated, small_coco, small_lvis

from gal_d2.datasets import annotation_cache, annotation_stream
from gal_d2.datasets.annotation_cache import CheckedAnnotations
from gal_d2.datasets.annotation_file import check_annotations
from gal_d2.datasets.annotation_stream import AnnotationStream, NotStreamedError
from gal_d2.errors import UserError

KEYS = ("info", "images", "annotations", "categories")


@pytest.fixture(params=[1, 7, 1 << 20])
def path(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Of a JSON; blocks end at every place of it."""
    monkeypatch.setattr(annotation_stream, "_BLOCK", request.param)
    return tmp_path / "own.json"


def read(path: Path) -> tuple[dict, list[dict]]:
    with AnnotationStream(path) as stream:
        content = dict(stream.content)
        chunks = list(stream.chunks(2))
    assert all(len(chunk) == 2 for chunk in chunks[:-1])
    return content, list(itertools.chain.from_iterable(chunks))


@pytest.mark.parametrize("order", list(itertools.permutations(KEYS)))
@pytest.mark.parametrize("indent", [None, 1])
def test_in_any_order_of_keys(path: Path, order: tuple[str, ...], indent: int | None) -> None:
    content = small_lvis() | {"info": {"description": 'pão "annotations": [{"images"', "n": 1.5}}
    content = {key: content[key] for key in order}
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    behind = order[order.index("annotations") + 1 :]
    found, annotations = read(path)
    assert annotations == content["annotations"]
    assert found["images"] == content["images"] and found["categories"] == content["categories"]
    assert set(found) >= set(KEYS) - {"annotations"} - set(behind)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "{", "7", '{"images": 1, "categories": 2', "\ufeff{}", '{"a" "b"}'),
        '{"images": [], "categories": [], "annotations": []}',
        '{"images": [], "categories": [], "annotations": [1]}',
        '{"images": [], "categories": [], "annotations": [{}}',
        '{"images": [], "categories": [], "annotations": [{}], "images": [1]}',
        '{"images": [], "categories": [], "annotations": [{}], "annotations": [{}]}',
        '{"images": [], "categories": [], "annotations": [{}]} and more',
        '{"images": [], "annotations": [{}], "images": [], "categories": []}',
        '{"annotations": [{}], "images": []}',
        '{"annotations": [{"a": {"images": []}}], "categories": []}',
        '{"annotations": [{}], "x": {"images": [], "categories": []}}',
        '{"annotations": [{"images": [], "categories": []}]}',
    ],
)
def test_unusual_files_are_not_streamed(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(NotStreamedError):
        read(path)


def whole_and_streamed(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []
    for least in (1 << 60, 0):
        monkeypatch.setattr(annotation_cache, "LEAST_BYTES", least)
        try:
            found.append(check_annotations(path))
        except UserError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("make", [small_coco, small_lvis])
def test_mutated_files_give_the_same_or_the_same_sentence(
    path: Path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    read_some = 0
    for _ in range(60):
        path.write_bytes(mutated(make(), rng))
        whole, streamed = whole_and_streamed(path, monkeypatch)
        if not isinstance(whole, CheckedAnnotations):
            assert streamed == whole
            continue
        read_some += 1
        assert streamed.about == whole.about
        assert streamed.table.arrays.keys() == whole.table.arrays.keys()
        for name, array in whole.table.arrays.items():
            np.testing.assert_array_equal(streamed.table.arrays[name], array)
    assert read_some
