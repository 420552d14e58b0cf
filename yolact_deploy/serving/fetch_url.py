"""Fetching a picture for a client: from public addresses only, within limits, without following redirects.

The name is resolved once, every address is checked, and the connection goes to the address that was checked, so that a
name server cannot send the second look-up to the inside of the network.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from yolact_deploy.serving.service_errors import RequestError, bad_request

_PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16
#: IPv6 addresses with an IPv4 address inside, which may be a private one: mapped, NAT64, 6to4, Teredo
_TUNNELS = tuple(map(ipaddress.ip_network, ("::ffff:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32")))

Resolver = Callable[[str, int], list[str]]


def fetch_picture(url: str, *, max_bytes: int, timeout_s: float, resolve: Resolver | None = None) -> bytes:
    """The content of a URL.

    Args:
        timeout_s: for the whole of it
        resolve: the addresses of a host and port

    Raises:
        RequestError: the address is not public, or cannot be fetched within the limits.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise bad_request(f"url: {error}", reason="url") from error
    host = parts.hostname
    if parts.scheme not in _PORTS or not host or parts.username is not None:
        raise bad_request("url: expected http://HOST/... or https://HOST/... without a user name", reason="url")
    end = time.monotonic() + timeout_s
    address = _public_address(host, port, resolve or _resolve)
    kind = _PinnedTls if parts.scheme == "https" else _Pinned
    connection = kind(host, port, address, timeout_s)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "yolact-deploy"})
        with connection.getresponse() as response:
            if response.status != 200:
                raise bad_request(
                    f"url: the host answered {response.status}, expected 200; redirects are not followed",
                    status=422,
                    reason="url",
                )
            return _read(response, max_bytes, end)
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        raise bad_request(f"url: cannot be fetched ({type(error).__name__})", status=422, reason="url") from error
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, max_bytes: int, end: float) -> bytes:
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise bad_request(f"url: larger than {max_bytes} bytes", status=413, reason="url")
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(content)


def _resolve(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _public_address(host: str, port: int, resolve: Resolver) -> str:
    """The first address of a host, all of which have to be public."""
    try:
        addresses = resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise bad_request("url: the host is not known", status=422, reason="url") from error
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        tunnel = any(address in network for network in _TUNNELS)
        if not address.is_global or address.is_multicast or tunnel:
            raise RequestError(403, "url: the host is not a public address", reason="url")
    if not addresses:
        raise bad_request("url: the host has no address", status=422, reason="url")
    return addresses[0]


class _Pinned(http.client.HTTPConnection):
    """Connects to an address that was checked, in the name of the host."""

    def __init__(self, host: str, port: int, address: str, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)


class _PinnedTls(_Pinned):
    default_port = 443

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
