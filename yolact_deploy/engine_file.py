"""Reads an engine file without a GPU: its header, and the metadata of this package, which is the network name.

TensorRT drops a name of more than 4095 bytes. So the metadata is stored as it is if it fits, else compressed; if that
is too long as well, it is a file beside the engine, and the name holds its hash.

The format of TensorRT is not documented. Observed in files of TensorRT for RTX 1.7, and for the version described by
NVIDIA (github.com/NVIDIA/TensorRT issue 3073): 4 letters, the file length at byte 16, the version at byte 24.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import ArtifactError
from yolact_deploy.untrusted import read_bytes
from yolact_deploy.vocabulary import FLAVOURS

KINDS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT for RTX"}

#: key in the versions of the metadata for the kind of plugins; missing in an engine without plugins
PLUGINS_KEY = "plugins"

#: bytes of the longest network name that TensorRT keeps
LONGEST_NAME = 4095

_COMPRESSED = "yolact-deploy;zlib;{};"
_BESIDE = "yolact-deploy;file;{};"
_POINTER = re.compile(rb"yolact-deploy;(zlib|file);([A-Za-z0-9+/=]{20,4095});")
_HEADER_BYTES = 28
_SCHEMA = re.compile(rb'"schema":\d')
#: more than the metadata of 10,000 classes with long names
_LONGEST_METADATA = 1 << 21
#: places with a schema that are tried, and objects before each; in our metadata three objects begin before the schema
_MOST_HITS, _MOST_STARTS = 16, 8


@dataclass(frozen=True)
class EngineHeader:
    """The first bytes of an engine file."""

    kind: str  #: "TensorRT" or "TensorRT for RTX"
    version: str  #: version of the builder: major.minor.patch.build
    size: int  #: size of the file in bytes

    @property
    def flavour(self) -> str:
        """One of :data:`~yolact_deploy.vocabulary.FLAVOURS`."""
        return next(flavour for flavour, name in FLAVOURS.items() if name == self.kind)


def read_engine_header(path: str | os.PathLike[str]) -> EngineHeader:
    """Kind and version of an engine file.

    Raises:
        ArtifactError: the file is missing, empty, truncated, or not an engine.
    """
    path = Path(path)
    with _mapped(path) as data:
        return _header(path, data)


def sidecar_path(path: Path) -> Path:
    """The file with the metadata of an engine that cannot hold it: ``model.trt.json`` for ``model.trt``."""
    return path.with_name(f"{path.name}.json")


def network_name(metadata: Metadata) -> tuple[str, bytes | None]:
    """The name of the network in an engine, at most :data:`LONGEST_NAME` bytes, and the content of its sidecar file.

    The sidecar is None if the name holds the metadata.
    """
    text = metadata.to_json()
    data = text.encode()
    compressed = _COMPRESSED.format(base64.b64encode(zlib.compress(data, 9)).decode())
    for name in (text, compressed):
        if len(name.encode()) <= LONGEST_NAME:
            return name, None
    return _BESIDE.format(hashlib.sha256(data).hexdigest()), data


def read_engine_metadata(path: str | os.PathLike[str]) -> Metadata:
    """The metadata of an engine, searched in the bytes of the file, or read from the file beside it.

    Raises:
        ArtifactError: the file is not an engine, is truncated, or was not built by this package, or the file with its
            metadata is missing or belongs to another engine.
    """
    path = Path(path)
    with _mapped(path) as data:
        _header(path, data)
        text = _follow_pointer(path, data) or _find_metadata(data)
    if text is None:
        raise ArtifactError(
            f"{path} has no yolact-deploy metadata: it was built by another program. "
            "Build it with: yolact-deploy build MODEL.onnx"
        )
    return Metadata.from_json(text, str(path))


def plugin_kind(metadata: Metadata) -> str:
    """How FastNMS and MaskAssembly run in an engine: "none" (layers of TensorRT), "aot" or "v3".

    Call `yolact_deploy.runtime.plugins.register_creators` before loading an engine with "v3".
    """
    return metadata.versions.get(PLUGINS_KEY, "none")


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ArtifactError(f"{path} is empty: build or copy the engine again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except FileNotFoundError as error:
        raise ArtifactError(f"no such engine: {path}. Check the path") from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a folder: name the engine file in it") from error
    except OSError as error:
        raise ArtifactError(f"cannot read engine {path}: {error.strerror or error}. Check its permissions") from error


def _header(path: Path, data: mmap.mmap) -> EngineHeader:
    kind = KINDS.get(data[:4])
    if kind is None:
        raise ArtifactError(
            f"{path} is not a TensorRT engine (it starts with {data[:4]!r}): build one with "
            "yolact-deploy build MODEL.onnx"
        )
    if len(data) < _HEADER_BYTES:
        raise ArtifactError(f"{path} is truncated after {len(data)} bytes: build or copy the engine again")
    declared = struct.unpack_from("<Q", data, 16)[0]
    # Only engines for RTX are known to hold the length.
    if kind == KINDS[b"vtrt"] and declared > len(data):
        raise ArtifactError(
            f"{path} is truncated: it has {len(data):,} of {declared:,} bytes. Build or copy the engine again"
        )
    return EngineHeader(kind, ".".join(str(number) for number in data[24:28]), len(data))


def _follow_pointer(path: Path, data: mmap.mmap) -> str | None:
    """The metadata that a name holds in compressed form or refers to; None if there is no such name."""
    for hit in itertools.islice(_POINTER.finditer(data), _MOST_HITS):
        if hit[1] == b"file":
            return _read_sidecar(path, hit[2].decode())
        with contextlib.suppress(ValueError, zlib.error):  # other bytes that look alike
            packed = base64.b64decode(hit[2], validate=True)
            return zlib.decompressobj().decompress(packed, _LONGEST_METADATA).decode()
    return None


def _read_sidecar(path: Path, sha256: str) -> str:
    sidecar = sidecar_path(path)
    try:
        data = read_bytes(sidecar, f"file with the metadata of {path.name}", ArtifactError)
    except ArtifactError as error:
        raise ArtifactError(f"{error}. Copy both files together, or build the engine again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(
            f"{sidecar} belongs to another engine than {path.name}: copy both files together, or build the engine again"
        )
    return data.decode(errors="replace")


def _find_metadata(data: mmap.mmap) -> str | None:
    """The first JSON object with a schema and a configuration; weights may hold any bytes, so each hit is decoded."""
    for hit in itertools.islice(_SCHEMA.finditer(data), _MOST_HITS):
        lowest, start = max(0, hit.start() - _LONGEST_METADATA), hit.start()
        for _ in range(_MOST_STARTS):
            start = data.rfind(b'{"', lowest, start)
            if start < 0:
                break
            text = _object_at(data, start)
            if text is not None:
                return text
    return None


def _object_at(data: mmap.mmap, start: int) -> str | None:
    window = data[start : start + _LONGEST_METADATA]
    # json.dumps writes the metadata in ASCII; any bytes may follow.
    text = window.decode("latin-1")
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return text[:end] if _is_ours(value) else None


def _is_ours(value: Any) -> bool:
    return isinstance(value, dict) and "schema" in value and isinstance(value.get("config"), dict)
