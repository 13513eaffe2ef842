#!/usr/bin/env python3
"""Make detectron2 importable in this Python: keep the one that is there, or install one.

An installed detectron2 (0.6 or later, any build) is used as it is. Otherwise the registry's
pure-Python copy of v0.6 is installed. That copy ships no C++ sources, so its setup.py fails to
build; it is given a `torch.utils.cpp_extension` that builds nothing, and no compiler is needed.
`gal_d2.compat` then stands in for the compiled ops, none of which this project calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENT = "pb1-detectron2==0.6"
REPOSITORY = Path(__file__).resolve().parent.parent

STUB_FILES = {
    # detectron2's setup.py only looks at the version and at ROCm support.
    "torch/__init__.py": '__version__ = "2.0"\nfrom . import cuda, version\n',
    "torch/cuda.py": "def is_available():\n    return False\n",
    "torch/version.py": "hip = None\n",
    "torch/utils/__init__.py": "",
    "torch/utils/cpp_extension.py": """\
from setuptools import Extension
from setuptools.command.build_ext import build_ext

CUDA_HOME = ROCM_HOME = None


class BuildExtension(build_ext):
    def run(self):
        pass


def CppExtension(name, sources, **kwargs):
    return Extension(name, [])


CUDAExtension = CppExtension
""",
}

IMPORT_CHECK = """\
import gal_d2
import detectron2
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

cfg = get_cfg()
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.MASK_ON = True
cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
build_model(cfg)
print(f"detectron2 {detectron2.__version__} imports and builds a model")
"""


def install_registry_copy() -> None:
    """Install the pure-Python copy with uv: pip refuses its metadata, which names a URL."""
    pip_install = [sys.executable, "-m", "pip", "install", "--quiet"]
    needed = ["uv"] if importlib.util.find_spec("uv") is None else []
    # The copy is built without isolation, by these; setuptools 81 dropped what it imports.
    subprocess.run([*pip_install, *needed, "setuptools<81", "wheel"], check=True)
    with tempfile.TemporaryDirectory() as stub:
        for name, text in STUB_FILES.items():
            path = Path(stub, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        uv_install = [sys.executable, "-m", "uv", "pip", "install", "--quiet"]
        subprocess.run(
            [*uv_install, "--python", sys.executable, "--no-build-isolation", REQUIREMENT],
            env={**os.environ, "PYTHONPATH": stub},
            check=True,
        )


def check_import() -> bool:
    """Whether detectron2 imports in a fresh interpreter and builds a Mask R-CNN."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_CHECK],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    return result.returncode == 0


def main() -> int:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    if importlib.util.find_spec("torch") is None:
        print("install_detectron2: torch is missing: install it first (pip install torch "
              "torchvision).", file=sys.stderr)  # fmt: skip
        return 1
    if importlib.util.find_spec("detectron2") is None:
        try:
            install_registry_copy()
        except subprocess.CalledProcessError as error:
            print(f"install_detectron2: {' '.join(map(str, error.cmd))} failed; install detectron2 "
                  "from source instead (its INSTALL.md says how).", file=sys.stderr)  # fmt: skip
            return 1
    if check_import():
        return 0
    print(
        "install_detectron2: the installed detectron2 does not import (see the traceback above); "
        "uninstall it and run this again, or rebuild it for your torch.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
