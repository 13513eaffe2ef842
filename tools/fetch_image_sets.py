#!/usr/bin/env python3
"""Fetch pictures: Fashion-MNIST for the miniature, CIFAR-10 for the noise experiment.

tools/fetch_image_sets.py fashion-mnist
tools/fetch_image_sets.py cifar10 --output datasets/sources

Fashion-MNIST (30 MB, MIT) comes from torchvision's download, or else from Debian's package
dataset-fashion-mnist, which apt-get downloads (without root, with package lists of our own) and
dpkg-deb unpacks into the folder; nothing is installed. CIFAR-10 (170 MB) comes from torchvision's
download. What is there is kept. Whatever is fetched is verified in a temporary folder before it
gets its final name. tools/prepare_miniature.py and tools/noise_experiment.py call this.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gal_d2.errors import UserError
from gal_d2.setup.launch import run_tool
from gal_d2.testbeds.miniature.sources import (
    DEBIAN_FOLDER,
    DEBIAN_PACKAGE,
    SourceError,
    fashion_mnist_files,
    has_fashion_mnist,
    read_fashion_mnist,
)

logger = logging.getLogger("gal_d2")

IMAGE_SETS = ("fashion-mnist", "cifar10")


def fetch_fashion_mnist(sources: Path) -> bool:
    """Download Fashion-MNIST into ``sources/fashion-mnist``; whether a way led to it.

    The files get their final names only once all four were read and checked.

    Raises:
        SourceError: ``sources`` cannot be created.
    """
    try:
        sources.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"{sources} cannot be created ({error.strerror}): choose another folder of sources."
        ) from error
    ways: tuple[tuple[str, Callable[[Path], Path]], ...] = (
        ("torchvision's download", _download_with_torchvision),
        (f"Debian's package {DEBIAN_PACKAGE}", _download_with_apt),
    )
    for way, download in ways:
        logger.info("Fetching Fashion-MNIST (30 MB) by %s into %s.", way, sources)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=sources) as scratch:
            try:
                folder = download(Path(scratch).resolve())  # commands run in it
                read_fashion_mnist(folder)
            except SourceError as error:
                logger.info("No Fashion-MNIST by %s: %s", way, error)
                continue
            final = sources / "fashion-mnist"
            final.mkdir(exist_ok=True)
            for name in fashion_mnist_files():
                os.replace(folder / name, final / name)
            logger.info("Fetched Fashion-MNIST by %s into %s.", way, final)
            return True
    return False


def fetch_cifar10(root: Path) -> bool:
    """Download CIFAR-10 into ``root``, as torchvision keeps it; whether its server answers.

    Raises:
        UserError: the download fails.
    """
    from torchvision.datasets import CIFAR10

    if (root / CIFAR10.base_folder).is_dir():
        return True
    if not _answers(CIFAR10.url):
        return False
    logger.info("Fetching CIFAR-10 (170 MB) from %s into %s.", CIFAR10.url, root)
    try:
        with _socket_timeout(20):
            CIFAR10(str(root), download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"the download of {CIFAR10.url} failed ({error}): try again, or unpack "
            f"cifar-10-python.tar.gz in {root}."
        ) from error
    return True


def _download_with_torchvision(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    url = f"{FashionMNIST.mirrors[0]}{FashionMNIST.resources[-1][0]}"
    if not _answers(url):
        raise SourceError(f"{url} does not answer.")
    try:
        with _socket_timeout(20):
            FashionMNIST(str(scratch), train=True, download=True)
    except (RuntimeError, OSError) as error:
        raise SourceError(f"the download failed ({error}).") from error
    return scratch / "FashionMNIST" / "raw"


def _answers(url: str, timeout: float = 5.0) -> bool:
    """Whether a server answers within ``timeout`` seconds, name resolution included."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=timeout):
                answered.set()
        except (OSError, ValueError):
            pass

    # A thread, because no timeout of Python's ends a resolver that hangs.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision opens its connections without a timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download_with_apt(scratch: Path) -> Path:
    """Download and unpack the Debian package; needs neither root nor package lists."""
    for command in ("apt-get", "dpkg-deb"):
        if shutil.which(command) is None:
            raise SourceError(f"there is no {command} on this machine.")
    lists, cache = scratch / "lists", scratch / "cache"
    for folder in (lists / "partial", cache / "archives" / "partial"):
        folder.mkdir(parents=True)
    options = {
        "Dir::State::Lists": lists,
        "Dir::Cache": cache,
        "Acquire::Languages": "none",
        "Acquire::http::Timeout": 15,
        "Acquire::https::Timeout": 15,
        "Acquire::Retries": 1,
    }
    apt = ["apt-get", *(f"-o{key}={value}" for key, value in options.items())]
    # Its exit status counts for nothing: one unreachable source of the machine's is enough for
    # a failure, and the download tells whether the right one was reached.
    _run([*apt, "update"], scratch, timeout=180, check=False)
    _run([*apt, "download", DEBIAN_PACKAGE], scratch, timeout=300)
    packages = sorted(scratch.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not packages:
        raise SourceError("apt-get left no package behind.")
    _run(["dpkg-deb", "-x", packages[0].name, "unpacked"], scratch, timeout=60)
    return scratch / "unpacked" / DEBIAN_FOLDER


def _run(command: list[str], folder: Path, timeout: float, check: bool = True) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{command[0]} failed ({error}).") from error
    if check and done.returncode != 0:
        complaint = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"{command[0]} failed ({complaint}).")


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image_set", choices=IMAGE_SETS)
    parser.add_argument("--output", type=Path, default=Path("datasets/sources"), help="%(default)s")
    args = parser.parse_args(arguments)
    if args.image_set == "cifar10":
        fetched = fetch_cifar10(args.output)
    else:
        fetched = has_fashion_mnist(args.output) or fetch_fashion_mnist(args.output)
    if not fetched:
        raise UserError(
            f"no way leads to {args.image_set} from here: fetch it where there is a network, and "
            f"copy it to {args.output}."
        )
    print(f"{args.image_set}: in {args.output}, or installed on this machine")


if __name__ == "__main__":
    run_tool(main)
