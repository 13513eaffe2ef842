"""Looks at a page with a browser that has no window: its HTML after its scripts, or a picture."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--virtual-time-budget=8000"),
)


def dump_dom(page: Path, part: str = "") -> str:
    """The page's HTML after its scripts have run.

    Args:
        page: the file.
        part: after the address, "#only=time" say.
    """
    return _run(page, part, (1400, 900), "--dump-dom")


def screenshot(page: Path, picture: Path, part: str = "", size: tuple[int, int] = (1400, 900)):
    """A PNG of what a window of ``size``, (width, height) in pixels, shows.

    Args:
        page: the file.
        picture: the PNG.
        part: after the address.
        size: of the window.
    """
    _run(page, part, size, f"--screenshot={picture.resolve()}")


def _run(page: Path, part: str, size: tuple[int, int], what: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        own = (f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}")
        address = page.resolve().as_uri() + part
        run = subprocess.run(
            [CHROMIUM, *_OPTIONS, *own, what, address], capture_output=True, timeout=300, check=True
        )
    return run.stdout.decode("utf-8", errors="replace")
