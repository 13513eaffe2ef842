"""The commands and the code of docs/other_tools.md, run as they stand there."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from scripts import load_script

from gal_d2.setup.launch import run_tool

OPTIONAL = ("fiftyone", "datasets")


def page(repository: Path) -> str:
    return (repository / "docs/other_tools.md").read_text()


def run_commands(repository: Path) -> int:
    commands = re.findall(r"^    (tools/.+)$", page(repository), re.MULTILINE)
    for command in commands:
        file, *arguments = shlex.split(command)
        module = load_script(repository / file)
        assert not run_tool(module.main, module.parse_arguments(arguments))
    return len(commands)


def blocks(repository: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page(repository), re.MULTILINE | re.DOTALL)


def test_commands_and_code(work, repository):
    assert run_commands(repository) == 5
    ran = 0
    for block in blocks(repository):
        if any(re.search(rf"^(import|from) {name}\b", block, re.MULTILINE) for name in OPTIONAL):
            continue
        exec(compile(block, "docs/other_tools.md", "exec"), {})
        ran += 1
    assert ran == 2 and Path("mine/as_coco/annotations.json").is_file()


@pytest.mark.parametrize("package", OPTIONAL)
def test_code_of_optional_packages(work, repository, package, monkeypatch):
    if find_spec(package) is None or find_spec(package).origin is None:
        pytest.skip(f"{package} is not installed")  # the folder datasets/ is no package
    monkeypatch.setenv("HF_HOME", str(work / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_commands(repository)
    pattern = rf"^(import|from) {package}\b"
    mine = [b for b in blocks(repository) if re.search(pattern, b, re.MULTILINE)]
    assert mine
    for block in mine:
        found: dict = {}
        exec(compile(block, "docs/other_tools.md", "exec"), found)
        assert len(found.get("cut_outs") or found["scores"]) == 5
    if package == "datasets":
        exec(compile(mine[0], "docs/other_tools.md", "exec"), found)
        assert found["cut_outs"][0]["image"].mode == "RGBA"
