#!/usr/bin/env python3
"""Print every configuration key that GAL-D2 adds to detectron2's.

    tools/config_keys.py > keys.md

With default, meaning, the files that read it, and what it did where that was measured. Keys and
meaning are the assignments and comments of gal_d2/config.py, readers are found in the source;
nothing of it is imported. `make docs` makes the page "Configuration keys" of the site with it.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "gal_d2" / "config.py"
MEASURED = Path(__file__).with_name("config_keys_measured.yaml")
# Add, take away and list keys; they do not read them.
NO_READERS = {"gal_d2/config.py", "gal_d2/retired_keys.py", "tools/config_keys.py"}
PAGE = "keys.md"
INTRODUCTION = """\
# Configuration keys

Every key that GAL-D2 adds to detectron2's, with its default. Set a key in a config file, or on the
command line after all flags, as in `SOLVER.MAX_ITER 700`. A key that does not exist is refused,
and the nearest name is shown.

{count} keys are of GAL-D2 alone, below `GAL`. The last column has the files of `gal_d2` that read a
key. A figure is given where one was measured: of the miniature, unless it says otherwise.
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


class ConfigReaders:
    """Where which keys are read, by the source.

    A key is read by its attributes: ``cfg.GAL.POOL.ROOT``, or ``node.ROOT`` where ``node`` is a
    variable or an argument that was given ``cfg.GAL.POOL``.

    Args:
        root: folder that has ``gal_d2`` and ``tools``.

    Attributes:
        files: full name of a node or key -> paths relative to ``root``, in order.
    """

    def __init__(self, root: Path = ROOT) -> None:
        paths = sorted([*(root / "gal_d2").rglob("*.py"), *(root / "tools").glob("*.py")])
        sources = {path.relative_to(root).as_posix(): path.read_text() for path in paths}
        trees = {name: ast.parse(text) for name, text in sources.items() if name not in NO_READERS}
        self.files: dict[str, list[str]] = {}
        # (function, position or name of an argument) -> the nodes that calls give it.
        self._given: dict[tuple[str, int | str], set[str]] = defaultdict(set)
        # A node passes through a call or two from the whole config to where its keys are read.
        for _ in range(3):
            for name, tree in trees.items():
                for scope in ast.walk(tree):
                    if isinstance(scope, ast.Module | ast.FunctionDef):
                        self._read(scope, name)

    def _read(self, scope: ast.Module | ast.FunctionDef, file: str) -> None:
        parts = list(ast.walk(scope))
        known = self._arguments(scope)
        for part in parts:
            if isinstance(part, ast.Assign):
                for target, value in _pairs(part):
                    known[target] |= _nodes(value, known)
        for part in parts:
            if isinstance(part, ast.Attribute):
                for node in _nodes(part, known):
                    found = self.files.setdefault(node, [])
                    if file not in found:
                        found.append(file)
            elif isinstance(part, ast.Call):
                called = getattr(part.func, "attr", getattr(part.func, "id", ""))
                given = [*enumerate(part.args), *((k.arg, k.value) for k in part.keywords)]
                for place, value in given:
                    self._given[called, place] |= _nodes(value, known)

    def _arguments(self, scope: ast.Module | ast.FunctionDef) -> defaultdict[str, set[str]]:
        known: defaultdict[str, set[str]] = defaultdict(set)
        if isinstance(scope, ast.FunctionDef):
            names = [argument.arg for argument in scope.args.args]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            by_name = [*names, *(argument.arg for argument in scope.args.kwonlyargs)]
            for place, name in [*enumerate(names), *((name, name) for name in by_name)]:
                known[name] |= self._given[scope.name, place]
        return known


def _pairs(assignment: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    """Variables with what is assigned to them; ``a, b = x, y`` are two."""
    for target in assignment.targets:
        targets, values = [target], [assignment.value]
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            targets, values = target.elts, assignment.value.elts
        for name, value in zip(targets, values, strict=True):
            if isinstance(name, ast.Name):
                yield name.id, value


def _nodes(value: ast.expr, known: Mapping[str, set[str]]) -> set[str]:
    """Full names of the nodes or keys that an expression may be."""
    if isinstance(value, ast.Name):
        return known.get(value.id, set())
    if not isinstance(value, ast.Attribute):
        return set()
    parents = _nodes(value.value, known)
    if value.attr in ("GAL", "MODEL", "SOLVER") and not parents:
        return {value.attr}
    return {f"{parent}.{value.attr}" for parent in parents}


def measured(path: Path = MEASURED) -> dict[str, str]:
    """What keys or nodes did in experiments: full name -> a sentence in Markdown."""
    return yaml.safe_load(path.read_text())


def keys_page(
    source: Path = SOURCE,
    readers: Mapping[str, Iterable[str]] | None = None,
    figures: Mapping[str, str] | None = None,
) -> str:
    """The page of the site, in Markdown: a table for each node.

    Args:
        source: as for :class:`ConfigSource`.
        readers: what :class:`ConfigReaders` finds; None: in this repository.
        figures: what :func:`measured` gives; None: of this repository.
    """
    found = ConfigSource(source)
    readers = ConfigReaders().files if readers is None else readers
    figures = measured() if figures is None else figures
    count = sum(key.name.startswith("GAL.") for key in found.keys)
    lines, node, above = [INTRODUCTION.format(count=count).rstrip()], None, ("", "")
    order = list(dict.fromkeys(key.name.rpartition(".")[0] for key in found.keys))
    # A node's keys stand together, also where the source adds some of them later.
    for key in sorted(found.keys, key=lambda key: order.index(key.name.rpartition(".")[0])):
        parent, _, name = key.name.rpartition(".")
        if parent != node:
            lines += ["", f"## {parent}", ""]
            for text in (found.nodes.get(parent), figures.get(parent)):
                lines += [text, ""] if text else []
            lines += ["| key | default | meaning | read in |", "|---|---|---|---|"]
            node, above = parent, ("", "")
        texts = (key.comment, figures.get(key.name, ""))
        shown = [
            "as above" if text == before else text
            for text, before in zip(texts, above, strict=True)
            if text
        ]
        above = texts
        files = (file.removeprefix("gal_d2/") for file in readers.get(key.name, ()))
        where = ", ".join(f"`{file}`" for file in files)
        cells = (f"`{name}`", f"`{key.default}`", "<br>".join(dict.fromkeys(shown)), where)
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
