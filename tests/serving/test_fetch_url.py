"""Pictures are fetched from public addresses only."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from yolact_deploy.serving import fetch_url
from yolact_deploy.serving.fetch_url import fetch_picture
from yolact_deploy.serving.service_errors import RequestError


def fetch(url: str, addresses: list[str] | None = None, **limits: Any) -> bytes:
    resolve = None if addresses is None else lambda host, port: addresses
    return fetch_picture(url, **{"max_bytes": 1000, "timeout_s": 5.0, "resolve": resolve, **limits})


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    with pytest.raises(RequestError, match="not a public address") as error:
        fetch("http://inside.example/x.jpg", [address])
    assert error.value.status == 403


def test_one_private_address_among_public_ones() -> None:
    with pytest.raises(RequestError, match="not a public address"):
        fetch("http://both.example/x.jpg", ["93.184.215.14", "127.0.0.1"])


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1", "2130706433", "[::1]"])
def test_spellings_of_loopback(host: str) -> None:
    with pytest.raises(RequestError) as error:
        fetch(f"http://{host}:1/x.jpg")
    assert error.value.status in (403, 422)


@pytest.mark.parametrize(
    "url", ["", "x", "file:///etc/passwd", "ftp://a/x", "http://", "http://u:p@a/x", "http://a:99999/", "gopher://a/", "http://[::1"]
)  # fmt: skip
def test_wrong_urls(url: str) -> None:
    with pytest.raises(RequestError, match=r"^url: ") as error:
        fetch(url, ["93.184.215.14"])
    assert error.value.status == 400


def test_unknown_host() -> None:
    with pytest.raises(RequestError, match="has no address"):
        fetch("http://nowhere.example/", [])


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/ok")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * {"/ok": 10, "/large": 5000}.get(self.path, 0))
        if self.path == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        if self.path == "/host":
            self.wfile.write(self.headers["Host"].encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server on loopback, which counts as public here."""
    monkeypatch.setattr(fetch_url, "_public_address", lambda host, port, resolve: "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_fetches(port: int) -> None:
    assert fetch(f"http://public.example:{port}/ok") == b"x" * 10
    assert fetch(f"http://public.example:{port}/host") == f"public.example:{port}".encode()


@pytest.mark.parametrize(
    ("path", "status", "message"), [("/redirect", 422, "answered 302"), ("/large", 413, "larger than 1000 bytes")]
)
def test_refuses(port: int, path: str, status: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        fetch(f"http://public.example:{port}{path}")
    assert error.value.status == status


def test_a_slow_host_does_not_hold_the_service(port: int) -> None:
    with pytest.raises(RequestError, match="TimeoutError"):
        fetch(f"http://public.example:{port}/slow", timeout_s=0.3)
