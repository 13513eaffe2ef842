"""What the documentation says about commands, code, keys, files and links holds.

Commands are parsed by the scripts' own parsers, not run.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from fvcore.common.registry import Registry

sys.path.insert(0, str(Path(__file__).parent))

from pages import Command, Page

from gal_d2.config import add_gal_config
from gal_d2.errors import UserError
from gal_d2.setup.configuration import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
PATHS = [
    REPOSITORY / "README.md",
    REPOSITORY / "datasets" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
PAGES = [Page.read(path) for path in PATHS]
# A page that `make docs` makes.
GENERATED = {"keys.md"}
# Programs that a page shows how to use GAL-D2's files in, and that nothing here needs.
OTHER_TOOLS = {"fiftyone", "datasets"}
# In capitals like a key: variables of the environment, and placeholders.
NO_KEYS = {
    "RANK",
    "WORLD_SIZE",
    "KEY",
    "VALUE",
    "FILE",
    "FOLDER",
    "OUTPUT",
    "NAME",
    "PREFIX",
    "RGBA",
}
KEY = re.compile(r"\b(?:GAL|SOLVER|MODEL|INPUT|DATALOADER|TEST|DATASETS)\.[A-Z][A-Z0-9_.]*\b")
FILE = re.compile(r"(?:gal_d2|tools|benchmarks|configs|tests|docs)/[\w./*-]*")


class ParsedError(BaseException):
    """The arguments were parsed; no tool catches this."""


@contextlib.contextmanager
def parse_only(script: Path, arguments: tuple[str, ...]) -> Iterator[list[argparse.Namespace]]:
    """Within, ``parse_args`` ends the script with :class:`ParsedError`; gives what was parsed."""
    found: list[argparse.Namespace] = []
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        found.append(original(parser, *args, **kwargs))
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        # A script may be run more than once here, and registers what it registers each time.
        patch.setattr(Registry, "_do_register", lambda self, name, thing: None)
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.syspath_prepend(str(script.parent))
        yield found


def parse(command: Command) -> argparse.Namespace:
    """What a script's own parser makes of a command."""
    script = REPOSITORY / command.script
    errors = io.StringIO()
    with parse_only(script, command.arguments) as found, contextlib.redirect_stderr(errors):
        try:
            if "def parse_arguments(" in script.read_text():
                names = runpy.run_path(str(script), run_name="a_command")
                found.append(names["parse_arguments"]())
            else:
                runpy.run_path(str(script), run_name="__main__")
        except ParsedError:
            pass
        except SystemExit:
            pytest.fail(f"{command}\n{errors.getvalue()}")
    return found[0]


def commands() -> list[Command]:
    """Each command of the pages once."""
    unique = {
        (command.script, command.arguments): command
        for page in PAGES
        for command in page.commands()
    }
    return list(unique.values())


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_gal_config(cfg)
    return cfg


@pytest.fixture(scope="module")
def names(cfg) -> set[str]:
    """Full names of all keys and nodes."""

    def below(node: CfgNode, prefix: str = "") -> Iterator[str]:
        for name, value in node.items():
            yield prefix + name
            if isinstance(value, CfgNode):
                yield from below(value, f"{prefix}{name}.")

    return set(below(cfg))


def test_there_are_commands_on_every_page_that_shows_how_to() -> None:
    found = {page.path.name for page in PAGES if page.commands()}
    assert found >= {"README.md", "tutorial.md", "own_data.md", "lvis.md", "generation.md"}
    assert len(commands()) > 50


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_is_one_that_its_script_takes(command, monkeypatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    parsed = parse(command)
    options = getattr(parsed, "opts", None) or getattr(parsed, "options", None) or []
    config = getattr(parsed, "config_file", None) or ""
    if not str(config).startswith("configs/"):
        config = ""  # one that a training writes, or the benchmark's own
    try:
        load_config(str(config), list(options))
    except UserError as error:
        pytest.fail(f"{command}\n{error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_every_key_that_is_named_exists(page, names) -> None:
    missing = {key for key in KEY.findall(page.text) if key.rstrip(".") not in names}
    assert missing - {"MODEL.ROI_HEADS.MY_OPTION"} == set()  # of a reader's own project
    ends = {name.split(".", k)[-1] for name in names for k in range(name.count(".") + 1)}
    words = [word for code in page.codes() for word in re.findall(r"^[A-Z][A-Z0-9_.]+\b", code)]
    words = [word for word in words if "_" in word or "." in word or word in ends]
    unknown = {word.rstrip(".") for word in words} - ends - NO_KEYS
    assert {word for word in unknown if not is_a_part(word, ends)} == set()


def is_a_part(word: str, ends: set[str]) -> bool:
    """Whether a name leaves out the end, or is of detectron2's environment or of a file."""
    if word.startswith(("OUTPUT_DIR", "DETECTRON2_", "MY_", "GAL.", "CLIP_")):
        return True
    return any(end.startswith(f"{word}.") for end in ends)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_every_file_that_is_named_exists(page) -> None:
    missing = []
    for code in page.codes():
        for name in FILE.findall(code):
            name = name.rstrip(".")
            if not (any(REPOSITORY.glob(name)) if "*" in name else (REPOSITORY / name).exists()):
                missing.append(name)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_every_link_leads_somewhere(page) -> None:
    by_path = {page.path: page for page in PAGES}
    for link in page.links():
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        if path.name in GENERATED:
            continue
        assert path.exists(), link
        if anchor:
            assert anchor in by_path[path].anchors(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_targets_of_make_exist(page) -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    code = " ".join([*page.codes(), *(block for _, block in page.blocks)])
    assert set(re.findall(r"\bmake ([a-z]+)\b", code)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_extras_that_are_installed_exist(page) -> None:
    extras = re.search(r"extras_require=\{(.*?)\}", (REPOSITORY / "setup.py").read_text(), re.S)[1]
    known = set(re.findall(r'"(\w+)":', extras))
    for named in re.findall(r"pip install -e '\.\[([\w,]+)\]'", page.text):
        assert set(named.split(",")) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.name)
def test_python_compiles_and_its_imports_are_there(page) -> None:
    for block in page.python():
        for node in ast.walk(ast.parse(block, filename=page.path.name)):
            if isinstance(node, ast.ImportFrom) and node.module not in OTHER_TOOLS:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name not in OTHER_TOOLS:
                        importlib.import_module(alias.name)


RUNNABLE = [(page.path.name, block) for page in PAGES for block in page.runnable]


@pytest.mark.parametrize(("page", "block"), RUNNABLE, ids=[page for page, _ in RUNNABLE])
def test_python_that_is_marked_runs(page, block, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {"__name__": "a_page"})


def test_a_page_is_taken_apart(tmp_path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "# Take it, now\n\nRun `python tools/a.py --two 2`, or [read](b.md#c):\n\n"
        "    tools/b.py x \\\n      --y 'a b'  # why\n    # not this: tools/c.py\n\n"
        "1. so\n\n       tools/d.py\n\n<!-- run -->\n```python\nx = 1\n```\n"
    )
    page = Page.read(path)
    assert page.commands() == [
        Command("a.md", "tools/b.py", ("x", "--y", "a b")),
        Command("a.md", "tools/d.py", ()),
        Command("a.md", "tools/a.py", ("--two", "2")),
    ]
    assert page.links() == ["b.md#c"] and page.anchors() == {"take-it-now"}
    assert page.runnable == ("x = 1\n",) and page.python() == ["x = 1\n"]
