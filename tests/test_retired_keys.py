"""Keys that are gone, in configs and checkpoints that still have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from gal_d2.config import add_gal_config
from gal_d2.engine.resume import changed_options, check_options
from gal_d2.errors import UserError
from gal_d2.generation.options import generation_recipe
from gal_d2.retired_keys import RETIRED_KEYS, add_retired_keys
from gal_d2.setup.configuration import load_config


def config_of_an_earlier_run(**changes: object) -> CfgNode:
    """All keys, as a run of the release before wrote them to OUTPUT_DIR/config.yaml."""
    cfg = get_cfg()
    add_gal_config(cfg)
    add_retired_keys(cfg)
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def written(cfg: CfgNode, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(cfg.dump())
    return str(path)


def test_no_key_is_both_gone_and_there():
    cfg = load_config("")
    for key in RETIRED_KEYS:
        with pytest.raises(AttributeError):
            node = cfg
            for part in key.split("."):
                node = getattr(node, part)


def test_an_earlier_config_of_defaults_is_the_config_of_now(tmp_path):
    cfg = load_config(written(config_of_an_earlier_run(), tmp_path))
    assert changed_options(load_config("").dump(), cfg) == {}
    assert set(cfg.GAL.ACCEPT) == set(load_config("").GAL.ACCEPT)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("GAL.ACCEPT.VETO.ENABLED", "True", "GAL.ACCEPT.VETO.ENABLED is True.*gone.*posterior"),
        ("GAL.GENERATOR.RAY.CUTTERS", "3", "is 3, but this key is gone.*--ray-cutters"),
        ("GAL.GENERATOR.VAE_SLICING", "True", "lower GAL.GENERATOR.BATCH_SIZE"),
        ("GAL.ACCEPT.QUANTILE.START_RATE", "0.3", "set GAL.ACCEPT.RATE"),
        ("GAL.POSTERIOR.CEILINGS", "[1.0]", r"all runs have \[100.0, 100.0, 1.0\]: leave it out"),
    ],
)
def test_another_value_is_refused_with_what_to_do(key, value, remedy, tmp_path):
    with pytest.raises(UserError, match=remedy):
        load_config("", [key, value])
    earlier = config_of_an_earlier_run(**{key.replace(".", "__"): value})
    with pytest.raises(UserError, match=remedy):
        load_config(written(earlier, tmp_path))


def test_the_rate_may_be_under_both_names():
    rates = ["GAL.ACCEPT.QUANTILE.START_RATE", "0.3", "GAL.ACCEPT.QUANTILE.END_RATE", "0.3"]
    assert load_config("", ["GAL.ACCEPT.RATE", "0.3", *rates]).GAL.ACCEPT.RATE == 0.3


def test_a_mistyped_key_is_not_led_to_one_that_is_gone():
    with pytest.raises(UserError, match=r"did you mean GAL\.") as found:
        load_config("", ["GAL.ACCEPT.VETTO", "True"])
    assert "VETO" not in str(found.value).replace("VETTO", "")


def test_a_run_that_had_other_values_is_not_resumed():
    cfg = load_config("")
    check_options(config_of_an_earlier_run().dump(), cfg, "model_0000009.pth")
    before = config_of_an_earlier_run(GAL__SCORER__SHRINKAGE=4.0).dump()
    with pytest.raises(
        UserError,
        match="model_0000009.pth was made with GAL.SCORER.SHRINKAGE 4.0, but this key is gone, "
        "and all runs have 2.0: resume with the release that it was made with, or start anew",
    ):
        check_options(before, cfg, "model_0000009.pth")
    rates = {f"GAL__ACCEPT__QUANTILE__{end}_RATE": 0.3 for end in ("START", "END")}
    before = config_of_an_earlier_run(GAL__ACCEPT__RATE=0.3, **rates).dump()
    check_options(before, load_config("", ["GAL.ACCEPT.RATE", "0.3"]), "model_0000009.pth")


def test_pools_that_were_begun_with_the_earlier_keys_are_gone_on_with():
    """Images are known by a name of the options that drew them."""
    assert generation_recipe(load_config("")) == "ad36627632c3d986"
