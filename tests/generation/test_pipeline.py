"""Generate, segment, filter, store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_by_hand import FLAGGED_INDEX, SIDE, SMALL_INDEX, DarkSegmenter, DiscGenerator

from gal_d2.errors import UserError
from gal_d2.generation.filters import AreaFilter, Candidate, Verdict
from gal_d2.generation.generator import GeneratedImage, GenerationRequest
from gal_d2.generation.instance_cutter import InstanceCutter
from gal_d2.generation.pipeline import InstancePipeline
from gal_d2.generation.store import PoolStore
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool


def pipeline_in(folder: Path, *, filters=None, recipe: str = "r", **options) -> InstancePipeline:
    filters = [AreaFilter(0.05, 0.95)] if filters is None else filters
    cutter = InstanceCutter([DarkSegmenter()], filters)
    return InstancePipeline(DiscGenerator(), cutter, PoolStore(str(folder), recipe, **options))


def content(folder: Path) -> dict[int, tuple]:
    pool = InstancePool(folder, allow_empty=True)
    return {int(i): (pool.get(i).rgba.tobytes(), pool.get(i).source) for i in pool.all_ids()}


def test_from_requests_to_a_pool(tmp_path: Path, request_for) -> None:
    requests = [request_for(category_id, i) for i in range(8) for category_id in (7, 3)]
    with pipeline_in(tmp_path) as pipeline:
        outcomes = pipeline.run(requests)
    assert [outcome.request for outcome in outcomes] == requests
    reasons = {outcome.request.index: outcome.reason for outcome in outcomes}
    assert reasons == {
        i: {FLAGGED_INDEX: "flagged", SMALL_INDEX: "area"}.get(i, "") for i in range(8)
    }
    pool = InstancePool(tmp_path)
    assert pool.counts() == {3: 6, 7: 6}
    kept = outcomes[0]
    cut_out = pool.get(kept.pool_id)
    request = kept.request
    assert cut_out.category_id == request.category_id == 7
    origin = f"{request.template}#0"
    assert cut_out.source == CutOutSource("discs", "v1", request.prompt, request.seed, origin)
    assert cut_out.rgba.shape == (25, 25, 4)  # a disc of radius 12, cropped
    assert cut_out.rgba[12, 12].tolist() == [*(request.seed >> s & 63 for s in (0, 6, 12)), 255]
    assert cut_out.rgba[0, 0, 3] == 0
    disc = (cut_out.rgba[..., 3] > 0).sum()
    assert cut_out.scores == {"area": pytest.approx(disc / SIDE**2)} == kept.scores
    assert pipeline.statistics.drawn == {3: 8, 7: 8}
    assert pipeline.statistics.kept == {3: 6, 7: 6}
    assert pipeline.statistics.by_reason() == {"flagged": 2, "area": 2}
    assert pipeline.seconds.keys() == {"generate", "cut", "store"}


def test_nothing_is_drawn_twice_kept_or_dropped(tmp_path: Path, request_for) -> None:
    with pipeline_in(tmp_path) as pipeline:
        before = pipeline.run([request_for(3, i) for i in range(6)])
    with pipeline_in(tmp_path) as pipeline:
        outcomes = pipeline.run([request_for(3, i) for i in range(8)])
        assert [request.index for request in pipeline.generator.drawn] == [6, 7]
    assert outcomes[:6] == before
    assert [outcome.recalled for outcome in outcomes] == [True] * 6 + [False] * 2
    assert pipeline.statistics.drawn == {3: 2}


def test_interrupted_between_pool_and_journal(tmp_path: Path, request_for) -> None:
    """The journal's last line is lost: its images are drawn again, and not stored twice."""
    for folder in ("whole", "torn"):
        with pipeline_in(tmp_path / folder) as pipeline:
            pipeline.run([request_for(3, i) for i in range(8)])
    for path in (tmp_path / "torn" / "journal").iterdir():
        path.unlink()
    shards = sorted((tmp_path / "torn").glob("*.arrow"))
    with pipeline_in(tmp_path / "torn") as pipeline:
        outcomes = pipeline.run([request_for(3, i) for i in range(8)])
        assert pipeline.store.added == 0
    assert sorted((tmp_path / "torn").glob("*.arrow")) == shards
    assert {o.pool_id for o in outcomes} - {None} == content(tmp_path / "torn").keys()
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


def test_what_was_not_flushed_is_not_remembered(tmp_path: Path, request_for) -> None:
    """The other order would lose cut-outs: a journal that speaks of what no pool has."""
    pipeline = pipeline_in(tmp_path)
    pipeline.run([request_for(3, i) for i in range(4)])
    abandoned = pipeline_in(tmp_path)  # another process, after this one was killed
    assert len(abandoned.store.journal) == 0 and not content(tmp_path)
    pipeline.flush()
    after = pipeline_in(tmp_path)
    assert len(after.store.journal) == 4 and len(content(tmp_path)) == 3


def test_flushes_by_the_clock(tmp_path: Path, request_for) -> None:
    pipeline = pipeline_in(tmp_path, flush_seconds=0)
    pipeline.run([request_for(3, 0)])
    assert len(content(tmp_path)) == 1


def test_ids_do_not_depend_on_how_requests_come(tmp_path: Path, request_for) -> None:
    with pipeline_in(tmp_path / "at once") as pipeline:
        pipeline.run([request_for(c, i) for c in (3, 7) for i in range(8)])
    with pipeline_in(tmp_path / "one by one") as pipeline:
        for index in reversed(range(8)):
            for category_id in (7, 3):
                pipeline.run([request_for(category_id, index)])
                pipeline.flush()
    assert content(tmp_path / "at once") == content(tmp_path / "one by one")


class RecordingFilter:
    """Drops the images of some indices; remembers the groups that it saw."""

    def __init__(self, name: str, dropped: Sequence[int] = ()) -> None:
        self.name = name
        self.groups: list[list[tuple[int, int]]] = []
        self._dropped = dropped

    def check(self, group: Sequence[Candidate]) -> list[Verdict]:
        requests = [candidate.image.request for candidate in group]
        self.groups.append([(request.category_id, request.index) for request in requests])
        return [Verdict(float(r.index), r.index not in self._dropped) for r in requests]


def test_filters_see_groups_of_one_category_less_what_was_dropped(
    tmp_path: Path, request_for
) -> None:
    first, second = RecordingFilter("first", [1]), RecordingFilter("second", [0, 1])
    with pipeline_in(tmp_path, filters=[first, second]) as pipeline:
        outcomes = pipeline.run([request_for(c, i) for i in range(3) for c in (7, 3)])
    assert first.groups == [[(3, 0), (3, 1), (3, 2)], [(7, 0), (7, 1), (7, 2)]]
    assert second.groups == [[(3, 0), (3, 2)], [(7, 0), (7, 2)]]
    assert [o.reason for o in outcomes] == ["second", "second", "first", "first", "", ""]
    assert [o.scores for o in outcomes[1::2]] == [
        {"first": 0, "second": 0},
        {"first": 1},
        {"first": 2, "second": 2},
    ]


class HalfSegmenter:
    """Finds the left or the right half of every image, or nothing."""

    is_matting = False

    def __init__(self, name: str, columns: slice) -> None:
        self.name = name
        self._columns = columns

    def segment(self, images, requests) -> list[np.ndarray]:
        alphas = []
        for image in images:
            alpha = np.zeros(image.shape[:2], np.uint8)
            alpha[:, self._columns] = 255
            alphas.append(alpha)
        return alphas


class Brightness:
    """Takes the brightness of a picture's middle for its likeness to any text."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def text_similarity(self, images, texts) -> np.ndarray:
        self.texts += texts
        return np.array([image[len(image) // 2, len(image) // 2, 0] / 255 for image in images])


def halves(request: GenerationRequest, left: int, right: int) -> GeneratedImage:
    rgb = np.zeros((10, 10, 3), np.uint8)
    rgb[:, :5], rgb[:, 5:] = left, right
    rgb[1::2, :, 2] += 9  # neither half is of one colour
    return GeneratedImage(request, rgb, CutOutSource("halves"))


def test_of_several_masks_the_one_that_fits_best_is_taken(request_for) -> None:
    brightness = Brightness()
    cutter = InstanceCutter(
        [HalfSegmenter("left", slice(0, 5)), HalfSegmenter("right", slice(5, 10)),
         HalfSegmenter("none", slice(0, 0))],
        [],
        similarity=brightness,
    )  # fmt: skip
    images = [halves(request_for(1, 0), 51, 102), halves(request_for(1, 1, "boot"), 204, 102)]
    first, second = cutter.check(images)
    assert first.scores == {"mask_left": pytest.approx(0.2), "mask_right": pytest.approx(0.4)}
    assert second.scores == {"mask_left": pytest.approx(0.8), "mask_right": pytest.approx(0.4)}
    assert (first.width, first.height) == (5, 10)
    assert set(brightness.texts) == {"a photo of a single bun", "a photo of a single boot"}
    store_pixels = [_decode(image)[0, 0, 0] for image in (first, second)]
    assert store_pixels == [102, 204]


def _decode(image) -> np.ndarray:
    from gal_d2.pool.cut_out import decode_rgba

    return decode_rgba(image.encoded, image.height, image.width)


def test_no_object_is_a_reason(request_for) -> None:
    cutter = InstanceCutter([HalfSegmenter("none", slice(0, 0))], [])
    (image,) = cutter.check([halves(request_for(1, 0), 1, 2)])
    assert (image.reason, image.encoded) == ("no_object", None)


def test_alpha_of_the_generator_is_kept_and_no_segmenter_runs(request_for) -> None:
    rgb = np.full((8, 9, 3), 50, np.uint8)
    rgb[3] = 70
    alpha = np.zeros((8, 9), np.uint8)
    alpha[2:5, 3:7] = 200
    alpha[2, 3] = 90
    image = GeneratedImage(request_for(1, 0), rgb, CutOutSource("layers"), alpha)
    area = AreaFilter(0.1, 0.2)
    (checked,) = InstanceCutter([], [area]).check([image])
    assert not checked.reason
    assert checked.scores == {"area": pytest.approx(11 / 72)}
    np.testing.assert_array_equal(_decode(checked)[..., 3], alpha[2:5, 3:7])
    empty = GeneratedImage(request_for(1, 1), rgb, CutOutSource("layers"), np.zeros_like(alpha))
    assert InstanceCutter([], []).check([empty])[0].reason == "no_object"


def test_opaque_image_without_segmenter_is_a_mistake(request_for) -> None:
    with pytest.raises(ValueError, match="no segmenter"):
        InstanceCutter([], []).check([halves(request_for(1, 0), 1, 2)])


def test_finished_cut_out_is_stored_as_it_is(tmp_path: Path, request_for) -> None:
    rgba = np.full((6, 7, 4), 9, np.uint8)  # below every threshold, and with an empty margin
    rgba[1:5, 1:6, 3] = 255
    rgba[0, :, 3] = 0
    rgba[3, :, :3] = 20
    image = GeneratedImage(
        request_for(1, 0), rgba[..., :3], CutOutSource("made"), rgba[..., 3], finished=True
    )
    (checked,) = InstanceCutter([], [AreaFilter()]).check([image])
    np.testing.assert_array_equal(_decode(checked), rgba)


def test_full_disk_is_one_sentence_and_forgets_what_was_lost(
    tmp_path: Path, request_for, monkeypatch
) -> None:
    pipeline = pipeline_in(tmp_path)
    pipeline.run([request_for(3, 0)])

    def no_room(*arguments) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gal_d2.pool.shard.ShardWriter.seal", no_room)
        with pytest.raises(UserError, match="No space left.*run again"):
            pipeline.flush()
    pipeline.flush()
    assert len(pipeline_in(tmp_path).store.journal) == 0
    assert not content(tmp_path)


def test_a_pool_of_other_ids_is_not_added_to(tmp_path: Path, request_for) -> None:
    with pipeline_in(tmp_path, names={3: "cup", 7: "bun"}) as pipeline:
        pipeline.run([request_for(7, 0)])
    assert InstancePool(tmp_path).category_names == {3: "cup", 7: "bun"}
    with pytest.raises(UserError, match=r"id 7 is 'bun'.*'bun' has the id 8: choose another"):
        pipeline_in(tmp_path, names={4: "cup", 8: "bun"}, recipe="s")


def painted(request: GenerationRequest, rgb: np.ndarray) -> GeneratedImage:
    return GeneratedImage(request, rgb, CutOutSource("painted"))


def test_images_of_one_colour_are_blank_and_fp16_is_named_once(request_for, caplog) -> None:
    """What a decoder that overflows in half precision gives; the segmenter never sees it."""
    black = np.zeros((10, 10, 3), np.uint8)
    white = np.full((10, 10, 3), 253, np.uint8)
    white[3, 3] = 255  # rounding is no contrast
    cutter = InstanceCutter([HalfSegmenter("left", slice(0, 5))], [])
    for _ in range(2):
        checked = cutter.check(
            [painted(request_for(1, 0), black), painted(request_for(1, 1), white)]
        )
        assert [image.reason for image in checked] == ["blank", "blank"]
    (record,) = caplog.records
    assert "GAL.GENERATOR.DTYPE" in record.getMessage()


def test_one_blank_image_among_others_is_dropped_without_a_word(request_for, caplog) -> None:
    cutter = InstanceCutter([HalfSegmenter("left", slice(0, 5))], [])
    black = np.zeros((10, 10, 3), np.uint8)
    images = [painted(request_for(1, 0), black), halves(request_for(1, 1), 1, 100)]
    assert [image.reason for image in cutter.check(images)] == ["blank", ""]
    assert not caplog.records


def test_a_drawn_cut_out_that_is_too_transparent_has_no_object(request_for) -> None:
    image = halves(request_for(1, 0), 1, 100)
    faint = GeneratedImage(image.request, image.rgb, image.source, np.full((10, 10), 127, np.uint8))
    (checked,) = InstanceCutter([], []).check([faint])
    assert (checked.reason, checked.encoded) == ("no_object", None)
