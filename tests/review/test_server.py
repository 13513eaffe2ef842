"""The review page over HTTP: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from serving import serving

from gal_d2.errors import UserError
from gal_d2.pool.verdicts import VerdictFile
from gal_d2.review.pictures import to_png
from gal_d2.review.server import HOST, ReviewServer
from gal_d2.review.session import ReviewSession


class Examples:
    """Two real boots, and no bun."""

    def count(self, category_id: int) -> int:
        return 2 if category_id == 3 else 0

    def png(self, category_id: int, number: int) -> bytes:
        if number >= self.count(category_id):
            raise IndexError
        return to_png(np.full((5, 5, 4), 200, np.uint8))


@pytest.fixture
def server(pool, beliefs) -> Iterator[ReviewServer]:
    server = ReviewServer(ReviewSession(pool, beliefs, reviewer="ann"), Examples())
    with serving(server):
        yield server


def request(server: ReviewServer, path: str, content: object = None, **headers: str) -> tuple:
    """Status, headers and body; ``token`` and ``host`` among the headers replace the right ones."""
    token = headers.pop("token", server.token)
    body = content if content is None or isinstance(content, bytes) else json.dumps(content)
    if content is not None:
        headers = {"Content-Type": "application/json", **headers}
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    method = "GET" if content is None else "POST"
    connection.request(method, f"{path}?token={token}", body, headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def state(server: ReviewServer) -> dict:
    with urllib.request.urlopen(server.address.replace("/?", "/next?"), timeout=20) as answer:
        return json.load(answer)


def said(server: ReviewServer) -> list[str]:
    return [verdict.verdict for verdict in VerdictFile(server.session.pool.root).read()]


def test_a_review_over_http(server):
    first = state(server)["items"][0]
    assert first["category"] in ("boot", "bun_<b>&") and first["examples"] in (0, 2)
    assert int(first["pool_id"]) in server.session.pool and isinstance(first["pool_id"], str)
    status, _, body = request(server, "/verdict", {"pool_id": first["pool_id"], "verdict": "good"})
    after = json.loads(body)
    assert status == 200 and after["progress"]["good"] == 1
    assert after["items"][0]["pool_id"] != first["pool_id"]
    undone = json.loads(request(server, "/undo", {})[2])
    assert undone["items"][0] == first and said(server) == ["good", "undo"]


def test_pictures(server):
    pool_id = state(server)["items"][0]["pool_id"]
    status, headers, body = request(server, f"/cut_out/{pool_id}.png")
    image = Image.open(BytesIO(body))
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert image.size == (171, 256) and image.mode == "RGBA"
    assert request(server, "/real/3/1.png")[0] == 200
    assert request(server, "/real/3/2.png")[0] == request(server, "/real/12/0.png")[0] == 404


def test_the_page_lets_nothing_in_from_elsewhere(server):
    status, headers, body = request(server, "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "frame-ancestors" in policy
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    page = body.decode()
    assert page.count(f'nonce="{nonce}"') == 2 and "{{" not in page
    assert "http://" not in page and "https://" not in page and "innerHTML" not in page
    assert headers["X-Frame-Options"] == "DENY" and headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers
    assert nonce not in request(server, "/")[1]["Content-Security-Policy"]


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/next", "/cut_out/1.png", "/verdict", "/undo"])
@pytest.mark.parametrize(
    "headers",
    [
        {"token": "wrong"},
        {"token": ""},
        {"token": "%C3%A9"},
        {"Host": "pool.example:80"},
        {"Host": "127.0.0.1"},
        {"Origin": "https://pool.example"},
        {"Origin": "null"},
    ],
)
def test_others_are_refused(server, path, headers):
    content = {} if path in ("/verdict", "/undo") else None
    if path == "/verdict":
        content = {"pool_id": state(server)["items"][0]["pool_id"], "verdict": "bad"}
    assert request(server, path, content, **headers)[0] == 403
    assert said(server) == []


def test_its_own_page_is_not_refused(server):
    own = f"http://{HOST}:{server.server_port}"
    pool_id = state(server)["items"][0]["pool_id"]
    content = {"pool_id": pool_id, "verdict": "bad"}
    assert request(server, "/verdict", content, Origin=own)[0] == 200
    assert said(server) == ["bad"]


@pytest.mark.parametrize(
    "path",
    [
        "/../verdicts.jsonl",
        "/cut_out/../../etc/passwd",
        "/cut_out/%2e%2e.png",
        "/cut_out/1.png/..",
        "/cut_out/-1.png",
        "/cut_out/9999999999999999999.png",
        "/cut_out/5.png",
        "/real/3/9.png",
        "/page.html",
        "/cut_out/",
        "/nothing",
    ],
)
def test_there_are_no_files_to_ask_for(server, path):
    assert request(server, path)[0] == 404


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"nonsense", 400),
        (b"[]", 400),
        (b"[" * 4000, 400),
        (b"\xff", 400),
        ({}, 400),
        ({"pool_id": 7, "verdict": "good"}, 400),
        ({"pool_id": "-7", "verdict": "good"}, 400),
        ({"pool_id": "7\n", "verdict": "good"}, 400),
        ({"pool_id": "7", "verdict": "good"}, 404),
        ({"pool_id": "9999999999999999999", "verdict": "good"}, 404),
        ({"pool_id": "FIRST", "verdict": "undo"}, 400),
        ({"pool_id": "FIRST", "verdict": ["good"]}, 400),
        ({"pool_id": "FIRST"}, 400),
        (b" " * 5000, 400),
    ],
)
def test_broken_requests_change_nothing(server, content, status):
    if isinstance(content, dict) and content.get("pool_id") == "FIRST":
        content = {**content, "pool_id": state(server)["items"][0]["pool_id"]}
    assert request(server, "/verdict", content)[0] == status
    assert said(server) == [] and state(server)["progress"]["left"] == 60


def test_a_form_of_another_page_is_no_json(server):
    assert request(server, "/undo", {}, Content_Type="text/plain")[0] == 415


def test_a_full_disk_is_said(server, monkeypatch):
    def full(self, verdicts):
        raise UserError("the verdicts cannot be written to: make room")

    monkeypatch.setattr(VerdictFile, "add", full)
    pool_id = state(server)["items"][0]["pool_id"]
    status, _, body = request(server, "/verdict", {"pool_id": pool_id, "verdict": "bad"})
    assert status == 500 and b"make room" in body
    progress = state(server)["progress"]
    assert progress["bad"] == 0 and progress["left"] == 60


def test_a_port_that_is_taken(server):
    with pytest.raises(UserError, match=r"--port is \d+, which cannot be listened on"):
        ReviewServer(server.session, None, server.server_port)
