"""tools/config_keys.py: the page of keys, by the source of the config."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from detectron2.config import CfgNode, get_cfg
from scripts import load_script

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
    return load_script(repository / "tools/config_keys.py")


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
    page = tool.keys_page(
        path,
        readers={"NEW.MOST": ["gal_d2/a/b.py", "tools/c.py"]},
        figures={"NEW": "Counted.", "NEW.MOST": "Found | 3.", "NEW.LEAST": "Found | 3."},
    )
    assert "## NEW\n\nNumbers of things.\n\nCounted.\n\n| key" in page
    most = "How many \\| things, at most.<br>Found \\| 3."
    assert f"| `MOST` | `3` | {most} | `a/b.py`, `tools/c.py` |\n" in page
    assert "| `LEAST` | `-1` | as above |  |" in page


def test_a_key_is_found_where_it_is_read(tool, tmp_path) -> None:
    files = {
        "gal_d2/use.py": """
def build(cfg):
    node, other = cfg.GAL.POOL, cfg.MODEL
    return read(1, node, weight=cfg.GAL.WEIGHT), other.TIMM.NAME
""",
        "gal_d2/part/reader.py": """
class Reader:
    def read(self, number, options, *, weight):
        return options.ROOT, number.LAG
""",
        "tools/tool.py": "def main(args):\n    print(args.cfg.GAL.POOL.ROOT, args.ROOT)\n",
        "gal_d2/config.py": "def add(cfg):\n    cfg.GAL.POOL.LAG = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = tool.ConfigReaders(tmp_path).files
    assert found["GAL.POOL.ROOT"] == ["tools/tool.py", "gal_d2/part/reader.py"]
    assert found["GAL.WEIGHT"] == found["MODEL.TIMM.NAME"] == ["gal_d2/use.py"]
    assert "GAL.POOL.LAG" not in found


def test_every_key_is_read_and_every_figure_is_of_a_key(tool) -> None:
    source, readers = tool.ConfigSource(), tool.ConfigReaders().files
    assert [key.name for key in source.keys if not readers.get(key.name)] == []
    nodes = {key.name.rpartition(".")[0] for key in source.keys}
    assert tool.measured().keys() <= nodes | {key.name for key in source.keys}


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
