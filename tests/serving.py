"""A server that runs while a test asks it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gal_d2.review.server import ReviewServer


@contextmanager
def serving(server: ReviewServer) -> Iterator[ReviewServer]:
    """Within the block it answers; after it, its port is free."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
