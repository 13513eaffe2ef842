"""What a browser makes of a page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=8000", "--window-size=1400,900"),
)


def dump_dom(page: Path, profile: Path, part: str = "") -> str:
    """The page's HTML after its scripts have run.

    Args:
        page: the file.
        profile: an empty folder.
        part: after the address, "#only=..." say.
    """
    run = subprocess.run(
        [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri() + part],
        capture_output=True,
        timeout=300,
        check=True,
    )
    return run.stdout.decode("utf-8", errors="replace")
