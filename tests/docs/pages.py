"""Reads the documentation's pages: commands, code blocks, links, names of keys and of files."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
_INDENTED = re.compile(r"(?:^\n|\A)((?:(?: {4}.*)?\n)+)", re.M)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)
_COMMAND = re.compile(
    r"\s*(?:\S*python\s+|torchrun\s+--nproc-per-node \d+\s+)?((?:tools|benchmarks)/\w+\.py)(?= |$)"
)
# Ends of what a shell command is made of; the rest of the line is none of the tool's arguments.
_SHELL = re.compile(r"\s+(?:#|&&|;|\|)\s.*$")


@dataclass(frozen=True)
class Command:
    """A call of a script of the repository.

    Attributes:
        page: name of the page, for messages.
        script: path from the repository's root.
        arguments: as the script gets them.
    """

    page: str
    script: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.script} {shlex.join(self.arguments)}"


@dataclass(frozen=True)
class Page:
    """A Markdown page.

    Attributes:
        path: of the file.
        text: all of it.
        prose: without its blocks of code.
        blocks: language ("" if none is named) and text of each block of code.
        runnable: the Python blocks below a line ``<!-- run -->``.
    """

    path: Path
    text: str
    prose: str
    blocks: tuple[tuple[str, str], ...]
    runnable: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Page:
        """Read a page."""
        text = path.read_text()
        fenced = [(match[2], textwrap.dedent(match[3])) for match in _FENCED.finditer(text)]
        rest = _FENCED.sub("", text)
        # Code inside of a list is indented further than its text.
        indented = [("", textwrap.dedent(match[1])) for match in _INDENTED.finditer(rest)]
        runnable = re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", text, re.M | re.S)
        prose = _INDENTED.sub("\n", rest)
        blocks = tuple((language, block) for language, block in fenced + indented if block.strip())
        return cls(path, text, prose, blocks, tuple(runnable))

    def commands(self) -> list[Command]:
        """Every call of a script, in blocks of code and between backticks in the text."""
        lines = [
            line
            for language, block in self.blocks
            if language in ("", "bash", "sh")
            for line in block.replace("\\\n", " ").splitlines()
        ]
        # In the text a script's name alone is its name; with arguments, or as `python X`, a call.
        lines += [code for code in _CODE.findall(" ".join(self.prose.split("\n"))) if " " in code]
        found = []
        for line in lines:
            match = _COMMAND.match(line)
            if match:
                words = shlex.split(_SHELL.sub("", line[match.end() :]))
                found.append(Command(self.path.name, match[1], tuple(words)))
        return found

    def python(self) -> list[str]:
        """The blocks of Python code, marked so or beginning with an import."""
        return [
            block
            for language, block in self.blocks
            if language == "python" or (not language and re.match(r"(from|import) \w", block))
        ]

    def codes(self) -> list[str]:
        """What stands between backticks in the text."""
        return _CODE.findall(self.prose)

    def links(self) -> list[str]:
        """Targets of links and pictures that are no addresses on the web."""
        return [link for link in _LINK.findall(self.prose) if "://" not in link]

    def anchors(self) -> set[str]:
        """What a link to a place on this page may name."""
        return {
            re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())
            for heading in _HEADING.findall(self.prose)
        }
