"""tools/config_keys.py: the page of keys, by the source of the config."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.config import CfgNode, get_cfg

from gal_d2.config import add_gal_config

SOURCE = '''
def add_gal_config(cfg):
    """Docstring."""
    # Numbers of things.
    cfg.NEW = CfgNode()
    # How many | things,
    # at most.
    cfg.NEW.MOST = 3
    cfg.NEW.LEAST = -1
    _add_more(cfg.NEW)


def _add_more(new):
    # Which.
    new.WHICH = new.get("WHICH", ["a"])
'''


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    path = repository / "tools" / "config_keys.py"
    spec = importlib.util.spec_from_file_location("config_keys", path)
    module = sys.modules["config_keys"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in node.items():
        below = leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else None
        found |= {f"{prefix}{name}": value} if below is None else below
    return found


def test_a_key_has_its_default_and_the_comment_above_it(tool, tmp_path) -> None:
    path = tmp_path / "config.py"
    path.write_text(SOURCE)
    found = tool.ConfigSource(path)
    assert found.nodes == {"NEW": "Numbers of things."}
    assert found.keys == [
        tool.Key("NEW.MOST", "3", "How many | things, at most."),
        tool.Key("NEW.LEAST", "-1", "How many | things, at most."),
        tool.Key("NEW.WHICH", "['a']", "Which."),
    ]
    page = tool.keys_page(path)
    assert "## NEW\n\nNumbers of things.\n\n| key" in page
    assert "| `MOST` | `3` | How many \\| things, at most. |\n| `LEAST` | `-1` | as above |" in page


def test_the_page_has_every_key_that_is_added_with_its_default(tool) -> None:
    cfg = get_cfg()
    before = leaves(cfg)
    add_gal_config(cfg)
    added = {name: value for name, value in leaves(cfg).items() if name not in before}
    found = tool.ConfigSource()
    keys = {key.name: key for key in found.keys}
    assert keys.keys() >= added.keys()
    assert keys.keys() <= leaves(cfg).keys()  # detectron2 may have some by itself
    for name, value in added.items():
        assert eval(keys[name].default) == value, name
    explained = {
        k.name: k.comment or found.nodes.get(k.name.rpartition(".")[0]) for k in found.keys
    }
    assert [name for name, text in explained.items() if not text] == []
