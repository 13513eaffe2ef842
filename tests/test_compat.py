from __future__ import annotations

import subprocess
import sys
import types

import detectron2.utils.env  # noqa: F401  (prepared now, if it was not before)
import numpy as np
import pytest
import torch

from gal_d2 import compat


def test_apply_twice_changes_nothing():
    import detectron2.data.build

    before = detectron2.data.build.np
    compat.apply()
    assert detectron2.data.build.np is before


def test_numpy_aliases_are_scoped():
    module = types.ModuleType("old")
    module.np = np
    with compat.numpy_aliases(module):
        assert module.np.float is float and module.np.int is int
        assert module.np.zeros is np.zeros
    assert module.np is np


@pytest.mark.skipif(
    not isinstance(__import__("sys").modules.get("detectron2._C"), compat._MissingOps),
    reason="this detectron2 has its compiled ops",
)
def test_a_missing_op_says_what_to_install():
    from detectron2.layers import nms_rotated
    from detectron2.layers.deform_conv import _C

    with pytest.raises(compat.MissingDetectron2Op, match=r"deform_conv_forward.*Install"):
        _C.deform_conv_forward(1)
    with pytest.raises(compat.MissingDetectron2Op, match="nms_rotated"):
        nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)


def test_an_old_detectron2_is_refused(monkeypatch):
    import detectron2

    monkeypatch.setattr(detectron2, "__version__", "0.5")
    with pytest.raises(ImportError, match=r"0.5 is too old.*install_detectron2"):
        compat.apply()


@pytest.mark.parametrize(
    "first",
    ["import detectron2", "from detectron2.config import get_cfg", "import gal_d2", "import torch"],
)
def test_either_may_be_imported_first(first):
    """What of detectron2 imports without help may come before this package."""
    code = (
        f"{first}\nimport gal_d2\nimport detectron2.data.build as build\n"
        "from detectron2 import _C, model_zoo\nfrom PIL import Image\n"
        "assert hasattr(Image, 'LINEAR') and build.np.int is int\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
