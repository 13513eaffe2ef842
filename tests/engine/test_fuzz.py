"""Broken pools, folders of cut-outs and configs: handled, or refused in one sentence.

Whatever is changed in them, no other exception may come out than a UserError, and what remains is
what a plain reading finds.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gal_d2.copy_paste.options import PasteOptions
from gal_d2.datasets.category_names import CategoryNames
from gal_d2.errors import UserError
from gal_d2.pool.check import check_shard
from gal_d2.pool.cut_out import CutOutSource
from gal_d2.pool.importer import import_files, list_folder
from gal_d2.pool.instance_pool import InstancePool
from gal_d2.pool.preflight import require_usable_pool
from gal_d2.pool.shard import shard_names
from gal_d2.pool.writer import PoolWriter
from gal_d2.setup.config_check import check_config
from gal_d2.setup.configuration import load_config
from gal_d2.setup.setup import resolve_device

NAMES = {3: "boot", 12: "bun"}
# Every example writes a few files; shrinking a failure may take long, and is worth it.
NORMAL = settings(
    max_examples=34,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
THOROUGH = settings(NORMAL, max_examples=334)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def cut_out(seed: int, alpha: int = 255) -> np.ndarray:
    rgba = np.random.default_rng(seed).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    rgba[..., 3] = alpha
    return rgba


# -- A pool

damage = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
        st.tuples(st.just("truncate"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("zero"), st.floats(0, 1), st.integers(1, 400)),
        st.tuples(st.just("append"), st.just(1.0), st.integers(1, 400)),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    data = bytearray(content)
    for kind, share, amount in changes:
        place = min(int(share * len(data)), max(len(data) - 1, 0))
        if kind == "flip" and data:
            data[place] ^= amount
        elif kind == "truncate":
            del data[place:]
        elif kind == "zero":
            data[place : place + amount] = bytes(len(data[place : place + amount]))
        elif kind == "append":
            data += bytes(amount)
    return bytes(data)


def pool_survives(folder: Path, changes: list[tuple[str, float, int]], faint: bool) -> None:
    root = folder / "pool"
    shutil.rmtree(root, ignore_errors=True)
    expected = {}
    for category_id in NAMES:
        with PoolWriter(root) as writer:
            for seed in range(3):
                rgba = cut_out(seed, 100 if faint and category_id == 3 else 255)
                pool_id = writer.add(category_id, rgba, source=CutOutSource("test", seed=seed))
                expected[pool_id] = category_id, rgba
    victim = root / shard_names(root)[0]
    victim.write_bytes(damaged(victim.read_bytes(), changes))
    for name in shard_names(root):
        check_shard(root / name)
    try:
        pool = InstancePool(root)
        require_usable_pool(pool, pool.category_ids.tolist(), NAMES)
    except UserError:
        return
    for pool_id in pool.all_ids().tolist():
        try:
            found = pool.get(pool_id)
        except Exception as error:
            assert type(error).__name__ == "CorruptCutOutError", repr(error)
            continue
        # What can be read is what was written: nothing is silently wrong.
        category_id, rgba = expected[found.pool_id]
        assert found.category_id == category_id
        np.testing.assert_array_equal(found.rgba, rgba)
    # The other shard is whole.
    assert sum(pool_id in pool for pool_id in expected) >= 3


@NORMAL
@given(changes=damage, faint=st.booleans())
def test_a_damaged_pool(tmp_path: Path, changes, faint: bool) -> None:
    pool_survives(tmp_path, changes, faint)


@pytest.mark.slow
@THOROUGH
@given(changes=damage, faint=st.booleans())
def test_a_damaged_pool_thoroughly(tmp_path: Path, changes, faint: bool) -> None:
    pool_survives(tmp_path, changes, faint)


# -- A folder of cut-outs

pictures = st.tuples(
    st.sampled_from(["RGBA", "RGB", "L", "LA", "P", "1", "I;16", "CMYK", "F", "I"]),
    st.sampled_from(["png", "webp", "tiff", "gif", "bmp", "jpg"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 255),
    st.one_of(st.none(), damage),
)


def saved(mode: str, kind: str, height: int, width: int, alpha: int, changes) -> bytes | None:
    """An image file; None if this format does not know the mode."""
    rgba = np.random.default_rng(alpha).integers(0, 256, (height, width, 4), dtype=np.uint8)
    rgba[..., 3] = np.where(rgba[..., 3] < 128, 0, alpha)
    try:
        image = Image.fromarray(rgba)
        image = image if mode == "RGBA" else image.convert("L").convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "tiff": "TIFF"}.get(kind, kind.upper()))
    except (OSError, ValueError, KeyError):
        return None
    content = buffer.getvalue()
    return damaged(content, changes) if changes else content


def folder_survives(folder: Path, files) -> None:
    root, pool_root = folder / "cutouts", folder / "imported"
    for path in (root, pool_root):
        shutil.rmtree(path, ignore_errors=True)
    (root / "bun").mkdir(parents=True)
    written = 0
    for number, (mode, kind, *rest) in enumerate(files):
        content = saved(mode, kind, *rest)
        if content is not None:
            (root / "bun" / f"{number}.{kind}").write_bytes(content)
            written += 1
    names = CategoryNames([{"id": i, "name": name} for i, name in NAMES.items()])
    report = import_files(
        list_folder(root, names).files, pool_root, CutOutSource("test"), workers=1
    )
    # Every image is accounted for, and each refusal has a reason.
    assert report.added.total() + report.already_stored + len(report.failed) == written
    assert all(report.failed.values())
    pool = InstancePool(pool_root, allow_empty=True)
    assert len(pool) == report.added.total()
    for pool_id in pool.all_ids().tolist():
        alpha = pool.get(pool_id).rgba[..., 3]
        # The plain definition: something of it is half opaque.
        assert (alpha >= 128).any()


@NORMAL
@given(files=st.lists(pictures, min_size=1, max_size=4))
def test_a_folder_of_anything(tmp_path: Path, files) -> None:
    folder_survives(tmp_path, files)


@pytest.mark.slow
@THOROUGH
@given(files=st.lists(pictures, min_size=1, max_size=4))
def test_a_folder_of_anything_thoroughly(tmp_path: Path, files) -> None:
    folder_survives(tmp_path, files)


# -- A config

KEYS = [
    *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.WARMUP_ITERS"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.EMA.DECAY"),
    *("DATALOADER.NUM_WORKERS", "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST"),
    *("MODEL.DEVICE", "MODEL.FPN.OUT_CHANNELS", "MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    *("GAL.COPY_PASTE.MAX_PASTES", "GAL.COPY_PASTE.MIN_SIZE", "GAL.COPY_PASTE.BLEND"),
    *("GAL.COPY_PASTE.FLIP_PROB", "GAL.COPY_PASTE.MAX_RELATIVE_SIZE", "GAL.POOL.MIN_WEIGHT"),
    *("GAL.DATA.LSJ.IMAGE_SIZE", "GAL.DATA.LSJ.MIN_SCALE", "GAL.SCORER.PROBE", "GAL", "NO.SUCH"),
    *("TEST.EVAL_PERIOD", "OUTPUT_DIR", "", "..", "SOLVER.MAX_ITER.X", "solver.max_iter"),
]
numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63), 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
)
values = st.one_of(
    numbers,
    st.booleans(),
    st.none(),
    st.text(max_size=6),
    st.lists(numbers, max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def config_survives(file: Path, pairs: list[tuple[str, object]], line: list[tuple[str, str]]):
    """Either refused in a sentence, or all values that the run will use are sound."""
    tree: dict = {}
    for key, value in pairs:
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                return  # the pairs contradict each other
        node[last] = value
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    try:
        cfg = load_config(str(file), [word for pair in line for word in pair])
        cfg.MODEL.DEVICE = cfg.MODEL.DEVICE.replace("cuda", "cpu")
        resolve_device(cfg)
        check_config(cfg)
        PasteOptions.from_config(cfg)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 1200
        return
    assert cfg.SOLVER.MAX_ITER >= 1 and cfg.SOLVER.IMS_PER_BATCH >= 1
    assert 0 < cfg.SOLVER.BASE_LR < float("inf")
    assert cfg.GAL.COPY_PASTE.MIN_PASTES <= cfg.GAL.COPY_PASTE.MAX_PASTES


config_examples = {
    "pairs": st.lists(st.tuples(st.sampled_from(KEYS), values), max_size=3),
    "line": st.lists(st.tuples(st.sampled_from(KEYS), st.text(max_size=8)), max_size=2),
}


@NORMAL
@given(**config_examples)
def test_a_config_of_anything(tmp_path: Path, pairs, line) -> None:
    config_survives(tmp_path / "c.yaml", pairs, line)


@pytest.mark.slow
@THOROUGH
@given(**config_examples)
def test_a_config_of_anything_thoroughly(tmp_path: Path, pairs, line) -> None:
    config_survives(tmp_path / "c.yaml", pairs, line)
