"""SHA-256 of weights when they were first downloaded here, for files of which no digest is published."""

from __future__ import annotations

import logging
from pathlib import Path

from yolact_deploy.artifact import write_json
from yolact_deploy.cache import cache_folder, cache_root
from yolact_deploy.errors import DownloadError, OutputError
from yolact_deploy.untrusted import read_json

_log = logging.getLogger(__name__)


def digests_file() -> Path:
    """Where the digests are kept; it may not exist."""
    return cache_root() / "weights" / "first_digests.json"


def first_digest_of(source: str) -> str:
    """SHA-256 of what ``source``, a name or an address, gave the first time; empty if it never did.

    Raises:
        DownloadError: the file of the digests is damaged.
    """
    return _all().get(source, "")


def store_digest(source: str, sha256: str) -> None:
    """Keep the digest of a first download; a warning where that fails."""
    try:
        cache_folder("weights")
        write_json(digests_file(), {**_all(), source: sha256})
    except OutputError as error:
        _log.warning("the SHA-256 of %s is not kept for the next download: %s", source.partition("@")[0], error)


def _all() -> dict[str, str]:
    path = digests_file()
    if not path.exists():
        return {}
    stored = read_json(path, "digests of weights", DownloadError)
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise DownloadError(f"{path} is damaged: delete it, and the next download counts as the first")
    return stored
