#!/usr/bin/env python3
"""Print every configuration key that GAL-D2 adds to detectron2's, with default and meaning.

    tools/config_keys.py > keys.md

Read from the source of gal_d2/config.py, whose comments say what a key does; nothing is imported.
`make docs` makes the page "Configuration keys" of the site with it.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

SOURCE = Path(__file__).resolve().parent.parent / "gal_d2" / "config.py"
PAGE = "keys.md"
INTRODUCTION = """\
# Configuration keys

Every key that GAL-D2 adds to detectron2's, with its default. Set a key in a config file, or on the
command line after all flags, as in `SOLVER.MAX_ITER 700`. A key that does not exist is refused,
and the nearest name is shown.
"""
# A reference of Sphinx, as docstrings have it: the site shows the name alone.
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):(<code>)~?(?:[\w.]*\.)?(\w+)")


@dataclass(frozen=True)
class Key:
    """A configuration key.

    Attributes:
        name: full name, as on the command line.
        default: as Python writes it.
        comment: what stands above it in the source; keys that share a comment have it each.
    """

    name: str
    default: str
    comment: str


class ConfigSource:
    """The keys that ``add_gal_config`` adds, by its source.

    Args:
        path: a module with ``add_gal_config(cfg)`` and the functions that it calls, each with a
            node of the config as its only argument.

    Attributes:
        keys: in the order of the source.
        nodes: full name of a node -> the comment above it.
    """

    def __init__(self, path: Path = SOURCE) -> None:
        text = path.read_text()
        self._lines = text.splitlines()
        self._functions = {
            node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)
        }
        self.nodes: dict[str, str] = {}
        self.keys = list(self._keys_of("add_gal_config", ""))

    def _keys_of(self, function: str, prefix: str) -> Iterator[Key]:
        """The keys that a function adds.

        Args:
            function: name.
            prefix: full name of the node that is its argument; "" is the root.
        """
        body = self._functions[function].body
        nodes = {self._functions[function].args.args[0].arg: prefix}
        # A node that is filled before it gets its place: `cfg.MODEL.TIMM = timm`.
        for statement in body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
                nodes[statement.value.id] = self._name(statement.targets[0], nodes)
        comment, above = "", self._functions[function].lineno + 1
        for statement in body:
            own = self._comment(above, statement.lineno)
            comment = own or comment
            above = statement.end_lineno + 1
            if isinstance(statement, ast.Assign):
                target, value = statement.targets[0], statement.value
                if isinstance(target, ast.Name):
                    if isinstance(value, ast.Attribute):
                        nodes[target.id] = self._name(value, nodes)
                elif not isinstance(value, ast.Name) and not _is_node(value):
                    yield Key(self._name(target, nodes), _default(value), comment)
                elif _is_node(value):
                    self.nodes[self._name(target, nodes)] = own
                    comment = ""
            elif isinstance(statement, ast.For):
                yield from self._listed(statement, nodes)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                called = statement.value
                if isinstance(called.func, ast.Name) and called.func.id in self._functions:
                    node = self._name(called.args[0], nodes)
                    yield from self._keys_of(called.func.id, node)

    def _listed(self, loop: ast.For, nodes: dict[str, str]) -> Iterator[Key]:
        """The keys of `for key, default in (("A", 1), ...): if key not in node: ...`."""
        node = self._name(loop.body[0].test.comparators[0], nodes)
        above = loop.lineno
        for pair in loop.iter.elts:
            key, default = pair.elts
            comment = self._comment(above, pair.lineno)
            above = pair.end_lineno + 1
            yield Key(f"{node}.{key.value}", _default(default), comment)

    def _name(self, target: ast.expr, nodes: dict[str, str]) -> str:
        if isinstance(target, ast.Name):
            return nodes[target.id]
        parent = self._name(target.value, nodes)
        return f"{parent}.{target.attr}" if parent else target.attr

    def _comment(self, first: int, last: int) -> str:
        """The comments in lines ``first`` to ``last`` - 1, counted from 1, as one paragraph."""
        lines = (line.strip() for line in self._lines[first - 1 : last - 1])
        return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def _is_node(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and getattr(value.func, "id", "") == "CfgNode"


def _default(value: ast.expr) -> str:
    """``cfg.get(name, default)`` has its default, anything else itself."""
    is_get = isinstance(value, ast.Call) and getattr(value.func, "attr", "") == "get"
    return ast.unparse(value.args[1] if is_get else value)


def keys_page(source: Path = SOURCE) -> str:
    """The page of the site, in Markdown: a table for each node."""
    found = ConfigSource(source)
    lines, node, comment = [INTRODUCTION], None, ""
    order = list(dict.fromkeys(key.name.rpartition(".")[0] for key in found.keys))
    # A node's keys stand together, also where the source adds some of them later.
    for key in sorted(found.keys, key=lambda key: order.index(key.name.rpartition(".")[0])):
        parent, _, name = key.name.rpartition(".")
        if parent != node:
            meaning = found.nodes.get(parent)
            lines += ["", f"## {parent}", "", *([meaning, ""] if meaning else [])]
            lines += ["| key | default | meaning |", "|---|---|---|"]
            node, comment = parent, ""
        meaning = "as above" if key.comment and key.comment == comment else key.comment
        comment = key.comment
        cells = (f"`{name}`", f"`{key.default}`", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------- called by mkdocs


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of keys, which is made anew for each build."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=keys_page()))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that the menu does not list at the end of its part "How to"."""
    listed = set(re.findall(r"'([\w./-]+\.md)'", str(config.nav)))
    pages = (path.name for path in sorted(Path(config.docs_dir).glob("*.md")))
    how_to = next(part["How to"] for part in config.nav if "How to" in part)
    how_to += [page for page in pages if page not in listed]
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files that are no pages stay links in the repository; here they are text."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)\s]+\)", r"\1", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show references of docstrings as plain names."""
    return _ROLE.sub(r"\1\2", html)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(keys_page(), end="")
