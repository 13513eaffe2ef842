"""The training mapper, from files to Instances."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_utils

from gal_d2 import add_gal_config
from gal_d2.copy_paste.augmentation import build_probe_augmentations
from gal_d2.copy_paste.mapper import CopyPasteMapper
from gal_d2.copy_paste.options import PasteOptions
from gal_d2.copy_paste.real_instances import RealInstances
from gal_d2.copy_paste.scale import class_scales
from gal_d2.copy_paste.stream import seeded
from gal_d2.datasets.probe import ProbeImages
from gal_d2.datasets.registration import load_instances, register_instances
from gal_d2.datasets.statistics import CategoryStatistics, category_statistics
from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.writer import PoolWriter
from gal_d2.selection.sampler import UniformClassSampler

CATEGORIES = {10: 0, 20: 1, 30: 2}
HEIGHT, WIDTH = 96, 128


def square(class_index: int, x0: int, y0: int, x1: int, y1: int, **more) -> dict:
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": class_index,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "iscrowd": 0,
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapper")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "scene.png")
    with PoolWriter(folder / "pool") as writer:
        for category_id in CATEGORIES:
            for seed in range(4):
                height, width = rng.integers(8, 40, size=2)
                rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
                rgba[2:-2, 2:-2, 3] = 255
                writer.add(category_id, rgba, source=CutOutSource("test", seed=seed))
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> InstancePool:
    return InstancePool(folder / "pool")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict:
    return {
        "file_name": str(folder / "scene.png"),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 5,
        "annotations": [
            square(0, 10, 20, 50, 60),
            square(2, 40, 50, 70, 80),
            square(1, 0, 0, 128, 96, iscrowd=1),
        ],
    }


def pasting(pool: InstancePool, *, augmentations=(), **more) -> CopyPasteMapper:
    options = {
        "augmentations": list(augmentations),
        "pool": pool,
        "sampler": UniformClassSampler(pool, CATEGORIES),
        "class_of_category": CATEGORIES,
        "scale_mean": np.array([0.2, 0.3, 0.1]),
        "scale_std": np.array([0.1, 0.1, 0.0]),
    }
    return CopyPasteMapper(**(options | more))


def lsj(size: int = 80) -> list:
    return [T.RandomFlip(), T.ResizeScale(0.5, 2.0, size, size), T.FixedSizeCrop((size, size))]


def make_lsj_config(size: int) -> CfgNode:
    cfg = get_cfg()
    add_gal_config(cfg)
    cfg.GAL.DATA.LSJ.IMAGE_SIZE = size
    return cfg


def run(mapper: CopyPasteMapper, record: dict, seed: int = 0) -> dict:
    with seeded(seed):
        return mapper({**record, "sample_seed": seed})


def assert_equal_samples(a: dict, b: dict) -> None:
    assert a["image"].equal(b["image"])
    assert a["num_pasted"] == b["num_pasted"]
    left, right = a["instances"], b["instances"]
    assert left.gt_boxes.tensor.equal(right.gt_boxes.tensor)
    assert left.gt_masks.tensor.equal(right.gt_masks.tensor)
    for field in ("gt_classes", "instance_source", "pool_id"):
        assert left.get(field).equal(right.get(field))


def assert_well_formed(sample: dict, height: int, width: int) -> None:
    instances = sample["instances"]
    count = len(instances)
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, height, width)
    assert sample["image"].is_contiguous()
    assert instances.image_size == (height, width)
    assert isinstance(instances.gt_boxes, Boxes) and isinstance(instances.gt_masks, BitMasks)
    assert instances.gt_boxes.tensor.dtype == torch.float32
    assert instances.gt_boxes.tensor.shape == (count, 4)
    assert instances.gt_masks.tensor.dtype == torch.bool
    assert instances.gt_masks.tensor.shape == (count, height, width)
    for field in ("gt_classes", "instance_source", "pool_id"):
        assert instances.get(field).dtype == torch.int64
        assert instances.get(field).shape == (count,)
    assert instances.gt_masks.tensor.flatten(1).any(dim=1).all()
    assert instances.gt_masks.get_bounding_boxes().tensor.equal(instances.gt_boxes.tensor)
    assert sample["num_pasted"] == int((instances.instance_source == 1).sum())
    assert "annotations" not in sample


class TestWithoutPastes:
    mapper = CopyPasteMapper(augmentations=[], image_format="BGR")

    def test_the_sample(self, record: dict) -> None:
        sample = run(self.mapper, record)
        assert_well_formed(sample, HEIGHT, WIDTH)
        pixels = np.asarray(Image.open(record["file_name"]))
        assert np.array_equal(sample["image"].numpy(), pixels[..., ::-1].transpose(2, 0, 1))
        instances = sample["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[10, 20, 50, 60], [40, 50, 70, 80]]
        assert instances.gt_classes.tolist() == [0, 2]
        assert instances.instance_source.tolist() == [0, 0]
        assert instances.pool_id.tolist() == [-1, -1]
        assert sample["num_pasted"] == 0 and sample["num_corrupt"] == 0
        assert sample["image_id"] == 5 and (sample["height"], sample["width"]) == (HEIGHT, WIDTH)

    def test_the_record_is_not_changed(self, record: dict) -> None:
        before = json.dumps(record)
        run(CopyPasteMapper(augmentations=lsj(), image_format="RGB"), record)
        assert json.dumps(record) == before

    def test_rle(self, record: dict) -> None:
        bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        bitmap[20:60, 10:50] = 1
        annotation = square(0, 10, 20, 50, 60, segmentation=mask_utils.encode(bitmap))
        polygon = {**record, "annotations": record["annotations"][:1]}
        for augmentations in ([], [T.RandomFlip(prob=1.0)]):
            mapper = CopyPasteMapper(augmentations=augmentations)
            with_rle = run(mapper, {**record, "annotations": [annotation]})
            assert_equal_samples(with_rle, run(mapper, polygon))

    def test_what_the_augmentation_cuts_away_is_dropped(self, record: dict) -> None:
        crop = T.CropTransform(0, 0, 45, 30)
        sample = run(CopyPasteMapper(augmentations=[crop]), record)
        assert_well_formed(sample, 30, 45)
        assert sample["instances"].gt_boxes.tensor.tolist() == [[10, 20, 45, 30]]

    @pytest.mark.parametrize("annotations", [[], [square(0, 5, 5, 9, 9, iscrowd=1)], None])
    def test_no_instances(self, record: dict, annotations: list | None) -> None:
        without = {k: v for k, v in record.items() if k != "annotations"}
        if annotations is not None:
            without["annotations"] = annotations
        sample = run(self.mapper, without)
        assert_well_formed(sample, HEIGHT, WIDTH)
        assert len(sample["instances"]) == 0

    def test_an_annotation_without_mask(self, record: dict) -> None:
        annotation = square(0, 5, 5, 9, 9)
        del annotation["segmentation"]
        with pytest.raises(UserError, match=r"scene\.png has no 'segmentation'"):
            run(self.mapper, {**record, "annotations": [annotation]})


class TestBadImages:
    mapper = CopyPasteMapper(augmentations=[])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "does not exist"),
            (b"", "cannot be read"),
            (b"\x89PNG\r\n\x1a\n and so on", "cannot be read"),
        ],
    )
    def test_is_named_once_and_left_out(
        self, record, tmp_path: Path, caplog, content: bytes | None, message: str
    ) -> None:
        path = tmp_path / "bad.png"
        if content is not None:
            path.write_bytes(content)
        bad = {**record, "file_name": str(path)}
        with caplog.at_level(logging.WARNING):
            assert run(self.mapper, bad) is None
            assert run(self.mapper, bad) is None
        assert len(caplog.records) == 1
        assert message in caplog.text and "left out of training" in caplog.text

    def test_truncated(self, record, tmp_path: Path, caplog) -> None:
        path = tmp_path / "half.png"
        path.write_bytes(Path(record["file_name"]).read_bytes()[:5000])
        assert run(self.mapper, {**record, "file_name": str(path)}) is None
        assert "half.png cannot be read" in caplog.text

    def test_other_size_than_annotated(self, record, caplog) -> None:
        assert run(self.mapper, {**record, "width": 200}) is None
        assert "is 128 x 96, but its annotation's width and height are 200 x 96" in caplog.text


class TestPasting:
    def test_pastes_come_from_the_pool(self, pool, record: dict) -> None:
        seen = set()
        for seed in range(30):
            sample = run(pasting(pool), record, seed)
            assert_well_formed(sample, HEIGHT, WIDTH)
            instances = sample["instances"]
            pasted = instances[instances.instance_source == 1]
            assert (instances.pool_id[instances.instance_source == 0] == -1).all()
            categories = pool.category_of(pasted.pool_id.numpy())
            assert [CATEGORIES[c] for c in categories] == pasted.gt_classes.tolist()
            seen |= set(categories)
            # Pasted objects lie on top: they overlap nothing.
            overlap = instances.gt_masks.tensor.int().sum(dim=0)
            assert not (overlap[pasted.gt_masks.tensor.any(dim=0)] > 1).any()
        assert seen == set(CATEGORIES)

    def test_the_number_of_pastes(self, pool, record: dict) -> None:
        none = PasteOptions(min_pastes=0, max_pastes=0)
        assert run(pasting(pool, options=none), record)["num_pasted"] == 0
        mapper = pasting(pool, options=PasteOptions(min_pastes=3, max_pastes=3, min_size=1))
        counts = [run(mapper, record, seed)["num_pasted"] for seed in range(20)]
        assert max(counts) == 3 and min(counts) >= 1

    def test_the_colours_are_in_the_order_of_the_image(self, tmp_path: Path, record: dict) -> None:
        with PoolWriter(tmp_path) as writer:
            red = np.full((9, 9, 4), (255, 0, 0, 255), np.uint8)
            red[0, 0] = 0  # all of one colour would be blank
            writer.add(10, red, source=CutOutSource("test"))
        for image_format, expected in (("RGB", [255, 0, 0]), ("BGR", [0, 0, 255])):
            mapper = pasting(
                InstancePool(tmp_path),
                image_format=image_format,
                options=PasteOptions(min_pastes=1, max_pastes=1),
            )
            sample = run(mapper, record)
            mask = sample["instances"].gt_masks.tensor[-1]
            assert (sample["image"][:, mask] == torch.tensor(expected)[:, None]).all()
            assert (sample["image"][:, ~mask] < 100).all()

    def test_padding_is_not_pasted_on(self, pool, record: dict) -> None:
        half = [T.ResizeTransform(HEIGHT, WIDTH, 48, 64), T.PadTransform(0, 0, 36, 52, 64, 48, 7)]
        mapper = pasting(pool, augmentations=half, options=PasteOptions(min_pastes=19))
        sample = run(mapper, record)
        assert_well_formed(sample, 100, 100)
        assert (sample["image"][:, 48:] == 7).all() and (sample["image"][:, :, 64:] == 7).all()
        masks = sample["instances"].gt_masks.tensor
        assert not masks[:, 48:].any() and not masks[:, :, 64:].any()

    def test_real_pixels_are_unchanged_and_equal_to_the_unpasted_ones(self, pool, record) -> None:
        mapper = pasting(pool, augmentations=lsj(), return_unpasted=True)
        plain = CopyPasteMapper(augmentations=lsj(), image_format="BGR")
        for seed in range(10):
            sample = run(mapper, record, seed)
            unpasted = sample["unpasted"]
            assert_well_formed(unpasted, 80, 80)
            assert_equal_samples(unpasted, run(plain, record, seed))
            assert unpasted["image_id"] == 5 and unpasted["sample_seed"] == seed
            pasted = sample["instances"].gt_masks.tensor[sample["instances"].instance_source == 1]
            elsewhere = ~pasted.any(dim=0)
            assert sample["image"][:, elsewhere].equal(unpasted["image"][:, elsewhere])
        assert "unpasted" not in run(pasting(pool), record)

    def test_unpasted_without_pastes(self, record: dict) -> None:
        mapper = CopyPasteMapper(augmentations=[], return_unpasted=True)
        sample = run(mapper, record)
        assert_equal_samples(sample, sample["unpasted"])

    @settings(
        deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        seed=st.integers(0, 2**40),
        blend=st.sampled_from(["basic", "feather", "poisson"]),
        size=st.integers(24, 140),
    )
    def test_any_seed_gives_a_well_formed_sample_twice(self, pool, record, seed, blend, size):
        options = PasteOptions(blend=blend, min_visible_area=20, max_box_shift=3)
        mapper = pasting(pool, augmentations=lsj(size), options=options)
        sample = run(mapper, record, seed)
        assert_well_formed(sample, size, size)
        assert_equal_samples(sample, run(mapper, record, seed))

    def test_another_seed_gives_other_pastes(self, pool, record: dict) -> None:
        mapper = pasting(pool)
        assert not run(mapper, record, 1)["image"].equal(run(mapper, record, 2)["image"])

    def test_without_sample_seed_the_global_generator_decides(self, pool, record: dict) -> None:
        mapper = pasting(pool)
        images = []
        for seed in (1, 1, 2):
            with seeded(seed):
                images.append(mapper(dict(record))["image"])
        assert images[0].equal(images[1]) and not images[0].equal(images[2])

    def test_a_corrupt_cutout_is_skipped_and_counted(self, folder, record, monkeypatch) -> None:
        from gal_d2.pool.cut_out import CorruptCutOutError

        pool = InstancePool(folder / "pool")
        bad = set(pool.ids(20).tolist())
        get = pool.get

        def failing(pool_id: int):
            if pool_id in bad:
                raise CorruptCutOutError("the image does not decode")
            return get(pool_id)

        monkeypatch.setattr(pool, "get", failing)
        mapper = pasting(pool, options=PasteOptions(min_pastes=12, max_pastes=12))
        sample = run(mapper, record)
        assert_well_formed(sample, HEIGHT, WIDTH)
        assert 0 < sample["num_corrupt"] < 12
        assert 1 not in sample["instances"].gt_classes[2:].tolist()

    def test_an_empty_pool(self, tmp_path: Path, record: dict) -> None:
        mapper = pasting(InstancePool(tmp_path / "none", allow_empty=True))
        assert run(mapper, record)["num_pasted"] == 0

    def test_pickle(self, pool, record: dict) -> None:
        mapper = pasting(pool, augmentations=lsj(), real_instances=RealInstances([record]))
        copied = pickle.loads(pickle.dumps(mapper))
        assert_equal_samples(run(mapper, record, 3), run(copied, record, 3))

    def test_spawned_process(self, pool, record: dict) -> None:
        mapper = pasting(pool)
        sample = {**record, "sample_seed": 3}
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as workers:
            image = workers.submit(mapper, sample).result(timeout=120)["image"]
        assert image.equal(mapper(sample)["image"])


class TestRealToReal:
    def test_all_real(self, record: dict) -> None:
        mapper = CopyPasteMapper(
            augmentations=[],
            scale_mean=np.full(3, 0.2),
            scale_std=np.zeros(3),
            real_instances=RealInstances([record]),
            real_fraction=1.0,
            options=PasteOptions(min_pastes=8, max_pastes=8),
        )
        sample = run(mapper, record)
        assert_well_formed(sample, HEIGHT, WIDTH)
        instances = sample["instances"]
        pasted = instances.instance_source == 1
        assert pasted.sum() > 2
        assert (instances.pool_id == -1).all()
        assert set(instances.gt_classes[pasted].tolist()) <= {0, 2}

    def test_a_fraction(self, pool, record: dict) -> None:
        mapper = pasting(
            pool,
            real_instances=RealInstances([record]),
            real_fraction=0.25,
            options=PasteOptions(min_pastes=19, max_pastes=19, min_visible_area=0, min_size=2),
            scale_mean=np.full(3, 0.05),
            scale_std=np.zeros(3),
        )
        real = total = 0
        for seed in range(40):
            instances = run(mapper, record, seed)["instances"]
            pasted = instances[instances.instance_source == 1]
            real += int((pasted.pool_id == -1).sum())
            total += len(pasted)
        assert real / total == pytest.approx(0.25, abs=0.05)

    def test_a_bad_image_is_skipped(self, record, tmp_path: Path, caplog) -> None:
        missing = {**record, "file_name": str(tmp_path / "gone.jpg")}
        mapper = CopyPasteMapper(
            augmentations=[],
            scale_mean=np.full(3, 0.2),
            scale_std=np.zeros(3),
            real_instances=RealInstances([missing]),
            real_fraction=1.0,
            options=PasteOptions(min_pastes=5, max_pastes=5),
        )
        sample = run(mapper, record)
        assert (sample["num_pasted"], sample["num_corrupt"]) == (0, 5)
        assert len(caplog.records) == 1 and "gone.jpg does not exist" in caplog.text


@pytest.fixture(scope="module")
def probe(record: dict) -> ProbeImages:
    """An image for each of the classes 0 and 1; that of class 1 is not there."""
    of_0 = {**record, "image_id": 7, "annotations": [square(0, 90, 60, 120, 90)]}
    of_1 = {**record, "image_id": 8, "annotations": [square(1, 9, 9, 30, 30)]}
    return ProbeImages([of_0, {**of_1, "file_name": "nowhere.png"}])


class TestProbe:
    def test_whole_images_of_pasted_classes(self, pool, record, probe) -> None:
        size = build_probe_augmentations(make_lsj_config(80))
        mapper = pasting(pool, augmentations=lsj(), probe=probe, probe_augmentations=size)
        plain = pasting(pool, augmentations=lsj())
        found = set()
        for seed in range(12):
            sample = run(mapper, record, seed)
            assert_equal_samples(sample, run(plain, record, seed))  # the same pastes
            pasted = sample["instances"].gt_classes[sample["instances"].instance_source == 1]
            assert len(sample["probe"]) <= 1
            for drawn in sample["probe"]:
                assert_well_formed(drawn, 80, 80)
                assert drawn["image_id"] == 7 and drawn["instances"].gt_classes.tolist() == [0]
                # 128 x 96 pixels in a square of 80: everything is there, at a scale of 0.625.
                expected = [56.25, 37.5, 75, 56.25]
                (box,) = drawn["instances"].gt_boxes.tensor.tolist()
                assert box == pytest.approx(expected, abs=1)
                assert 0 in pasted.tolist()
                found.add(seed)
        assert 2 < len(found) < 12  # not where class 0 was not pasted, or class 1 was drawn

    def test_a_number_that_makes_no_sense(self, pool, probe) -> None:
        with pytest.raises(UserError, match="GAL.SCORER.PROBE.IMAGES is 0"):
            pasting(pool, probe=probe, probe_images=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image_format": "L"}, UserError, r"INPUT\.FORMAT is 'L'"),
        ({"real_fraction": 1.5}, UserError, r"REAL_FRACTION is 1\.5"),
        ({"real_fraction": 0.5}, ValueError, "real_instances are needed"),
        ({"sampler": object()}, ValueError, "scale_mean"),
        (
            {"sampler": object(), "scale_mean": np.ones(1), "scale_std": np.ones(1)},
            ValueError,
            "needs its pool",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        CopyPasteMapper(augmentations=[], **arguments)


def statistics(count, mean, std) -> CategoryStatistics:
    count = np.array(count)
    return CategoryStatistics(
        image_count=count,
        instance_count=count,
        scale_mean=np.array(mean),
        scale_std=np.array(std),
        overall_mean=0.0,
        overall_std=0.0,
    )


class TestClassScales:
    def test_a_class_without_instances_has_those_of_all(self) -> None:
        nan = float("nan")
        mean, std = class_scales([statistics([1, 3, 0], [0.1, 0.5, nan], [0.0, 0.2, nan])])
        assert mean.tolist() == pytest.approx([0.1, 0.5, 0.4])
        # Of the values .1, and three with mean .5 and deviation .2.
        assert std.tolist() == pytest.approx([0.0, 0.2, np.sqrt((0.09 + 3 * 0.05) / 4)])

    def test_two_data_sets_are_one_population(self) -> None:
        mean, std = class_scales([statistics([1], [0.1], [0.0]), statistics([1], [0.3], [0.0])])
        assert mean.tolist() == pytest.approx([0.2]) and std.tolist() == pytest.approx([0.1])

    def test_no_instance_at_all(self) -> None:
        with pytest.raises(UserError, match=r"DATASETS\.TRAIN has no annotated objects"):
            class_scales([statistics([0], [float("nan")], [float("nan")])])


class TestFromConfig:
    @pytest.fixture
    def cfg(self, folder: Path, record: dict):
        annotations = [
            {
                "id": index + 1,
                "image_id": 5,
                "category_id": category_id,
                "bbox": annotation["bbox"],
                "area": annotation["bbox"][2] * annotation["bbox"][3],
                "segmentation": annotation["segmentation"],
                "iscrowd": 0,
            }
            for index, (category_id, annotation) in enumerate(
                zip((10, 30), record["annotations"][:2], strict=True)
            )
        ]
        content = {
            "images": [{"id": 5, "height": HEIGHT, "width": WIDTH, "file_name": "scene.png"}],
            "annotations": annotations,
            "categories": [{"id": c, "name": f"thing {c}"} for c in CATEGORIES],
        }
        (folder / "train.json").write_text(json.dumps(content))
        register_instances("mapper_test", folder / "train.json", folder)
        cfg = get_cfg()
        add_gal_config(cfg)
        cfg.DATASETS.TRAIN = ("mapper_test",)
        cfg.GAL.DATA.LSJ.IMAGE_SIZE = 80
        cfg.GAL.POOL.ROOT = str(folder / "pool")
        cfg.GAL.COPY_PASTE.ENABLED = True
        yield cfg
        DatasetCatalog.remove("mapper_test")
        MetadataCatalog.remove("mapper_test")

    def test_pasting(self, cfg) -> None:
        mapper = CopyPasteMapper(cfg, dataset_dicts=None, return_unpasted=True)
        (record,) = load_instances("mapper_test")
        sample = run(mapper, record, 4)
        assert_well_formed(sample, 80, 80)
        assert sample["num_pasted"] > 0 and "unpasted" in sample
        found = category_statistics("mapper_test")
        missing = found.instance_count == 0
        mean = np.where(missing, found.overall_mean, found.scale_mean)
        std = np.where(missing, found.overall_std, found.scale_std)
        assert mapper.scale_mean.tolist() == pytest.approx(mean.tolist())
        assert mapper.scale_std.tolist() == pytest.approx(std.tolist())
        assert mapper.class_of_category == CATEGORIES

    def test_the_published_recipe_needs_unpasted_images_and_a_probe(self, cfg) -> None:
        cfg.GAL.SCORER.ENABLED, cfg.GAL.ACCEPT.UNIT = True, "batch"
        cfg.GAL.SCORER.PROBE.IMAGES = 3
        records = load_instances("mapper_test")
        mapper = CopyPasteMapper(cfg, dataset_dicts=records, probe_dicts=records)
        assert mapper.return_unpasted and mapper.probe.classes.tolist() == [0, 2]
        assert mapper.probe_images == 3
        cfg.GAL.ACCEPT.UNIT = "instance"
        mapper = CopyPasteMapper(cfg, dataset_dicts=records)
        assert mapper.probe is None and not mapper.return_unpasted

    def test_every_key_arrives(self, cfg) -> None:
        keys = cfg.GAL.COPY_PASTE
        keys.MIN_PASTES, keys.MAX_PASTES, keys.BLEND = 1, 2, "feather"
        keys.MIN_SIZE, keys.MAX_RELATIVE_SIZE = 5, 0.25
        keys.ASPECT_JITTER, keys.FLIP_PROB = 0.1, 0.0
        keys.MIN_VISIBLE_AREA, keys.MAX_BOX_SHIFT = 50, 4
        cfg.INPUT.FORMAT = "RGB"
        mapper = CopyPasteMapper(cfg)
        assert mapper.options == PasteOptions(1, 2, "feather", 5, 0.25, 0.1, 0.0, 50, 4)
        assert mapper.image_format == "RGB"

    def test_disabled_opens_no_pool(self, cfg) -> None:
        cfg.GAL.COPY_PASTE.ENABLED = False
        cfg.GAL.POOL.ROOT = "/nowhere"
        mapper = CopyPasteMapper(cfg)
        (record,) = load_instances("mapper_test")
        assert mapper.pool is None and run(mapper, record)["num_pasted"] == 0

    def test_no_pool_is_named(self, cfg) -> None:
        cfg.GAL.POOL.ROOT = ""
        with pytest.raises(UserError, match=r"GAL\.POOL\.ROOT is empty"):
            CopyPasteMapper(cfg)

    def test_a_missing_pool(self, cfg, tmp_path: Path) -> None:
        cfg.GAL.POOL.ROOT = str(tmp_path / "no_pool")
        with pytest.raises(UserError, match="no_pool does not exist"):
            CopyPasteMapper(cfg)

    @pytest.mark.parametrize("is_loaded", [False, True])
    def test_real_only_needs_no_pool(self, cfg, is_loaded: bool) -> None:
        cfg.GAL.POOL.ROOT = ""
        cfg.GAL.COPY_PASTE.REAL_FRACTION = 1.0
        records = load_instances("mapper_test")
        mapper = CopyPasteMapper(cfg, dataset_dicts=records if is_loaded else None)
        assert len(mapper.real_instances) == 2
        sample = run(mapper, records[0], 1)
        assert sample["num_pasted"] > 0
