"""On a GPU the scorer computes what it computes on the CPU, also under autocast; NCCL."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from test_projected_gradients import MODELS, assert_agree_within_two_per_cent, classes_of, roi_batch

from gal_d2.distributed import gather_columns, mean_over_processes
from gal_d2.scoring.exchange import HostCopy, PackedExchange
from gal_d2.scoring.gradients.projected_gradients import ProjectedGradients
from gal_d2.scoring.scorer import ContributionScorer

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """TF32, which convolutions use unless told not to, keeps three decimals."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on(device, features, targets):
    return {k: v.to(device) for k, v in features.items()}, [t.to(device) for t in targets]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", ["box", "mask"])
@pytest.mark.parametrize("k", [None, 16])
def test_gradients_are_those_of_the_cpu(name, head, k, tiny):
    results = []
    for device in ("cpu", "cuda"):
        features, targets = on(device, tiny.features(), tiny.targets(tiny.five))
        roi_heads = tiny.roi_heads(**MODELS[name]).to(device)
        roi_heads.box_predictor.use_sigmoid_ce = name == "sigmoid"
        gradients = ProjectedGradients(roi_heads, [head], k=k, chunk=2)
        got = gradients(head, features, roi_batch(targets), classes_of(targets))
        assert got.gradient.device.type == device
        results.append(got)
    cpu, cuda = results
    torch.testing.assert_close(cuda.loss.cpu(), cpu.loss, rtol=1e-4, atol=1e-5)
    error = (cuda.gradient.cpu() - cpu.gradient).norm(dim=1) / cpu.gradient.norm(dim=1)
    assert error.max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", ["box", "mask"])
def test_autocast_agrees_within_two_per_cent(dtype, head, tiny):
    features, targets = on("cuda", tiny.features(), tiny.targets(tiny.five))
    gradients = ProjectedGradients(tiny.roi_heads().cuda(), [head], k=None)
    rows = features, roi_batch(targets), classes_of(targets)
    full = gradients(head, *rows)
    with torch.autocast("cuda", dtype=dtype):
        half = gradients(head, *rows)
    assert half.gradient.dtype == torch.float32
    assert_agree_within_two_per_cent(half, full)


def test_steps_score_as_on_the_cpu(tiny):
    """Several, so that the cache with its counterfactual negatives is compared as well."""
    scored = []
    for device in ("cpu", "cuda"):
        scorer = ContributionScorer(
            tiny.roi_heads().to(device),
            **{"reference_size": 8, "reference_min": 1, "momentum": 0.5, "partner_every": 1},
        )
        for seed in range(4):
            rows = [
                *tiny.five,
                (0, [30, 30, 60, 50], 1, 0, -1),
                (1, [2, 30, 20, 60], 2, 0, -1),
            ]
            features, targets = on(device, tiny.features(seed=seed), tiny.targets(rows))
            last = scorer.step(features, targets)
        assert last.score.is_cpu
        scored.append(last)
    cpu, cuda = scored
    assert cpu.score.isfinite().all()
    torch.testing.assert_close(cuda.score, cpu.score, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cuda.phi, cpu.phi, rtol=1e-2, atol=1e-5)
    for head in cpu.heads:
        torch.testing.assert_close(
            cuda.head_score[head], cpu.head_score[head], rtol=1e-3, atol=1e-3
        )


@pytest.fixture
def nccl(tmp_path):
    """A group of this process alone: one GPU allows no more."""
    dist.init_process_group("nccl", f"file://{tmp_path}/group", world_size=1, rank=0)
    yield
    dist.destroy_process_group()


def test_exchanges_through_nccl(nccl):
    floats, numbers = gather_columns(torch.tensor([0.5, 1.5], device="cuda"), torch.tensor([3, 4]))
    assert floats.tolist() == [0.5, 1.5] and numbers.tolist() == [3, 4]
    assert floats.device.type == numbers.device.type == "cpu"
    assert mean_over_processes(torch.tensor(2.0, device="cuda")) == 2.0
    exchange = PackedExchange()
    for length in (3, 2):  # the second has room
        small, large = (torch.rand(length, n, device="cuda") for n in (1, 4))
        (known_and_small,), (there,) = exchange.start(torch.ones(2), [small], [large]).get()
        assert known_and_small.is_cpu and there.is_cuda
        assert torch.equal(known_and_small, torch.cat([torch.ones(2), small.flatten().cpu()]))
        assert torch.equal(there, large.flatten())


def test_a_copy_to_the_host_has_what_was_there_when_it_was_asked_for():
    tensor = torch.arange(1 << 20, device="cuda")
    copy = HostCopy(tensor)
    tensor.zero_()
    assert torch.equal(copy.get(), torch.arange(1 << 20))
