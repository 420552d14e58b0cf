"""Official YOLACT weights from the Hugging Face hub, downloaded once and checked against their SHA-256.

Of most of them no digest is published apart from the hub's own. Their digest is stored when they are first fetched, and
a later download that differs is refused.

Requires the optional package ``huggingface_hub``, which has its own cache and resumes broken downloads; never torch.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from yolact_deploy.artifact import sha256_file
from yolact_deploy.config import list_configs
from yolact_deploy.errors import CheckpointError, DownloadError, import_optional
from yolact_deploy.samples.first_digests import digests_file, first_digest_of, store_digest
from yolact_deploy.samples.weights_address import download_weights, is_address
from yolact_deploy.untrusted import styled
from yolact_deploy.vocabulary import CHECKPOINT_SUFFIXES


@dataclass(frozen=True)
class Pin:
    """Which file the official weights are.

    Attributes:
        sha256: of the file; empty if not known, then the hub vouches for it the first time, and :func:`first_digest`
            afterwards
        revision: of the hub's repository
    """

    sha256: str = ""
    revision: str = "main"


#: configurations whose trained weights the authors published; the digest is the one in OpenVINO's Open Model Zoo
OFFICIAL = {
    "yolact_base": Pin(),
    "yolact_resnet50": Pin("c12bb7a7e0343281db7f1407b376970bb52651f121d0b60bc4a49207acb6d6d7"),
    "yolact_darknet53": Pin(),
    "yolact_im700": Pin(),
    "yolact_plus_base": Pin(),
    "yolact_plus_resnet50": Pin(),
}


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
    """The weights file that a user names: an existing path, or what is downloaded: published weights, or an address.

    Raises:
        CheckpointError: neither a file nor a published name.
        DownloadError: see :func:`fetch_weights` and :func:`~yolact_deploy.samples.weights_address.download_weights`.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if is_address(name):
        return download_weights(name)
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


def fetch_weights(
    name: str, cache_dir: str | Path | None = None, sha256: str | None = None, revision: str | None = None
) -> Path:
    """Path of the official weights of a configuration, downloaded unless cached.

    Args:
        name: one of :data:`OFFICIAL`.
        cache_dir: a folder to use instead of the cache of ``huggingface_hub``.
        sha256: the checksum to expect instead of the one in :data:`OFFICIAL`.
        revision: of the hub's repository, instead of the one in :data:`OFFICIAL`.

    Raises:
        DownloadError: unknown name, no connection, a missing file, or a wrong checksum.
        MissingDependencyError: ``huggingface_hub`` is not installed.
    """
    if name not in OFFICIAL:
        raise DownloadError(f"no weights were published for {name!r}. Published are {', '.join(OFFICIAL)}")
    hub = import_optional("huggingface_hub", extra="hub", purpose=f"downloading the weights of {name}")
    revision = revision or OFFICIAL[name].revision
    try:
        with contextlib.redirect_stderr(styled(sys.stderr)):  # for its progress bar
            downloaded = hub.hf_hub_download(
                repository(name), weights_file(name), revision=revision, cache_dir=cache_dir
            )
    except Exception as error:  # the hub's client raises its own, requests' or httpx's errors, by version
        raise DownloadError(_why_failed(name, revision, error)) from error
    path = Path(downloaded)
    pinned = ("you", sha256) if sha256 else ("this version", OFFICIAL[name].sha256)
    if not pinned[1]:
        pinned = (f"the first download here ({digests_file()})", first_digest(name, revision))
    expected = {"the hub": _declared_sha256(hub, name, revision, path), pinned[0]: pinned[1]}
    actual = _verify(path, {source: digest.lower() for source, digest in expected.items() if digest})
    if not pinned[1]:
        store_digest(f"{name}@{revision}", actual)
    return path


def first_digest(name: str, revision: str | None = None) -> str:
    """SHA-256 of official weights when they were first fetched on this machine; empty if they never were.

    Raises:
        DownloadError: the file of these digests is damaged.
    """
    return first_digest_of(f"{name}@{revision or OFFICIAL[name].revision}")


def commit_of(path: Path) -> str:
    """The commit of the hub's repository that a downloaded file is from: the name of its folder; empty if unknown."""
    return path.parent.name if re.fullmatch("[0-9a-f]{40}", path.parent.name) else ""


def _why_failed(name: str, revision: str, error: Exception) -> str:
    url = f"https://huggingface.co/{repository(name)}/resolve/{revision}/{weights_file(name)}"
    gone = any(c.__name__ in ("RepositoryNotFoundError", "RemoteEntryNotFoundError") for c in type(error).__mro__)
    gone = gone or type(error).__name__ == "EntryNotFoundError"
    reason = "the hub has no such file any more" if gone else f"no connection to the hub ({_first_line(error)})"
    return (
        f"cannot download the weights of {name}: {reason}. Give the path of {weights_file(name)}, which is at {url} "
        "and behind the links in the README of dbolya/yolact"
    )


def _first_line(error: Exception) -> str:
    """The first sentence, or as many of its words as fit."""
    first = re.split(r"\n|(?<=\.) ", str(error).strip(), maxsplit=1)[0]
    return textwrap.shorten(first, 160, placeholder=" ...") or type(error).__name__


def _declared_sha256(hub: ModuleType, name: str, revision: str, path: Path) -> str | None:
    """SHA-256 that the hub declares: the etag of a large file, which is also the name of its blob in the cache.

    Without a connection, the name in the cache is used.
    """
    try:
        etag = hub.get_hf_file_metadata(hub.hf_hub_url(repository(name), weights_file(name), revision=revision)).etag
    except Exception:  # the client's errors differ between versions; the cache has the answer as well
        etag = path.resolve().name
    text = str(etag or "").strip('"')
    return text if re.fullmatch(r"[0-9a-fA-F]{64}", text) else None


def _verify(path: Path, expected: dict[str, str]) -> str:
    """The SHA-256 of a file that has all expected ones."""
    if not expected:
        raise DownloadError(
            f"the hub declares no SHA-256 for {path.name}, so it cannot be checked: "
            "give the checksum yourself, or download the file manually and give its path"
        )
    actual = sha256_file(path)
    for source, digest in expected.items():
        if digest != actual:
            raise DownloadError(
                f"{path} has the SHA-256 {actual}, {source} said {digest}: delete the file and download it again, "
                "or give --sha256 if you know the right one"
            )
    return actual
