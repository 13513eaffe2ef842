"""The documentation site builds without a warning, and needs no network to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_all_pages_are_there_and_in_the_menu(site, repository) -> None:
    menu = set(re.findall(r'href="([\w./-]+\.html)"', (site / "index.html").read_text()))
    pages = {path.stem for path in (repository / "docs").glob("*.md")} | {"keys"}
    assert {f"{page}.html" for page in pages} <= menu


def test_nothing_is_fetched_from_elsewhere(site) -> None:
    for path in site.glob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|link)\b[^>]*(?:src|href)="(https?:[^"]+)"', path.read_text()
        )
        assert fetched == [], path.name


def test_the_pages_that_are_made_from_the_source_have_its_words(site) -> None:
    keys = (site / "keys.html").read_text()
    assert "GAL.POOL" in keys and "Folder of the instance pool" in keys
    api = (site / "api.html").read_text()
    assert "resume_or_load" in api or "GALTrainer" in api
    assert ":class:" not in api and ":func:" not in api and ":meth:" not in api
