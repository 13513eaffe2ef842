"""Files that are cut or have a bit flipped: named, and never used as if nothing were."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from kinds import KINDS, Kind
from test_checkpoint import store  # noqa: F401 (a fixture)
from test_full_disk import make_store  # noqa: F401 (a fixture)

from gal_d2.errors import UserError


def look(kind: Kind, caplog: pytest.LogCaptureFixture) -> tuple[dict, str]:
    """What can be read, and what is said."""
    caplog.clear()
    try:
        return dict(kind.read()), caplog.text
    except UserError as error:
        return {}, f"{caplog.text}{error}"


@pytest.mark.parametrize("times", [12, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_damage_is_named(
    name: str,
    times: int,
    make_store,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    tried,
) -> None:
    caplog.set_level(logging.WARNING)
    rng = np.random.default_rng((times, list(KINDS).index(name)))
    kind = KINDS[name](tmp_path / "files", make_store)
    kind.folder.mkdir()
    kind.write(0)
    kind.write(1)
    file = kind.files()[-1]
    content = file.read_bytes()
    good, said = look(kind, caplog)
    assert good and file.name not in said
    noticed = 0
    for number in range(times):
        damaged = bytearray(content)
        if number % 4 == 3:
            damaged = damaged[: int(rng.integers(len(content)))]
        else:
            damaged[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        tried["damaged file"] += 1
        read, said = look(kind, caplog)
        assert all(good.get(key) == value for key, value in read.items()), (number, said)
        is_named = file.name in said
        assert is_named or read == good, number
        noticed += is_named
    assert noticed > times / 2
    file.write_bytes(content)
    assert look(kind, caplog)[0] == good


def test_files_of_earlier_releases_still_open(make_store, tmp_path: Path) -> None:  # noqa: F811
    """They have no checksum: a checkpoint, a snapshot, a ledger, a journal."""
    for name in ("checkpoint", "snapshot", "ledger", "journal"):
        kind = KINDS[name](tmp_path / name, make_store)
        kind.folder.mkdir()
        kind.write(0)
        good = kind.read()
        (file,) = kind.files()
        content = file.read_bytes()
        if name == "ledger":
            file.rename(file.with_name(f"{file.stem.rpartition('-')[0]}.parquet"))
        elif name == "journal":
            start = content.index(b'"recipe"')
            file.write_bytes(b"{" + content[start:])
        else:
            seal = content.rindex(b"gal_d2 crc32 ")
            file.write_bytes(content[: seal - 2] + b"\0\0")
        assert kind.read() == good
