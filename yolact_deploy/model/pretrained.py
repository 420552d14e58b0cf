"""Official YOLACT weights from the Hugging Face hub, downloaded once and checked against their SHA-256.

Requires the optional package ``huggingface_hub``, which has its own cache and resumes broken downloads.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from types import ModuleType

from yolact_deploy.artifact import sha256_file
from yolact_deploy.config import list_configs
from yolact_deploy.errors import CheckpointError, DownloadError, import_optional
from yolact_deploy.vocabulary import CHECKPOINT_SUFFIXES

#: configurations whose trained weights the authors published
OFFICIAL = (
    "yolact_base",
    "yolact_resnet50",
    "yolact_darknet53",
    "yolact_im700",
    "yolact_plus_base",
    "yolact_plus_resnet50",
)


def repository(name: str) -> str:
    """Hub repository of a configuration's official weights.

    >>> repository("yolact_im700")
    'dbolya/yolact-im700'
    """
    return f"dbolya/{name.replace('_', '-')}"


def weights_file(name: str) -> str:
    """File name of the official weights, the same on the hub and elsewhere."""
    return f"{name}_54_800000.pth"


def resolve_weights(name_or_path: str | Path) -> Path:
    """The weights file that a user names: an existing path, or the name of published weights, which is downloaded.

    Raises:
        CheckpointError: neither a file nor a published name.
        DownloadError: see :func:`fetch_weights`.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.exists():
        return path
    if name in OFFICIAL:
        return fetch_weights(name)
    if path.suffix in CHECKPOINT_SUFFIXES or len(path.parts) > 1:
        raise CheckpointError(f"no such weights file: {path}. Check the path and the current folder")
    if name in list_configs():
        raise CheckpointError(f"no weights were published for {name}: give a file. Published are {', '.join(OFFICIAL)}")
    near = difflib.get_close_matches(name, OFFICIAL, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise CheckpointError(f"no file and no published weights named {name!r}: {hint}Published are {', '.join(OFFICIAL)}")


def fetch_weights(name: str, cache_dir: str | Path | None = None, sha256: str | None = None) -> Path:
    """Path of the official weights of a configuration, downloaded unless cached.

    Args:
        name: one of :data:`OFFICIAL`.
        cache_dir: a folder to use instead of the cache of ``huggingface_hub``.
        sha256: a checksum to verify in addition to the one that the hub declares.

    Raises:
        DownloadError: unknown name, no connection, a missing file, or a wrong checksum.
        MissingDependencyError: ``huggingface_hub`` is not installed.
    """
    if name not in OFFICIAL:
        raise DownloadError(f"no weights were published for {name!r}. Published are {', '.join(OFFICIAL)}")
    hub = import_optional("huggingface_hub", extra="hub", purpose=f"downloading the weights of {name}")
    try:
        downloaded = hub.hf_hub_download(repository(name), weights_file(name), cache_dir=cache_dir)
    except Exception as error:  # the hub's client raises its own, requests' or httpx's errors, by version
        raise DownloadError(_why_failed(name, error)) from error
    path = Path(downloaded)
    expected = {"the hub": _declared_sha256(hub, name, path), "you": sha256}
    _verify(path, {source: digest.lower() for source, digest in expected.items() if digest})
    return path


def _why_failed(name: str, error: Exception) -> str:
    url = f"https://huggingface.co/{repository(name)}/resolve/main/{weights_file(name)}"
    gone = any(c.__name__ in ("RepositoryNotFoundError", "RemoteEntryNotFoundError") for c in type(error).__mro__)
    gone = gone or type(error).__name__ == "EntryNotFoundError"
    reason = "the hub has no such file any more" if gone else f"no connection to the hub ({_first_line(error)})"
    return (
        f"cannot download the weights of {name}: {reason}. Get {weights_file(name)} by hand "
        f"({url}, or the links in the README of dbolya/yolact) and give its path"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _declared_sha256(hub: ModuleType, name: str, path: Path) -> str | None:
    """SHA-256 that the hub declares: the etag of a large file, which is also the name of its blob in the cache.

    Without a connection, the name in the cache is used.
    """
    try:
        etag = hub.get_hf_file_metadata(hub.hf_hub_url(repository(name), weights_file(name))).etag
    except Exception:  # the client's errors differ between versions; the cache has the answer as well
        etag = path.resolve().name
    text = str(etag or "").strip('"')
    return text if re.fullmatch(r"[0-9a-fA-F]{64}", text) else None


def _verify(path: Path, expected: dict[str, str]) -> None:
    if not expected:
        raise DownloadError(
            f"the hub declares no SHA-256 for {path.name}, so it cannot be checked: "
            "give the checksum yourself, or download the file manually and give its path"
        )
    actual = sha256_file(path)
    for source, digest in expected.items():
        if digest != actual:
            raise DownloadError(
                f"{path} has the SHA-256 {actual}, {source} said {digest}: delete the file and download it again"
            )
