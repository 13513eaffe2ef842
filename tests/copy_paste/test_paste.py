"""Copy-paste on arrays: exact small cases, and properties of random scenes."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from gal_d2.copy_paste import masks, paste, scale
from gal_d2.copy_paste.augmentation import Frame
from gal_d2.copy_paste.masks import Box, LocalMask, tighten
from gal_d2.copy_paste.occlude import occlude, stays
from gal_d2.copy_paste.options import BLENDS, PasteOptions
from gal_d2.copy_paste.paste import paste_cutouts, pick_number
from gal_d2.copy_paste.place import (
    Placement,
    draw_free_position,
    draw_position,
    place,
    prepare_paste,
)
from gal_d2.copy_paste.resize import crop_to_foreground, resize_cutout
from gal_d2.copy_paste.scale import draw_size, draw_sized
from gal_d2.errors import UserError

KEEP_ALL = PasteOptions(min_visible_area=0, max_box_shift=10_000)


def full(x0: int, y0: int, width: int, height: int) -> LocalMask:
    """A filled rectangle."""
    return tighten(x0, y0, np.ones((height, width), bool))


def opaque(x0: int, y0: int, width: int, height: int, color, region: Box) -> Placement | None:
    """A filled rectangle of one colour, placed."""
    colors = np.full((height, width, 3), color, np.uint8)
    return place(colors, np.full((height, width), 255, np.uint8), x0, y0, region)


def on_canvas(mask: LocalMask | None, shape: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(shape, bool)
    if mask is not None:
        canvas[mask.box.slices] = mask.bitmap
    return canvas


@pytest.mark.parametrize("module", [masks, paste, scale])
def test_docstring_examples(module) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("min_pastes", -1, "MIN_PASTES"),
        ("max_pastes", -1, "MAX_PASTES"),
        ("blend", "alpha", "BLEND"),
        ("min_size", 0, "MIN_SIZE"),
        ("max_relative_size", 1.5, "MAX_RELATIVE_SIZE"),
        ("aspect_jitter", 1, "ASPECT_JITTER"),
        ("flip_prob", 2, "FLIP_PROB"),
        ("min_visible_area", -1, "MIN_VISIBLE_AREA"),
        ("max_box_shift", -1, "MAX_BOX_SHIFT"),
    ],
)
def test_a_senseless_option_is_named(field: str, value: object, key: str) -> None:
    with pytest.raises(UserError, match=rf"GAL\.COPY_PASTE\.{key} is {value!r}; it must be"):
        PasteOptions(**{field: value})


def test_pick_number_is_uniform_with_both_ends() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([pick_number(PasteOptions(), rng) for _ in range(20_000)])
    assert len(counts) == 20
    assert counts.min() > 850 and counts.max() < 1150


def test_crop_to_foreground() -> None:
    rgba = np.zeros((6, 7, 4), np.uint8)
    rgba[1, 1, 3] = 127  # not quite half opaque
    rgba[2:4, 3:6, 3] = 128
    cropped, foreground = crop_to_foreground(rgba)
    assert cropped.shape == (2, 3, 4) and foreground == 6
    assert np.shares_memory(cropped, rgba)
    assert crop_to_foreground(np.zeros((3, 3, 4), np.uint8))[1] == 0


class TestDrawSize:
    frame = Frame(Box(0, 0, 400, 300), 400 * 300.0)
    exact = PasteOptions(aspect_jitter=0.0)

    def draw(self, shape, foreground, mean, frame=frame, options=exact) -> tuple[int, int]:
        return draw_size(shape, foreground, (mean, 0.0), frame, options, np.random.default_rng(0))

    def test_foreground_gets_the_relative_area(self) -> None:
        # Half of the cut-out is foreground: its box is twice 0.2 ** 2 of the image's area.
        height, width = self.draw((40, 80), 1600, 0.2)
        assert (height, width) == (69, 139)
        assert height * width / 2 == pytest.approx(0.2**2 * 400 * 300, rel=0.01)

    def test_lower_and_upper_limit(self) -> None:
        assert self.draw((50, 50), 2500, 1e-3) == (10, 10)
        assert self.draw((50, 50), 2500, -1.0) == (10, 10)
        assert self.draw((50, 50), 2500, 5.0) == (173, 173)  # half of sqrt(400 * 300)

    def test_upper_limit_wins_in_a_tiny_region(self) -> None:
        tiny = Frame(Box(0, 0, 8, 8), 64.0)
        assert self.draw((50, 50), 2500, 0.2, tiny) == (4, 4)
        assert self.draw((500, 1), 1, 0.2, Frame(Box(0, 0, 1, 1), 1.0)) == (1, 1)

    def test_a_thin_object_fits_the_region(self) -> None:
        height, width = self.draw((10, 1000), 10_000, 0.5)
        assert (height, width) == (4, 400)

    def test_a_cropped_scene_keeps_its_scale(self) -> None:
        # Scaled by 2, then cropped to 400 x 300: objects are twice as large as without.
        doubled = Frame(Box(0, 0, 400, 300), 800 * 600.0)
        assert self.draw((50, 50), 2500, 0.1, doubled) == (69, 69)
        assert self.draw((50, 50), 2500, 0.1) == (35, 35)

    def test_aspect_jitter_keeps_the_area(self) -> None:
        rng = np.random.default_rng(0)
        sizes = [
            draw_size((50, 50), 2500, (0.3, 0.0), self.frame, PasteOptions(), rng)
            for _ in range(500)
        ]
        aspects = np.array([width / height for height, width in sizes])
        assert 0.78 < aspects.min() < 0.83 and 1.17 < aspects.max() < 1.22
        areas = np.array([width * height for height, width in sizes])
        assert np.abs(areas / (0.09 * 120_000) - 1).max() < 0.02


def test_the_centre_is_uniform_over_the_region() -> None:
    rng = np.random.default_rng(0)
    region = Box(100, 10, 300, 60)
    corners = np.array([draw_position((20, 40), region, rng) for _ in range(4000)])
    centres = corners + (20, 10)
    assert centres.min(axis=0) == pytest.approx((100, 10), abs=1)
    assert centres.max(axis=0) == pytest.approx((300, 60), abs=1)
    assert centres.mean(axis=0) == pytest.approx((200, 35), abs=3)


@given(
    width=st.integers(1, 9), height=st.integers(1, 9), room=st.integers(0, 5), seed=st.integers(0)
)
def test_a_box_inside_stays_inside(width: int, height: int, room: int, seed: int) -> None:
    region = Box(3, 7, 3 + width + room, 7 + height + room)
    rng = np.random.default_rng(seed)
    x0, y0 = draw_position((height, width), region, rng, inside=True)
    box = Box(x0, y0, x0 + width, y0 + height)
    assert box.intersect(region) == box


def test_every_place_inside_occurs() -> None:
    rng = np.random.default_rng(0)
    region = Box(0, 0, 3, 2)
    places = {draw_position((1, 2), region, rng, inside=True) for _ in range(100)}
    assert places == {(0, 0), (1, 0), (0, 1), (1, 1)}


WINDOWS = st.tuples(
    st.integers(-3, 12), st.integers(-3, 12), st.integers(1, 6), st.integers(1, 6)
).map(lambda window: Box(window[0], window[1], window[0] + window[2], window[1] + window[3]))


def free_places(size: tuple[int, int], region: Box, taken: list[Box], gap: int) -> set:
    """All places in the region that are ``gap`` pixels away from what is taken, one by one."""
    height, width = size
    places = set()
    for x in range(region.x0, region.x1 - width + 1):
        for y in range(region.y0, region.y1 - height + 1):
            window = Box(x, y, x + width, y + height).grow(gap)
            if all(window.intersect(box).is_empty for box in taken):
                places.add((x, y))
    return places


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 11),
    taken=st.lists(WINDOWS, max_size=4),
    gap=st.integers(0, 2),
    seed=st.integers(0),
)
def test_a_free_position_is_one_of_those_there_are(height, width, taken, gap, seed) -> None:
    region = Box(2, 1, 11, 8)
    free = free_places((height, width), region, taken, gap)
    place = draw_free_position((height, width), region, taken, np.random.default_rng(seed), gap=gap)
    assert place in free if free else place is None


def test_each_free_position_is_as_likely_as_the_others() -> None:
    region, taken = Box(5, 5, 25, 15), [Box(8, 5, 10, 12), Box(20, 9, 22, 15)]
    free = sorted(free_places((4, 3), region, taken, 1))
    rng = np.random.default_rng(0)
    drawn = [draw_free_position((4, 3), region, taken, rng, gap=1) for _ in range(100 * len(free))]
    counts = np.array([drawn.count(place) for place in free])
    assert counts.sum() == len(drawn)
    assert chisquare(counts).pvalue > 0.01


class TestResize:
    def test_one_to_one(self) -> None:
        rgba = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
        color, alpha = resize_cutout(rgba, (9, 7))
        is_foreground = rgba[..., 3] >= 128
        assert np.array_equal(alpha, is_foreground * 255)
        assert np.array_equal(color, rgba[..., :3] * is_foreground[..., None])

    @pytest.mark.parametrize("size", [(5, 6), (13, 11), (31, 40), (77, 91), (1, 1)])
    def test_background_colour_does_not_bleed(self, size: tuple[int, int]) -> None:
        rgba = np.zeros((40, 40, 4), np.uint8)
        rgba[..., 1] = 255  # green under the transparent part
        rgba[8:32, 8:32] = (200, 10, 60, 255)
        color, alpha = resize_cutout(rgba, size)
        assert color.shape == (*size, 3) and alpha.shape == size
        visible = color[alpha >= 8].astype(int)
        # 8-bit averages are divided by their weight: the smaller it is, the coarser.
        assert np.abs(color[alpha >= 128].astype(int) - (200, 10, 60)).max(initial=0) <= 2
        assert np.abs(visible - (200, 10, 60)).max(initial=0) <= 40

    def test_shrinking_averages(self) -> None:
        rgba = np.full((64, 64, 4), 255, np.uint8)
        rgba[::2, ::2, :3] = 55
        color, alpha = resize_cutout(rgba, (8, 8))
        assert (alpha == 255).all()
        assert np.abs(color.astype(int) - 205).max() <= 1

    def test_the_argument_is_not_changed(self) -> None:
        rgba = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
        before = rgba.copy()
        resize_cutout(rgba, (5, 5))
        assert np.array_equal(rgba, before)


class TestPlace:
    region = Box(0, 0, 10, 8)

    def test_what_is_outside_is_cut_off(self) -> None:
        placement = opaque(-2, 5, 6, 6, 9, self.region)
        assert placement.box == Box(-2, 5, 4, 11)
        assert placement.mask.box == Box(0, 5, 4, 8)
        assert placement.mask.area == 12

    def test_nothing_inside(self) -> None:
        assert opaque(10, 0, 3, 3, 9, self.region) is None
        corner = np.zeros((4, 4), np.uint8)
        corner[0, 0] = 255
        assert place(np.zeros((4, 4, 3), np.uint8), corner, -1, -1, self.region) is None

    def test_the_mask_is_where_alpha_is_one_half(self) -> None:
        alpha = np.array([[0, 127, 128], [255, 127, 0]], np.uint8)
        placement = place(np.zeros((2, 3, 3), np.uint8), alpha, 4, 4, self.region)
        assert placement.mask.box == Box(4, 4, 7, 6)
        assert placement.mask.bitmap.tolist() == [[False, False, True], [True, False, False]]


def test_prepare_paste_of_an_empty_cutout() -> None:
    frame = Frame(Box(0, 0, 50, 50), 2500.0)
    empty = np.full((5, 5, 4), 127, np.uint8)
    rng = np.random.default_rng(0)
    assert prepare_paste(empty, (0.2, 0.1), frame, PasteOptions(), rng) is None


def test_prepare_paste_flips_and_converts() -> None:
    rgba = np.zeros((20, 20, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[:, :10, 0] = 255  # left half red, right half blue
    rgba[:, 10:, 2] = 255
    frame = Frame(Box(0, 0, 100, 100), 10_000.0)
    for flip_prob, expected in ((0.0, [255, 0, 0]), (1.0, [0, 0, 255])):
        options = PasteOptions(flip_prob=flip_prob, aspect_jitter=0.0)
        for bgr in (False, True):
            rng = np.random.default_rng(0)
            placement = prepare_paste(rgba, (0.2, 0.0), frame, options, rng, bgr=bgr)
            assert placement.color.shape == (20, 20, 3)
            assert placement.color[10, 0].tolist() == (expected[::-1] if bgr else expected)


class TestStays:
    options = PasteOptions(min_visible_area=300, max_box_shift=10)
    original = full(0, 0, 40, 40)

    @pytest.mark.parametrize(
        ("visible", "expected"),
        [
            (None, False),
            (full(0, 0, 40, 40), True),
            (full(0, 0, 30, 30), True),  # the box moved by 10
            (full(0, 0, 29, 40), True),  # by 11, but 1160 pixels are left
            (full(0, 0, 10, 30), False),  # by 30, 300 pixels
            (full(0, 0, 7, 43), True),  # 301 pixels
        ],
    )
    def test_rule(self, visible: LocalMask | None, expected: bool) -> None:
        assert stays(self.original, visible, self.options) is expected

    def test_a_small_object_that_is_half_hidden_stays(self) -> None:
        assert stays(full(0, 0, 10, 10), full(0, 0, 5, 10), self.options)


class TestOcclude:
    shape = (60, 60)

    def test_a_paste_that_would_not_stay_hides_nothing(self) -> None:
        scene, below, above = full(0, 0, 30, 30), full(0, 0, 30, 40), full(0, 5, 30, 40)
        # 150 pixels of `below` would be left and its box would move by 35: it is not pasted.
        real, pasted = occlude([scene], [below, above], self.shape, PasteOptions())
        assert pasted[0] is None and pasted[1].box == above.box
        # `scene` keeps 5 rows of 30 pixels, and loses its label for it.
        assert real == [None]
        real, pasted = occlude([scene], [below, above], self.shape, KEEP_ALL)
        assert [mask and mask.box for mask in pasted] == [Box(0, 0, 30, 5), above.box]
        assert real == [None]

    def test_nothing_pasted_leaves_everything(self) -> None:
        scene = full(3, 3, 4, 4)
        real, pasted = occlude([scene], [], self.shape, PasteOptions())
        assert real == [scene] and pasted == []

    def test_completely_hidden_is_dropped_always(self) -> None:
        real, pasted = occlude(
            [full(5, 5, 2, 2)], [full(5, 5, 2, 2), full(4, 4, 4, 4)], self.shape, KEEP_ALL
        )
        assert real == [None]
        assert pasted[0] is None and pasted[1] is not None


@st.composite
def scenes(draw):
    """A region in a 40 x 32 image, real masks in it, and cut-outs with random alpha."""
    region = Box(draw(st.integers(0, 3)), 0, draw(st.integers(30, 40)), draw(st.integers(20, 32)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    real = []
    for _ in range(draw(st.integers(0, 4))):
        height, width = rng.integers(1, 14, size=2)
        x0 = int(rng.integers(region.x0, region.x1 - width + 1))
        y0 = int(rng.integers(region.y0, region.y1 - height + 1))
        mask = tighten(x0, y0, rng.random((height, width)) < 0.7)
        if mask is not None:
            real.append(mask)
    placements = []
    for _ in range(draw(st.integers(0, 5))):
        height, width = rng.integers(1, 18, size=2)
        alpha = rng.integers(0, 256, (height, width), dtype=np.uint8)
        color = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        x0, y0 = int(rng.integers(-8, 40)), int(rng.integers(-8, 32))
        placement = place(color, alpha, x0, y0, region)
        if placement is not None:
            placements.append(placement)
    return region, real, placements


options_strategy = st.builds(
    PasteOptions,
    blend=st.sampled_from(sorted(BLENDS)),
    min_visible_area=st.sampled_from([0, 10, 60]),
    max_box_shift=st.sampled_from([0, 2, 1000]),
)


@settings(deadline=None, max_examples=120)
@given(scenes(), options_strategy)
def test_masks_are_the_visible_pixels(scene, options) -> None:
    region, real, placements = scene
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    before = image.copy()
    visible_real, visible_pasted = paste_cutouts(image, region, real, placements, options)

    # The naive way: number the pixels of the canvas by what was drawn last.
    top = np.full(image.shape[:2], -1)
    for index, (placement, visible) in enumerate(zip(placements, visible_pasted, strict=True)):
        if visible is not None:
            top[on_canvas(placement.mask, top.shape)] = index
    for index, (placement, visible) in enumerate(zip(placements, visible_pasted, strict=True)):
        if visible is not None:
            assert np.array_equal(on_canvas(visible, top.shape), top == index)
            assert stays(placement.mask, visible, options)
    for original, visible in zip(real, visible_real, strict=True):
        expected = on_canvas(original, top.shape) & (top < 0)
        if visible is None:
            remains = tighten(0, 0, expected)
            assert remains is None or not stays(original, remains, options)
        else:
            assert np.array_equal(on_canvas(visible, top.shape), expected)

    for mask in filter(None, [*visible_real, *visible_pasted]):
        ys, xs = np.nonzero(on_canvas(mask, top.shape))
        assert mask.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert mask.box.intersect(region) == mask.box

    # Padding is never touched; what is far from every paste neither.
    outside = np.ones(top.shape, bool)
    outside[region.slices] = False
    assert np.array_equal(image[outside], before[outside])
    if all(mask is None for mask in visible_pasted):
        assert np.array_equal(image, before)


@settings(deadline=None, max_examples=80)
@given(scenes())
def test_overlap_never_grows(scene) -> None:
    region, real, placements = scene
    image = np.zeros((32, 40, 3), np.uint8)
    visible_real, visible_pasted = paste_cutouts(image, region, real, placements, KEEP_ALL)
    before = [on_canvas(mask, (32, 40)) for mask in real]
    after = [on_canvas(mask, (32, 40)) for mask in visible_real]
    pasted = [on_canvas(mask, (32, 40)) for mask in visible_pasted]
    for i in range(len(real)):
        for j in range(i):
            assert (after[i] & after[j]).sum() <= (before[i] & before[j]).sum()
    everything = np.sum(pasted, axis=0) if pasted else np.zeros((32, 40), int)
    assert (everything <= 1).all()
    for mask in after:
        assert not (mask & (everything > 0)).any()


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_basic_blend_draws_exactly_the_visible_colours(scene) -> None:
    region, real, placements = scene
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    expected = image.copy()
    _, visible = paste_cutouts(image, region, real, placements, PasteOptions())
    for placement, mask in zip(placements, visible, strict=True):
        if mask is not None:
            ys, xs = np.nonzero(on_canvas(placement.mask, (32, 40)))
            expected[ys, xs] = placement.color[ys - placement.box.y0, xs - placement.box.x0]
    assert np.array_equal(image, expected)


class TestFeather:
    def blend(self, alpha: np.ndarray, x0: int, y0: int) -> np.ndarray:
        """A white object with green under its transparent pixels, on black."""
        image = np.zeros((40, 40, 3), np.uint8)
        color = np.full((*alpha.shape, 3), 255, np.uint8)
        color[alpha < 128] = (0, 255, 0)
        region = Box(0, 0, 40, 30)
        placement = place(color, alpha, x0, y0, region)
        options = PasteOptions(blend="feather")
        paste_cutouts(image, region, [], [placement], options)
        return image

    def test_profile_across_a_straight_edge(self) -> None:
        image = self.blend(np.full((20, 20), 255, np.uint8), 5, 5)
        row = image[15].astype(int)
        assert (row == row[:, :1]).all(), "the edge is as white as the object"
        # A Gaussian step with sigma 1: its distribution function at half-integer distances.
        assert row[2:9, 0] == pytest.approx([2, 17, 79, 176, 238, 253, 255], abs=4)
        assert (row[8:22] == 255).all() and (row[:2] == 0).all()

    def test_what_is_under_transparent_pixels_does_not_show(self) -> None:
        alpha = np.zeros((20, 20), np.uint8)
        alpha[5:15, 5:15] = 255
        image = self.blend(alpha, 5, 5)
        assert (image == image[..., :1]).all()

    def test_at_a_border_only_the_region_changes(self) -> None:
        image = self.blend(np.full((20, 20), 255, np.uint8), -8, 20)
        assert not image[30:].any()
        # Cut off, not faded out: at the border the object goes on beyond it.
        assert (image[25:30, :8] == 255).all()

    def test_a_single_pixel(self) -> None:
        image = self.blend(np.full((1, 1), 255, np.uint8), 10, 10)
        assert image[10, 10, 0] >= image[10, 11, 0]


class TestPoisson:
    def paste(self, x0: int, y0: int, blend: str, side: int = 16) -> np.ndarray:
        """A mid-grey disc with a bright spot, on a bright scene."""
        image = np.full((48, 48, 3), 200, np.uint8)
        color = np.full((side, side, 3), 90, np.uint8)
        color[side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1] = 120
        yy, xx = np.mgrid[:side, :side] - (side - 1) / 2
        alpha = ((yy**2 + xx**2 <= (side / 2) ** 2) * 255).astype(np.uint8)
        region = Box(0, 0, 48, 48)
        placement = place(color, alpha, x0, y0, region)
        paste_cutouts(image, region, [], [placement], PasteOptions(blend=blend))
        return image

    def test_the_scene_gives_the_level_and_the_object_the_gradient(self) -> None:
        image = self.paste(12, 20, "poisson").astype(int)
        assert abs(image[28, 14] - 200).max() < 6
        assert (image[28, 20] - image[28, 14] > 15).all(), "the spot is at its place"
        changed = np.abs(image - 200).max(axis=2) > 5
        ys, xs = np.nonzero(changed)
        assert ys.min() >= 20 and ys.max() < 36 and xs.min() >= 12 and xs.max() < 28

    @pytest.mark.parametrize("corner", [(-3, 20), (20, -3), (40, 20), (20, 40), (0, 0), (1, 1)])
    def test_at_a_border_it_is_feathered(self, corner: tuple[int, int]) -> None:
        assert np.array_equal(self.paste(*corner, "poisson"), self.paste(*corner, "feather"))

    def test_twice_the_same(self) -> None:
        assert np.array_equal(self.paste(12, 20, "poisson"), self.paste(12, 20, "poisson"))

    @pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
    def test_small_objects(self, side: int) -> None:
        assert self.paste(20, 20, "poisson", side).shape == (48, 48, 3)


def glass() -> np.ndarray:
    """(20, 16, 4): the upper edge is opaque, the rest lets two thirds of the scene through."""
    rgba = np.zeros((20, 16, 4), np.uint8)
    rgba[4:, 2:14] = (0, 200, 0, 85)
    rgba[4:6, 2:14, 3] = 255
    return rgba


def test_an_object_of_which_a_sliver_is_opaque_is_all_that_is_visible() -> None:
    cropped, foreground = crop_to_foreground(glass())
    assert (cropped.shape[:2], foreground) == ((16, 12), 16 * 12)
    _, alpha = resize_cutout(cropped, (8, 6))
    assert (alpha == 255).all()


def test_a_soft_edge_is_not_part_of_the_object() -> None:
    """Half of what is visible is half opaque: that is the object."""
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[2:, :, 3] = 127
    cropped, foreground = crop_to_foreground(rgba)
    assert (cropped.shape[:2], foreground) == ((2, 4), 8)


@pytest.mark.parametrize(
    ("blend", "share"),
    [("basic", 1.0), ("feather", 85 / 255)],
)
def test_soft_alpha_stays_soft_where_the_blend_can_use_it(blend: str, share: float) -> None:
    options = PasteOptions(
        blend=blend, min_size=1, aspect_jitter=0.0, flip_prob=0.0, max_relative_size=1.0
    )
    frame = Frame(Box(0, 0, 60, 60), 3600)
    scale = (math.sqrt(16 * 12) / 60, 0.0)  # its own size
    rng = np.random.default_rng(0)
    color, alpha, opacity = draw_sized(glass(), scale, frame, options, rng)
    placement = place(color, alpha, 20, 20, frame.region, opacity)
    image = np.full((60, 60, 3), 100, np.uint8)
    _, (mask,) = paste_cutouts(image, frame.region, [], [placement], options)
    assert (mask.box.height, mask.box.width) == (16, 12) and mask.bitmap.all()
    middle = image[mask.box.y0 + 10, mask.box.x0 + 6]
    expected = share * np.array([0, 200, 0]) + (1 - share) * 100
    np.testing.assert_allclose(middle, expected, atol=2)
    # The rim is opaque in both.
    rim = image[mask.box.y0 + 1, mask.box.x0 + 6].astype(int)
    assert rim[1] > middle[1] - 1 and rim[0] <= middle[0]


def test_an_opaque_cut_out_is_feathered_as_ever() -> None:
    """Without a soft alpha there is no second channel to blend by."""
    rgba = np.zeros((12, 12, 4), np.uint8)
    rgba[2:10, 2:10] = (9, 8, 7, 255)
    frame = Frame(Box(0, 0, 40, 40), 1600)
    rng = np.random.default_rng(0)
    options = PasteOptions(blend="feather")
    color, alpha, opacity = draw_sized(rgba, (0.2, 0.0), frame, options, rng)
    placement = place(color, alpha, 20, 20, frame.region, opacity)
    assert placement.opacity is None
