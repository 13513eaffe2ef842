#!/usr/bin/env python3
"""Make detectron2 importable in this Python: keep the one that is there, or install one.

An installed detectron2 (0.6 or later, any build) is used as it is. Otherwise the registry's
pure-Python copy of v0.6 is installed. That copy ships no C++ sources, so its setup.py fails to
build; it is given a `torch.utils.cpp_extension` that builds nothing, and no compiler is needed.
`gal_d2.compat` then stands in for the compiled ops, none of which this project calls.

Without our help that copy, of 2021, does not import beside today's Pillow, and a script of yours
may well import `detectron2.data` before `gal_d2`. So lines at the end of its `__init__.py` import
`gal_d2` where it is there. A detectron2 that is not the registry's copy is left as it is.

What the registry gives is compared with a known SHA-256 before any of it runs. The Python files of
that very file were compared with those of upstream's v0.6, one by one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENT = "pb1-detectron2==0.6"
# Of its one file, pb1-detectron2-0.6.tar.gz.
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
DISTRIBUTION = REQUIREMENT.partition("==")[0]
REPOSITORY = Path(__file__).resolve().parent.parent
HELP_FIRST = """

# Added by GAL-D2 (tools/install_detectron2.py): what follows needs gal_d2.compat.
import contextlib as _contextlib

with _contextlib.suppress(ModuleNotFoundError):
    import gal_d2 as _gal_d2  # noqa: F401
"""

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
import detectron2
import gal_d2
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
        command = uv_install_command(Path(stub, "requirements.txt"))
        subprocess.run(command, env={**os.environ, "PYTHONPATH": stub}, check=True)


def uv_install_command(requirements: Path) -> list[str]:
    """The command that installs the copy, checking its hash before it builds it.

    Args:
        requirements: file to write the requirement with its hash to.
    """
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
    return [
        *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--verify-hashes"),
        *("--python", sys.executable, "--no-build-isolation", "--requirement", str(requirements)),
    ]


def help_first() -> None:
    """Have the registry's copy of detectron2 import ``gal_d2`` first, whoever imports it."""
    try:
        importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return
    importlib.invalidate_caches()
    init = Path(importlib.util.find_spec("detectron2").origin)
    text = init.read_text()
    if HELP_FIRST not in text:
        init.write_text(text + HELP_FIRST)


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
                  "from source instead (its INSTALL.md says how). After a hash mismatch do not "
                  "install what the registry has: it is not the file that was checked.",
                  file=sys.stderr)  # fmt: skip
            return 1
    help_first()
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
