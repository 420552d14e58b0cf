"""Weights at an address, of any implementation whose checkpoints load: downloaded once into the cache, and checked.

As torch.hub and the zoo of mmdetection do it, the name of a file may end in the first digits of its SHA-256
(``model-0123abcd.pth``). Otherwise the digest of the first download is kept, and a later one that differs is refused.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from yolact_deploy.artifact import atomic_write, sha256_file
from yolact_deploy.cache import cache_folder
from yolact_deploy.errors import DownloadError
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.samples.first_digests import first_digest_of, store_digest
from yolact_deploy.vocabulary import CHECKPOINT_SUFFIXES

_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
_MOST_BYTES = 4 << 30
_CHUNK = 1 << 20
#: seconds without an answer
_PATIENCE = 60


def is_address(text: str) -> bool:
    """Whether this is an address of the web and not a path or a name."""
    return text.lower().startswith(("http://", "https://"))


def download_weights(
    address: str, folder: str | Path | None = None, sha256: str | None = None, progress: Progress = SILENT
) -> Path:
    """Path of the file at an address, downloaded unless it is there already.

    Args:
        address: https://, or http:// where a digest is known
        folder: instead of the cache of this package
        sha256: the digest to expect

    Raises:
        DownloadError: no such file, a page in its place, or a wrong digest.
        OutputError: it cannot be stored.
    """
    name = _name(address)
    in_name = _IN_NAME.search(name)
    expected = {
        "you": (sha256 or "").lower(),
        "its name": in_name[1] if in_name else "",
        "the first download here": "" if sha256 else first_digest_of(address),
    }
    if not any(expected.values()) and not address.lower().startswith("https:"):
        raise DownloadError(f"{_shown(address)}: http:// does not prove who sends a file: use https://, or --sha256")
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = (Path(folder) if folder else cache_folder("weights")) / key / name
    if path.exists():
        digest = sha256_file(path)
    else:
        with atomic_write(path) as temporary:
            digest = _download(address, temporary, progress)
            _check(digest, expected, _shown(address))
    _check(digest, expected, str(path))
    if not any(expected.values()):
        store_digest(address, digest)
    return path


def _name(address: str) -> str:
    try:
        parts = urlsplit(address)
        name = unquote(parts.path).replace("\\", "/").rpartition("/")[2]
        known = bool(parts.hostname) and (parts.port or 1) > 0  # both raise where they are nonsense
    except ValueError as error:
        raise DownloadError(f"{_shown(address)} is not an address: {error}") from error
    if not known or "\0" in name or Path(name).suffix not in CHECKPOINT_SUFFIXES:
        raise DownloadError(
            f"{_shown(address)} does not name a file of weights ({', '.join(CHECKPOINT_SUFFIXES)}): where a page asks "
            "before it sends the file, download it in a browser and give its path"
        )
    return name


def _shown(address: str) -> str:
    """The address without a password and the keys of a signed link."""
    return re.sub(r"(?<=://)[^/@\s]*@", "***@", address).partition("?")[0]


def _download(address: str, target: Path, progress: Progress) -> str:
    """The SHA-256 of what is written to ``target``."""
    request = urllib.request.Request(address, headers={"User-Agent": "yolact-deploy"})  # http(s) alone
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            if address.lower().startswith("https:") and not answer.geturl().lower().startswith("https:"):
                raise DownloadError(f"{_shown(address)} leads to an address without TLS: give that one and --sha256")
            with target.open("wb") as file:
                return _copy(answer, file, _shown(address), progress)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{_shown(address)}: the server answers {error.code} ({error.reason}): check it") from error
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
        ssl.SSLError,
        ValueError,
    ) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise DownloadError(
            f"cannot download {_shown(address)}: {reason}. Check the address and the network, or download the file by "
            "hand and give its path"
        ) from error


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, shown: str, progress: Progress) -> str:
    length = int(answer.headers.get("Content-Length") or 0)
    digest, done = hashlib.sha256(), 0
    with progress.steps("download") as step:
        while chunk := answer.read(_CHUNK):
            if done == 0 and chunk.lstrip()[:1] == b"<":
                raise DownloadError(f"{shown} gives a page, not a file: download it in a browser and give its path")
            done += len(chunk)
            if max(done, length) > _MOST_BYTES:
                raise DownloadError(f"{shown} is larger than {_MOST_BYTES >> 30} GiB, so it is no weights file")
            digest.update(chunk)
            file.write(chunk)
            step("MiB", done >> 20, max(done, length) >> 20)
    if done == 0 or done < length:
        raise DownloadError(f"{shown} ended after {done} of {length} bytes: try again")
    return digest.hexdigest()


def _check(digest: str, expected: dict[str, str], where: str) -> None:
    for source, known in expected.items():
        if known and not (digest.startswith(known) and (source != "you" or len(known) == 64)):
            raise DownloadError(
                f"{where} has the SHA-256 {digest}, {source} said {known}: delete what is there and download it again, "
                "or give --sha256 if you know the right one"
            )
