"""The keys that GAL-D2 adds to detectron2's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from gal_d2.config import add_gal_config


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_gal_config(cfg)
    return cfg


def keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The paths of all values below a node."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_documents_of_generation_name_every_option(cfg: CfgNode, repository: Path) -> None:
    documents = ("generation.md", "interleaving.md")
    text = "".join((repository / "docs" / name).read_text() for name in documents)
    # They leave out what their tables have in common: GAL.GENERATOR, and FILTER or SEGMENTER.
    missing = [
        key
        for key in keys(cfg.GAL.GENERATOR)
        if f"`{key.removeprefix('FILTER.').removeprefix('SEGMENTER.')}`" not in text
        and f"`{key}`" not in text
        and f"`GAL.GENERATOR.{key}`" not in text
    ]
    assert not missing
