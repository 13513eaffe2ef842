"""The review page's server: the standard library's, for one person at this machine.

It listens on the loopback interface alone. Other programs of this machine, and pages of other sites
in the same browser, can reach that, so each request needs the session's token, which only the
printed address has, and a Host header of this server (a name that somebody points at 127.0.0.1 is
refused); what changes something needs to come from this page (Origin) as JSON. Answers tell the
browser to load nothing from elsewhere, and to let no other page show or read them. Nothing of a
request becomes a path: cut-outs are asked for by numbers, and looked up in the pool.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from urllib.parse import parse_qs, urlsplit

from gal_d2.errors import UserError
from gal_d2.pool.cut_out import CorruptCutOutError
from gal_d2.review.pictures import RealExamples, to_png
from gal_d2.review.session import Item, ReviewSession

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_MOST_BYTES = 4096  # of a request's body
_CUT_OUT = re.compile(r"/cut_out/(\d{1,19})\.png", re.ASCII)
_REAL = re.compile(r"/real/(\d{1,19})/(\d{1,3})\.png", re.ASCII)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address has the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_KEEP = {"Cache-Control": "private, max-age=3600"}  # pictures, which never change
_POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'nonce-{0}'; "
    "script-src 'nonce-{0}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class ReviewServer(ThreadingHTTPServer):
    """Serves one session until :meth:`shutdown`.

    Args:
        session: that is shown.
        examples: real objects beside the cut-outs; None: none are shown.
        port: 0 takes a free one.

    Attributes:
        token: that each request needs.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(
        self, session: ReviewSession, examples: RealExamples | None = None, port: int = 0
    ) -> None:
        self.session, self.examples = session, examples
        self.token = secrets.token_urlsafe(24)
        self.page = files("gal_d2.review").joinpath("page.html").read_text(encoding="utf-8")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"--port is {port}, which cannot be listened on ({error.strerror}): choose "
                "another one, or 0 for any that is free."
            ) from error

    @property
    def address(self) -> str:
        """What a browser opens, with the token."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "gal-d2", ""
    timeout = 60  # seconds that a connection may be silent

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the token would be in the log."""

    def _answer(self, find) -> None:
        try:
            self._check_sender()
            kind, content, headers = find(urlsplit(self.path).path)
        except _Refused as error:
            status, kind, headers = error.status, "text/plain; charset=utf-8", {}
            content = str(error).encode()
            self.close_connection = True  # its body was perhaps not read
        else:
            status = HTTPStatus.OK
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _check_sender(self) -> None:
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get("Host") not in hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "this is not the host that you asked for")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            raise _Refused(HTTPStatus.FORBIDDEN, "another page has no business here")
        (given,) = parse_qs(urlsplit(self.path).query).get("token", [""])[:1]
        if not secrets.compare_digest(given.encode(), self.server.token.encode()):
            raise _Refused(
                HTTPStatus.FORBIDDEN, "open the address that tools/review_pool.py has printed"
            )

    # -- What there is

    def _get(self, path: str) -> tuple[str, bytes, dict[str, str]]:
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            page = self.server.page.replace("{{nonce}}", nonce)
            policy = {"Content-Security-Policy": _POLICY.format(nonce)}
            return "text/html; charset=utf-8", page.encode(), policy
        if path == "/next":
            return self._state()
        if match := _CUT_OUT.fullmatch(path):
            return "image/png", self._cut_out(int(match[1])), _KEEP
        if match := _REAL.fullmatch(path):
            return "image/png", self._real(int(match[1]), int(match[2])), _KEEP
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _cut_out(self, pool_id: int) -> bytes:
        try:
            return to_png(self.server.session.pool.get(pool_id).rgba)
        except (KeyError, OverflowError, CorruptCutOutError):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such cut-out") from None

    def _real(self, category_id: int, number: int) -> bytes:
        try:
            if self.server.examples is not None:
                return self.server.examples.png(category_id, number)
        except (IndexError, UserError):  # of the latter kind: the image is missing or broken
            pass
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such object")

    def _post(self, path: str) -> tuple[str, bytes, dict[str, str]]:
        content = self._body()
        session = self.server.session
        try:
            if path == "/undo":
                session.undo()
                return self._state()
            if path == "/verdict":
                # Text: JavaScript's numbers have 53 bits, pool ids 63.
                pool_id = content.get("pool_id")
                if not isinstance(pool_id, str) or not re.fullmatch(r"[0-9]{1,19}", pool_id):
                    raise _Refused(HTTPStatus.BAD_REQUEST, "pool_id has to be digits, as text")
                session.judge(int(pool_id), content.get("verdict"))
                return self._state()
        except (ValueError, TypeError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        except (KeyError, OverflowError):
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such cut-out") from None
        except UserError as error:
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from error
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _body(self) -> dict:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _MOST_BYTES:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"send up to {_MOST_BYTES} bytes")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "send a JSON object")
        return content

    def _state(self) -> tuple[str, bytes, dict[str, str]]:
        session = self.server.session
        state = {
            "items": [self._shown(item) for item in session.next_items()],
            "progress": session.progress(),
            "pool": session.pool.root.name,
        }
        return "application/json", json.dumps(state).encode(), {}

    def _shown(self, item: Item) -> dict[str, object]:
        examples = self.server.examples
        count = 0 if examples is None else examples.count(item.category_id)
        return asdict(item) | {"pool_id": str(item.pool_id), "examples": count}
