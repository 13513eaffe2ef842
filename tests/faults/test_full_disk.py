"""A disk that is full while a file is written: one sentence, and the last good state."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dying import in_child
from kinds import KINDS
from test_checkpoint import THREE, Detector, store  # noqa: F401 (a fixture)

from gal_d2.engine.checkpoint import CheckpointStore
from gal_d2.setup.launch import run_tool

FITS = 1500  # bytes, less than any of the files


class Disk:
    """A folder whose disk can be full."""

    def __init__(self, folder: Path, *, is_real: bool) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        self._is_real = is_real
        self.file_size = 0

    def fill(self) -> None:
        """No file of more than :data:`FITS` bytes can be written from here on."""
        if not self._is_real:
            self.file_size = FITS
            return
        try:
            with self._filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 12))
        except OSError as error:
            assert error.errno == errno.ENOSPC

    def free(self) -> None:
        """There is room again."""
        self.file_size = 0
        self._filler.unlink(missing_ok=True)


@pytest.fixture(params=["limit", pytest.param("tmpfs", marks=pytest.mark.slow)])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """With a limit on the size of files, or a small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "limit":
        yield Disk(folder, is_real=False)
        return
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield Disk(folder, is_real=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # shards are still mapped


@pytest.fixture
def make_store(
    store: Callable[..., CheckpointStore],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path], CheckpointStore]:
    """Of a small model's checkpoints in a folder."""

    def make(folder: Path) -> CheckpointStore:
        made = store(THREE, Detector(len(THREE), width=32))
        made.save_dir = str(folder)
        return made

    return make


@pytest.mark.parametrize("name", KINDS)
def test_one_sentence_and_the_last_good_state(
    name: str, disk: Disk, make_store, tmp_path: Path, tried
) -> None:
    kind = KINDS[name](disk.folder, make_store)
    log = tmp_path / "log"
    kind.write(0)
    before = kind.read()
    assert before
    if name == "annotation cache":
        kind.files()[0].unlink()
    disk.fill()
    status = in_child(lambda: run_tool(kind.write, 1), log=log, file_size=disk.file_size)
    tried["disk full"] += 1
    said = [line for line in log.read_text().splitlines() if line.strip()]
    if name == "annotation cache":  # a convenience: nothing stops for it
        assert status == 0 and ["cannot be kept" in line for line in said] == [True]
    else:
        assert status == 1, said
        (sentence,) = said
        assert sentence.startswith("error: ") and str(disk.folder) in sentence
        assert "No space left on device" in sentence or "File too large" in sentence
    assert kind.read() == before
    disk.free()
    kind.write(2)
    after = kind.read()
    assert after == before if name == "annotation cache" else after != before
    if name != "checkpoint":  # of which the last is read
        assert before.items() <= after.items()
