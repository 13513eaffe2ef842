from __future__ import annotations

import pytest
import timm
import torch

from gal_d2.errors import UserError
from gal_d2.modeling.timm_backbone import TimmBackbone
from gal_d2.modeling.timm_weights import read_timm_weights

NAME = "resnet10t"


@pytest.fixture(scope="module")
def donor() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model(NAME).state_dict()


def foreign(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same as another port would call them."""
    return {f"_port.{k}": tensor for k, tensor in enumerate(tensors.values())}


def test_a_file_with_timm_s_names_is_taken_as_it_is(tmp_path, donor):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": donor}, path)
    found = read_timm_weights(path, NAME)
    assert found.keys() == donor.keys()


def test_another_port_s_tensors_are_taken_in_order(tmp_path, donor):
    path = tmp_path / "weights.pth"
    torch.save(foreign(donor), path)
    found = read_timm_weights(path, NAME)
    assert list(found) == list(donor)
    assert all(torch.equal(found[name], donor[name]) for name in donor)
    backbone = TimmBackbone(NAME, strides=[4, 8], weights=str(path))
    assert torch.equal(backbone.model["layer2"][0].conv1.weight, donor["layer2.0.conv1.weight"])


def test_other_networks_are_refused_in_one_sentence(tmp_path, donor):
    path = tmp_path / "weights.pth"
    reversed_order = dict(reversed(foreign(donor).items()))
    torch.save(reversed_order, path)
    message = rf"not those of timm's '{NAME}': '_port.\d+' has the shape .* where 'conv1.0.weight'"
    with pytest.raises(UserError, match=message):
        read_timm_weights(path, NAME)
    torch.save(dict(list(foreign(donor).items())[:-1]), path)
    with pytest.raises(UserError, match=rf"has {len(donor) - 1} tensors where timm's '{NAME}' has"):
        TimmBackbone(NAME, strides=[4, 8], weights=str(path))


def test_a_broken_file(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read as weights .*download it again"):
        read_timm_weights(path, NAME)
    with pytest.raises(UserError, match="nowhere.pth', which is not a file"):
        read_timm_weights("nowhere.pth", NAME)
