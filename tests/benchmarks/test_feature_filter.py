"""benchmarks/feature_filter.py: real objects' features, and CLIP; test_comparison.py runs it."""

from __future__ import annotations

import feature_filter
import numpy as np
import pytest
import timm
import tiny_models
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from gal_d2.errors import UserError
from gal_d2.setup.configuration import load_config
from gal_d2.setup.setup import resolve_datasets
from gal_d2.testbeds.truth import PoolTruth


class Heads(nn.Module):
    """Looks up the only map's value at the middle of a box; its two channels are the feature."""

    def __init__(self, cascade: bool) -> None:
        super().__init__()
        self.box_in_features = ["p2"]
        self.box_head = nn.ModuleList([nn.Identity(), nn.Identity()]) if cascade else nn.Identity()

    def box_pooler(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        (maps,) = features
        vectors = []
        for image, of_image in zip(maps, boxes, strict=True):
            vectors += [image[:, int(y), int(x)] for x, y in of_image.get_centers().tolist()]
        return torch.stack(vectors)


class Model(nn.Module):
    def __init__(self, cascade: bool) -> None:
        super().__init__()
        self.roi_heads = Heads(cascade)
        self.weight = nn.Parameter(torch.zeros(1))

    def preprocess_image(self, samples: list[dict]) -> Instances:
        images = Instances((4, 4))
        images.tensor = torch.stack([sample["image"] for sample in samples])
        return images

    def backbone(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p2": images}


def sample(vectors: list[tuple[float, float]], classes: list[int]) -> dict:
    """An image with a feature at each pixel of its first row, and an object around each."""
    image = torch.zeros(2, 4, 4)
    instances = Instances((4, 4))
    image[:, 0, : len(vectors)] = torch.tensor(vectors).T
    instances.gt_boxes = Boxes(torch.tensor([[x, 0.0, x + 1, 1] for x in range(len(vectors))]))
    instances.gt_classes = torch.tensor(classes)
    return {"image": image, "instances": instances}


@pytest.mark.parametrize("cascade", [False, True])
def test_mean_of_unit_vectors_by_class(cascade):
    batches = [
        [sample([(2.0, 0.0), (0.0, 3.0)], [0, 2]), sample([(0.0, 5.0)], [0])],
        [sample([(3.0, 4.0)], [2])],
    ]
    mean = feature_filter.mean_features(Model(cascade), iter(batches), 3)
    expected = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.3, 0.9]])
    torch.testing.assert_close(mean, expected)


def test_likeness_by_clip(repository, miniature, miniature_options, tmp_path):
    config_file = str(repository / "configs/miniature_copypaste.yaml")
    options = [*miniature_options, "GAL.POOL.ROOT", str(miniature / "pool"), "MODEL.DEVICE", "cpu"]
    cfg = load_config(config_file, options)
    resolve_datasets(cfg)
    pool_ids = PoolTruth.read(miniature / "pool_truth.parquet").pool_id
    clip = str(tiny_models.save_clip(tmp_path / "clip"))
    values = feature_filter.likeness_by_clip(cfg, pool_ids, clip)
    assert set(values) <= set(pool_ids.tolist())
    assert len(values) >= 3 * 5  # of each category that the scenes have an object of
    assert len(set(values.values())) > 10
    assert (np.abs(list(values.values())) <= 1 + 1e-5).all()


def test_likeness_by_a_network_that_was_trained_elsewhere(
    repository, miniature, miniature_options, tmp_path
):
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), weights)
    config_file = str(repository / "configs/miniature_copypaste.yaml")
    options = [*miniature_options, "GAL.POOL.ROOT", str(miniature / "pool"), "MODEL.DEVICE", "cpu"]
    cfg = load_config(config_file, [*options, "MODEL.TIMM.NAME", "resnet10t"])
    resolve_datasets(cfg)
    pool_ids = PoolTruth.read(miniature / "pool_truth.parquet").pool_id
    with pytest.raises(UserError, match=r"MODEL.TIMM.NAME or .WEIGHTS is empty"):
        feature_filter.likeness_by_imagenet(cfg, pool_ids)
    cfg.MODEL.TIMM.WEIGHTS = str(weights)
    values = feature_filter.likeness_by_imagenet(cfg, pool_ids)
    assert set(values) <= set(pool_ids.tolist())
    assert len(set(values.values())) > 10
    assert (np.abs(list(values.values())) <= 1 + 1e-5).all()


def test_pictures_become_unit_vectors_and_equal_ones_the_same(tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), weights)
    embedder = feature_filter.TimmEmbedder("resnet10t", str(weights), torch.device("cpu"))
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 255, (40, 40, 3), np.uint8) for _ in range(2))
    vectors = embedder.embed_images([one, other, one])
    assert vectors.shape == (3, 512) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1])
